"""Loading into a model whose layers are factored already."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from eckart import LoadError
from eckart.torch import LowRankConv1D, LowRankLinear, load_compressed
from tests.eckart.torch.factoring import close, compress

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(7))


class Casting(nn.Linear):
    """A Linear that casts."""

    def forward(self, x):
        return functional.linear(x, self.weight.to(x.dtype), self.bias)


def net(kind=nn.Linear):
    torch.manual_seed(0)
    return nn.ModuleDict({"a": kind(8, 6), "norm": nn.LayerNorm(6)})


def conv1d(inputs, outputs):
    return Conv1D(outputs, inputs)


@pytest.fixture
def model(tmp_path):
    """Load a file, of rank 2, for the first time."""
    return load_compressed(net(), compress(net(), tmp_path / "first.safetensors")[0])


def without_metadata(path):
    save_file(load_file(path), path)
    return path


@pytest.mark.parametrize("prepare", [lambda path: path, without_metadata])
def test_a_file_goes_into_the_factors_that_are_there(model, tmp_path, prepare):
    parameters = dict(model.named_parameters())
    other = nn.ModuleDict({"a": nn.Linear(8, 6), "norm": nn.LayerNorm(6)})
    path, dense = compress(other, tmp_path / "second.safetensors")
    assert load_compressed(model, prepare(path)) is model

    assert close(model["a"](X), dense["a"](X))
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize("prepare", [lambda path: path, without_metadata])
@pytest.mark.parametrize("options", [{"rank": 3}, {"factors": 3}])
@pytest.mark.parametrize("kind", [nn.Linear, Casting, conv1d])
def test_other_ranks_and_numbers_of_factors_take_their_place(tmp_path, kind, options, prepare):
    turned = ("a",) if kind is conv1d else ()
    first, _ = compress(net(kind), tmp_path / "first.safetensors", transposed=turned)
    model, calls = load_compressed(net(kind), first), []
    model["a"].register_forward_hook(lambda *_: calls.append("forward"))
    model["a"].note = "mine"
    bias, part = model["a"].bias, type(model["a"][0])
    other = nn.ModuleDict({"a": kind(8, 6), "norm": nn.LayerNorm(6)})
    path, dense = compress(other, tmp_path / "second.safetensors", transposed=turned, **options)
    load_compressed(model.half().float(), prepare(path))

    chain = model["a"]
    assert type(chain) is (LowRankConv1D if turned else LowRankLinear)
    assert [type(one) for one in chain] == [part] * options.get("factors", 2)
    assert set(chain.sizes[1:-1]) == {options.get("rank", 2)}
    assert close(chain(X), dense["a"](X))
    assert chain.bias is bias
    assert calls == ["forward"]
    assert chain.note == "mine"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_prefix_is_found_as_for_a_dense_model(model, tmp_path):
    other = nn.ModuleDict({"a": nn.Linear(8, 6), "norm": nn.LayerNorm(6)})
    path, dense = compress(other, tmp_path / "second.safetensors", rank=3)
    wrapped = nn.ModuleDict({"inner": model})
    load_compressed(wrapped, path)

    assert close(wrapped["inner"]["a"](X), dense["a"](X))


def test_a_bias_that_is_tied_stays_tied_to_new_factors(tmp_path):
    def make():
        torch.manual_seed(0)
        made = nn.ModuleDict({"a": nn.Linear(8, 6), "b": nn.Linear(8, 6)})
        made["b"].bias = made["a"].bias
        return made

    first, _ = compress(make(), tmp_path / "first.safetensors")
    second, dense = compress(make(), tmp_path / "second.safetensors", rank=3)
    model = load_compressed(load_compressed(make(), first), second)

    assert model["a"].bias is model["b"].bias
    assert close(model["b"](X), dense["b"](X))


@pytest.mark.parametrize("counts", [(2, 3), (3, 2), (2, 2)])
def test_a_shared_module_takes_other_factors_under_both_names(tmp_path, counts):
    def make(seed):
        torch.manual_seed(seed)
        layer = nn.Linear(8, 6)
        return nn.ModuleDict({"a": layer, "b": layer})

    first, _ = compress(make(0), tmp_path / "first.safetensors", factors=counts[0])
    second, dense = compress(make(1), tmp_path / "second.safetensors", factors=counts[1], rank=3)
    model = load_compressed(load_compressed(make(0), first), second)

    assert model["a"] is model["b"]
    assert close(model["a"](X), dense["a"](X))


def refused(model, path, said, **options):
    """Whether loading says this and changes nothing."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(LoadError, match=said):
        load_compressed(model, path, **options)
    assert model.state_dict().keys() == before.keys()
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


ALREADY = "these layers are compressed in the model already, so that they cannot take a whole weight: a "


@pytest.mark.parametrize("strict", [True, False])
def test_a_dense_file_is_refused_with_the_way_out(model, tmp_path, strict):
    save_file(net().state_dict(), tmp_path / "dense.safetensors")
    said = f"{ALREADY[:-2]}a.weight is whole in the checkpoint. Build the model anew"
    assert refused(model, tmp_path / "dense.safetensors", said, strict=strict)


def test_products_are_refused_too(model, tmp_path):
    path = tmp_path / "first.safetensors"
    assert refused(model, path, f"{ALREADY}is multiplied out as asked", dequantize=True)


def test_the_other_orientation_is_refused(tmp_path):
    first, _ = compress(net(), tmp_path / "first.safetensors")
    second, _ = compress(net(), tmp_path / "second.safetensors", transposed=("a",))
    assert refused(load_compressed(net(), first), second, "a LowRankLinear stores its weight the other way")


def test_a_layer_of_another_shape_is_refused(model, tmp_path):
    other, _ = compress(
        nn.ModuleDict({"a": nn.Linear(9, 6), "norm": nn.LayerNorm(6)}), tmp_path / "other.safetensors"
    )
    assert refused(model, other, r"a is a LowRankLinear of shape \[6, 8\] in the model, but of \[6, 9\]")


def test_factors_with_adapters_on_them_are_refused(model, tmp_path):
    path = tmp_path / "first.safetensors"
    get_peft_model(model, LoraConfig(target_modules=["a.0", "a.1"], r=2))
    assert refused(model, path, "a LowRankLinear no longer holds plain factors")


def test_factors_that_another_module_has_too_are_refused(model, tmp_path):
    model["other"] = nn.Linear(8, 2, bias=False)
    model["other"].weight = model["a"][0].weight
    path = tmp_path / "first.safetensors"
    assert refused(model, path, "a tied to other.weight")


def test_what_the_file_lacks_of_the_factors_is_named(model, tmp_path):
    save_file({"norm.weight": torch.ones(6), "norm.bias": torch.ones(6)}, tmp_path / "norm.safetensors")
    assert refused(model, tmp_path / "norm.safetensors", "lacks what the model needs: a.0.weight, a.1.weight")
