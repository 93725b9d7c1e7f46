"""Copying a file's tensors to their places: what it costs, and modules that load in a way of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from eckart.torch import load_compressed
from tests.eckart.torch.factoring import close, compress, write

ROOT = Path(__file__).parents[3]
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(7))


class Scale(nn.Module):
    """A layer whose stored values are a hundredth of its own."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(6))


class Overriding(Scale):
    """It changes them as it loads."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[prefix + "factor"] = 100 * state_dict[prefix + "factor"]
        super()._load_from_state_dict(state_dict, prefix, *args)


class Hooked(Scale):
    """A hook changes them."""

    def __init__(self):
        super().__init__()
        self.register_load_state_dict_pre_hook(self._change)

    @staticmethod
    def _change(_module, state_dict, prefix, *_):
        state_dict[prefix + "factor"] = 100 * state_dict[prefix + "factor"]


class Above(nn.Module):
    """A hook of the module above changes them."""

    def __init__(self):
        super().__init__()
        self.inner = Scale()
        self.register_load_state_dict_pre_hook(self._change)

    @staticmethod
    def _change(_module, state_dict, prefix, *_):
        state_dict[prefix + "inner.factor"] = 100 * state_dict[prefix + "inner.factor"]


class Extra(Scale):
    """Its values are an extra state."""

    def get_extra_state(self):
        return torch.zeros(6)

    def set_extra_state(self, state):
        self.factor.data.copy_(100 * state)


class Whole(nn.ModuleDict):
    """A model that loads in a way of its own."""

    def load_state_dict(self, state_dict, *args, **options):
        changed = {
            name: 100 * value if name.endswith("factor") else value for name, value in state_dict.items()
        }
        return super().load_state_dict(changed, *args, **options)


@pytest.mark.parametrize(
    ("kind", "model"),
    [(Overriding, nn.ModuleDict), (Hooked, nn.ModuleDict), (Above, nn.ModuleDict), (Scale, Whole)],
)
def test_a_module_loads_in_a_way_of_its_own(tmp_path, kind, model):
    def make():
        torch.manual_seed(0)
        return model({"a": nn.Linear(8, 6), "scale": kind()})

    net = make()
    name = next(name for name in net.state_dict() if name.endswith("factor"))
    state = net.state_dict() | {name: torch.full((6,), 0.02)}
    path, dense = compress(net, tmp_path / "x.safetensors", state=state)
    loaded = load_compressed(make(), path)

    assert torch.allclose(loaded.state_dict()[name], torch.full((6,), 2.0))
    assert close(loaded["a"](X), dense["a"](X))


def test_an_extra_state_is_set(tmp_path):
    net = nn.ModuleDict({"a": nn.Linear(8, 6), "scale": Extra()})
    state = net.state_dict() | {"scale._extra_state": torch.full((6,), 0.02)}
    path, _ = compress(net, tmp_path / "x.safetensors", state=state)
    loaded = load_compressed(nn.ModuleDict({"a": nn.Linear(8, 6), "scale": Extra()}), path)

    assert torch.allclose(loaded["scale"].factor, torch.full((6,), 2.0))


def test_a_hook_that_waits_for_the_end_of_loading_is_called_with_what_is_missing(tmp_path):
    net, seen = nn.ModuleDict({"a": nn.Linear(8, 6), "new": nn.Linear(2, 2)}), []
    path, _ = compress(nn.ModuleDict({"a": nn.Linear(8, 6)}), tmp_path / "x.safetensors")
    net.register_load_state_dict_post_hook(lambda _module, keys: seen.extend(keys.missing_keys))
    load_compressed(net, path, strict=False)

    assert seen == ["new.weight", "new.bias"]


def test_of_a_tied_tensor_that_is_stored_twice_the_later_one_stays(tmp_path):
    def make():
        made = nn.ModuleDict({"first": nn.Linear(3, 3), "a": nn.Linear(8, 6), "last": nn.Linear(3, 3)})
        made["last"].weight = made["first"].weight
        return made

    state = make().state_dict() | {"first.weight": torch.zeros(3, 3), "last.weight": torch.ones(3, 3)}
    path, _ = compress(make(), tmp_path / "x.safetensors", "a", state=state)

    assert torch.equal(load_compressed(make(), path)["first"].weight, torch.ones(3, 3))


def flat(count):
    return nn.ModuleDict({f"l{i}": nn.Linear(6, 4, bias=False) for i in range(count)})


def calls(model, path):
    """Count the calls, of Python's functions and of C's."""
    count = 0

    def see(_frame, event, _arg):
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(see)
    try:
        load_compressed(model, path)
    finally:
        sys.setprofile(None)
    return count


def test_the_work_grows_as_the_number_of_layers_and_no_faster(tmp_path):
    """Even where one module holds them all: torch's own way looks at all names for each layer."""
    counts = []
    for number in (100, 400):
        path, _ = compress(flat(number), tmp_path / f"{number}.safetensors")
        counts.append(calls(flat(number), path))
    assert counts[1] < 4.4 * counts[0]


LOAD = """
import sys, torch
from torch import nn
from eckart.torch import load_compressed
from tests.peak import peak_kib
count = int(sys.argv[2])
make = lambda: nn.utils.skip_init(nn.Linear, 768, 768, bias=False)
model = nn.ModuleDict({f"l{i}": make() for i in range(count)})
for parameter in model.parameters():
    parameter.data.zero_()
load_compressed(nn.ModuleDict({"l0": make()}), sys.argv[3], dequantize=True)
before = peak_kib()
load_compressed(model, sys.argv[1], dequantize=True)
print(peak_kib() - before)
"""


def test_memory_holds_one_product_at_a_time_beside_the_model(tmp_path):
    """The file is counted once, as it is mapped; the products would take more than that."""
    size, rank, count = 768, 64, 32
    names = [f"l{i}" for i in range(count)]
    state = {f"{name}.0.weight": torch.ones(rank, size) for name in names}
    state |= {f"{name}.1.weight": torch.ones(size, rank) for name in names}
    entry = {"method": "svd", "rank": rank, "shape": [size, size], "dtype": "F32"}
    path = write(tmp_path / "x.safetensors", state, dict.fromkeys(names, entry))
    first = {name: tensor for name, tensor in state.items() if name.startswith("l0.")}
    warm = write(tmp_path / "warm.safetensors", first, {"l0": entry})
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path, str(count), warm],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )

    product_kib = size * size * 4 / 1024
    assert int(done.stdout) < path.stat().st_size / 1024 + count / 4 * product_kib < count * product_kib / 2
