"""Statistics of inputs from real torch modules, against the inputs as plain hooks see them."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from eckart import InputError, calibrate
from eckart.calibration_pass import collect, linear_layers
from eckart.gram_collector import WINDOW, GramCollector
from eckart.progress import silent
from eckart.statistics_file import read_statistics
from eckart.sums import SumStore
from worker.lowrank import gram_fault


class Conv1D(nn.Module):
    """A layer as GPT-2 has it: the weight is stored as [inputs, outputs]."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Block(nn.Module):
    """Attention in all but name: three layers of one input, one of another, and a norm."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        mixed = torch.tanh(self.query(x) * self.key(x)) + self.value(x)
        return self.norm(x + self.drop(self.out(mixed)))


class Net(nn.Module):
    """Two blocks, one of which is passed twice, and a layer that nothing comes to."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.first, self.second = Block(), Block()
        self.conv = Conv1D(5, 8)
        self.idle = nn.Linear(8, 3)

    def forward(self, ids, attention_mask=None):
        del attention_mask
        return self.conv(self.second(self.second(self.first(self.embed(ids)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def tokens(*shape, seed=1):
    return torch.randint(20, shape, generator=torch.Generator().manual_seed(seed))


BATCHES = [tokens(3, 7), tokens(2, 5, seed=2), tokens(11, seed=3)]


def seen(model, batches, *, keep=lambda _x: slice(None)):
    """Return the statistics in float64 of all that came to each layer, by the names of their tensors."""
    rows_of, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):

            def add(_module, given, name=name):
                rows = given[0].detach().double()[keep(given[0])].reshape(-1, given[0].shape[-1])
                rows_of.setdefault(name, []).append(rows.numpy().copy())

            hooks.append(module.register_forward_pre_hook(add))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(*batch) if isinstance(batch, tuple) else model(batch)
    for module, training in modes.items():
        module.training = training
    for hook in hooks:
        hook.remove()
    sums = {}
    for name, parts in rows_of.items():
        rows = np.concatenate(parts)
        sums |= {f"{name}.gram": rows.T @ rows, f"{name}.mean": rows.mean(0), f"{name}.count": [len(rows)]}
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in sums.items()}


def assert_same(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for name, sums in found.items():
        torch.testing.assert_close(
            sums.double(), expected[name], rtol=rtol, atol=rtol * expected[name].abs().max()
        )


def collected(model, batches):
    return collect(model, linear_layers(model, lambda _name: True), batches, SumStore(), silent)


def statistics_in(path):
    """Return all statistics by name, also those that layers share."""
    file = read_statistics(path)
    return {name + end: file.load(tensor) for name, own in file.layers.items() for end, tensor in own.items()}


@pytest.mark.parametrize("spill", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_layer_that_takes_inputs_gets_their_gram_matrix(net, tmp_path, dtype, spill):
    path = calibrate(net, BATCHES, tmp_path / "g.safetensors", dtype=dtype, spill=spill)

    assert path == tmp_path / "g.safetensors"
    for name, value in load_file(path).items():
        assert value.dtype is (torch.float64 if name.endswith(".count") else getattr(torch, dtype))
    found = statistics_in(path)
    assert_same(found, seen(net, BATCHES))
    assert "idle.gram" not in found
    assert all(gram_fault(value) is None for name, value in found.items() if name.endswith(".gram"))
    assert [file.name for file in tmp_path.iterdir()] == ["g.safetensors"]


def test_layers_that_take_the_same_tensor_share_one_sum(net):
    sums = collected(net, BATCHES).moments

    for block in ("first", "second"):
        query, key, value, out = (sums[f"{block}.{name}"] for name in ("query", "key", "value", "out"))
        assert query is key is value is not out


class Switch(nn.Module):
    """Layers that share an input in some batches and not in others."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.others = nn.ModuleList(nn.Linear(4, 4) for _ in range(WINDOW + 1))

    def forward(self, x, how):
        a, b, c = self.a, self.b, self.c
        return {
            "together": lambda: a(x) + b(x) + c(x),
            "apart": lambda: a(x) + b(2 * x) + c(3 * x),
            "one aside": lambda: a(x) + b(x) + c(3 * x),
            "one missing": lambda: b(x) + c(x),
            "same twice": lambda: a(x) + b(x) + a(x),
            "crossed": lambda: a(x) + b(-2 * x) + a(4 * x) + b(x),
            "changed in place": lambda: a(x) + b(x.mul_(3)) + c(x),
            "far": lambda: a(x) + sum(other(x + 1) for other in self.others) + b(x),
        }[how]()


HOWS = ("together", "apart", "one aside", "one missing", "same twice", "crossed", "changed in place", "far")


@pytest.mark.parametrize("first", HOWS)
@pytest.mark.parametrize("second", HOWS)
@pytest.mark.parametrize("spill", [False, True])
def test_what_is_shared_in_one_batch_and_not_in_the_next_is_never_mixed_up(tmp_path, first, second, spill):
    torch.manual_seed(0)
    net, x = Switch(), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    hows = [first, second, "together", second, first]
    path = calibrate(net, [(x.clone(), how) for how in hows], tmp_path / "g.safetensors", spill=spill)

    assert_same(statistics_in(path), seen(net, [(x.clone(), how) for how in hows]))


class Inference(Switch):
    """A model that turns on inference mode itself, in which changes of a tensor are not counted."""

    @torch.inference_mode()
    def forward(self, x, how):
        return super().forward(x + 0, how)


def test_a_model_in_inference_mode_is_no_exception(tmp_path):
    torch.manual_seed(0)
    net, x = Inference(), torch.ones(2, 4)
    batches = [(x, "together"), (x, "changed in place")]

    assert_same(statistics_in(calibrate(net, batches, tmp_path / "g.safetensors")), seen(net, batches))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_dtype_are_summed_without_rounding_their_inputs_further(net, tmp_path, dtype):
    path = calibrate(net.to(dtype), BATCHES, tmp_path / "g.safetensors", dtype="float64")

    assert_same(statistics_in(path), seen(net, BATCHES))


def test_products_are_exact_though_the_model_runs_in_half_precision_by_autocast(net, tmp_path):
    class Autocast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, ids):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(ids)

    model = Autocast()
    assert_same(statistics_in(calibrate(model, BATCHES, tmp_path / "g.safetensors")), seen(model, BATCHES))


def test_padding_does_not_count(net, tmp_path):
    ids, mask = tokens(3, 7), torch.arange(7) < torch.tensor([[7], [4], [1]])
    batch = {"ids": ids, "attention_mask": mask.long()}
    path = calibrate(net, [batch], tmp_path / "g.safetensors")

    assert_same(statistics_in(path), seen(net, [ids], keep=lambda _x: mask))


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"ids": x}])
def test_a_batch_is_a_mapping_a_sequence_or_one_argument(net, tmp_path, form):
    path = calibrate(net, (form(batch) for batch in BATCHES), tmp_path / "g.safetensors")

    assert_same(statistics_in(path), seen(net, BATCHES))


def test_only_layers_that_are_included_are_summed(net, tmp_path):
    path = calibrate(net, BATCHES, tmp_path / "g.safetensors", include=["first.*", "conv"], exclude=["*.out"])

    assert read_statistics(path).layers.keys() == {"first.query", "first.key", "first.value", "conv"}


def test_the_file_is_one_that_the_reference_library_reads_without_a_copy_of_it_all(net, tmp_path):
    path = calibrate(net, BATCHES, tmp_path / "g.safetensors")

    with safe_open(path, "pt") as file:
        same_as = {
            f"{block}.{one}": f"{block}.query" for block in ("first", "second") for one in ("key", "value")
        }
        assert file.metadata() == {"format": "pt", "same_as": json.dumps(same_as)}
        assert set(file.keys()) == {
            name for name in seen(net, BATCHES) if name.rpartition(".")[0] not in same_as
        }


def hooks(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("spill", [False, True])
def test_the_model_is_as_it_was_even_after_a_failure(net, tmp_path, spill):
    net.train()
    net.first.drop.eval()
    modes = [module.training for module in net.modules()]
    calibrate(net, BATCHES, tmp_path / "a.safetensors", spill=spill)
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(IndexError):
        calibrate(net, [BATCHES[0], torch.tensor([99])], tmp_path / "b.safetensors", spill=spill)

    assert [module.training for module in net.modules()] == modes
    assert hooks(net) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_no_input_outlives_its_batch(net):
    inputs = []
    net.second.out.register_forward_pre_hook(lambda _module, given: inputs.append(weakref.ref(given[0])))
    with GramCollector(linear_layers(net, lambda _name: True), SumStore()) as collector, torch.no_grad():
        for batch in BATCHES:
            net(batch)
            collector.end_batch()
            assert inputs
            assert all(reference() is None for reference in inputs)


def test_an_old_file_stays_until_the_new_one_is_whole(net, tmp_path):
    path = calibrate(net, BATCHES, tmp_path / "g.safetensors")
    before = path.read_bytes()
    with pytest.raises(IndexError):
        calibrate(net, [torch.tensor([99])], path)
    assert path.read_bytes() == before
    calibrate(net, BATCHES[:1], path)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("batches", "options", "words"),
    [
        ([], {}, "there are no batches"),
        (BATCHES, {"include": ["nothing*"]}, "no Linear, Conv1D or convolution that is included"),
        (BATCHES, {"include": ["idle"]}, "took any input"),
        (BATCHES, {"dtype": "float16"}, "float32 or float64"),
        (BATCHES, {"path": "grams.bin"}, "ends in .safetensors"),
    ],
)
def test_what_cannot_be_collected_is_said(net, tmp_path, monkeypatch, batches, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        calibrate(net, batches, **options)

    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_not_finite_are_refused_by_layer(net, tmp_path):
    net.embed.weight.data[3] = torch.nan
    with pytest.raises(InputError, match=r"inputs of first\.query.* hold NaN"):
        calibrate(net, [torch.tensor([1, 3])], tmp_path / "g.safetensors")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused_before_the_first_batch(net, tmp_path):
    def batches():
        raise AssertionError("a batch was taken")
        yield

    with pytest.raises(InputError, match="is not a folder; make it first"):
        calibrate(net, batches(), tmp_path / "nowhere" / "grams.safetensors")
