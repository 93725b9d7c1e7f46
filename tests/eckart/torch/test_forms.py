"""eckart/torch: layers of every form compute what numpy does, and are saved as they were."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from eckart.torch import (
    LowRankConv1D,
    LowRankLinear,
    PivotConv1D,
    PivotLinear,
    QuantizedConv1D,
    QuantizedLinear,
    expand,
    load_compressed,
    save_compressed,
)
from tests.eckart.torch.factoring import write
from tests.eckart.torch.storing import BITS, FORMS, Stored

INPUTS, OUTPUTS = 64, 40
X = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(3))
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
KINDS = {
    "pivot": (PivotLinear, PivotConv1D),
    "svd": (LowRankLinear, LowRankConv1D),
    "cur": (LowRankLinear, LowRankConv1D),
}


def net(*, bias=True, transposed=False):
    layer = Conv1D(OUTPUTS, INPUTS) if transposed else nn.Linear(INPUTS, OUTPUTS, bias=bias)
    return nn.ModuleDict({"a": layer})


def stored_file(path, method, codec=None, *, bias=True, **options):
    """Write a file of one layer; return it, and the layer."""
    layer = Stored("a", method, codec, **options)
    state = dict(layer.tensors)
    if bias:
        state[layer.bias] = torch.linspace(-1, 1, OUTPUTS).to(layer.dtype)
    return write(path, state, {"a": layer.entry}), layer


@pytest.fixture(params=FORMS, ids=lambda form: "-".join(filter(None, form)))
def form(request):
    return request.param


def near(found, wanted, dtype=torch.float32):
    wanted = wanted.double()
    found = found.detach().double()
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= TOLERANCE[dtype] * float(wanted.abs().max())


def expected(layer, x, *, bias):
    """Return what the layer computes, by its weight in float64."""
    y = x.double() @ torch.from_numpy(layer.weight).mT
    return y + torch.linspace(-1, 1, OUTPUTS).to(layer.dtype).double() if bias else y


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("transposed", "bias"), [(False, True), (False, False), (True, True)])
def test_a_layer_of_each_form_computes_what_its_file_stands_for(form, transposed, bias, dtype, tmp_path):
    path, layer = stored_file(
        tmp_path / "x.safetensors", *form, bias=bias, transposed=transposed, dtype=dtype
    )
    loaded = load_compressed(net(bias=bias, transposed=transposed).to(dtype), path)["a"]

    assert type(loaded) is KINDS.get(form[0], (QuantizedLinear, QuantizedConv1D))[transposed]
    x = X.to(dtype)
    near(loaded(x), expected(layer, x, bias=bias), dtype)
    near(loaded(x[None])[0], expected(layer, x, bias=bias), dtype)
    near(loaded.weight.detach().clone(), layer.dense, dtype)
    assert loaded.weight.dtype == loaded(x).dtype == dtype
    assert (loaded.bias is None) is not bias
    assert (loaded.nx, loaded.nf) == (INPUTS, OUTPUTS) if transposed else True
    assert transposed or (loaded.in_features, loaded.out_features) == (INPUTS, OUTPUTS)


def test_a_layer_holds_integers_as_buffers_and_trains_the_rest(form, tmp_path):
    path, layer = stored_file(tmp_path / "x.safetensors", *form)
    loaded = load_compressed(net(), path)["a"]
    state, parameters = loaded.state_dict(), dict(loaded.named_parameters())

    assert {f"a.{name}" for name in state} == load_file(path).keys()
    for name, tensor in layer.tensors.items():
        own = state[name.removeprefix("a.")]
        assert own.dtype == tensor.dtype
        assert torch.equal(own, tensor)
        is_trained = tensor.is_floating_point() and not name.endswith("_scale")
        assert (name.removeprefix("a.") in parameters) is is_trained
    loaded(X).square().sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())


@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_saved_is_what_was_loaded(form, transposed, tmp_path):
    path, layer = stored_file(tmp_path / "x.safetensors", *form, transposed=transposed)
    model = load_compressed(net(transposed=transposed), path)
    save_compressed(model, tmp_path / "again.safetensors")

    before, after = load_file(path), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(tensor.dtype == after[name].dtype for name, tensor in before.items())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    again = load_compressed(net(transposed=transposed), tmp_path / "again.safetensors")
    assert type(again["a"]) is type(model["a"])
    assert torch.equal(again["a"](X), model["a"](X))
    assert again["a"].method == layer.entry["method"]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_file_expands_to_the_dense_weight(form, transposed, dtype, tmp_path):
    path, layer = stored_file(tmp_path / "x.safetensors", *form, transposed=transposed, dtype=dtype)
    (out,) = expand(path, tmp_path / "dense.safetensors")
    found = load_file(out)

    assert found.keys() == {"a.weight", "a.bias"}
    assert found["a.weight"].dtype == dtype
    near(found["a.weight"], layer.dense, dtype)
    model = load_compressed(net(transposed=transposed).to(dtype), path, dequantize=True)
    assert type(model["a"]) in {nn.Linear, Conv1D}
    assert torch.equal(model["a"].weight, found["a.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_changes_scales_and_factors_and_no_integers(form, dtype, tmp_path):
    path, layer = stored_file(tmp_path / "x.safetensors", *form)
    loaded = load_compressed(net(), path)["a"].to(dtype)

    for name, tensor in loaded.state_dict().items():
        before = layer.tensors.get(f"a.{name}", torch.empty(0))
        assert tensor.dtype == (dtype if before.is_floating_point() else before.dtype)
    x = X.to(dtype)
    near(loaded(x), expected(layer, x, bias=True), dtype if dtype in TOLERANCE else torch.float32)
    assert loaded(x).dtype == dtype


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


def exported(layer):
    return torch.export.export(nn.Sequential(layer), (X,)).module()


def traced(layer):
    return torch.jit.trace(layer, X)


def compiled(layer):
    torch.compiler.reset()
    return torch.compile(layer, backend="eager", fullgraph=True)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", [copy.deepcopy, pickled, exported, traced, compiled])
@pytest.mark.parametrize(
    "form", [("svd", "int8"), ("pivot", None), ("int8", None), ("int4", None), ("int3+svd", "int8")]
)
def test_a_layer_survives_the_ways_of_torch(form, way, tmp_path):
    if way is traced and form[0].startswith(("int4", "int3")):
        pytest.skip("torch.jit.trace has no views of other dtypes")
    path, _ = stored_file(tmp_path / "x.safetensors", *form)
    loaded = load_compressed(net(), path)["a"]

    near(way(loaded)(X), loaded(X).detach())


def test_a_weight_that_is_read_only_for_its_dtype_is_not_computed(form, tmp_path, monkeypatch):
    path, layer = stored_file(tmp_path / "x.safetensors", *form)
    loaded = load_compressed(net(), path)["a"]

    def refuse(*_):
        pytest.fail("the weight was computed")

    with monkeypatch.context() as patched:
        for name in ("eckart.torch.layers.product", "eckart.torch.product.Product.__torch_dispatch__"):
            patched.setattr(name, refuse)
        weight = loaded.weight
        assert (weight.dtype, tuple(weight.shape)) == (torch.float32, (OUTPUTS, INPUTS))
    near(functional.linear(X, weight), expected(layer, X, bias=False))


@pytest.mark.parametrize("other", [("svd", None), ("int4+svd", None), ("pivot", "int8"), ("int8", None)])
def test_a_model_takes_a_file_of_another_form(form, other, tmp_path):
    first, _ = stored_file(tmp_path / "first.safetensors", *form)
    second, layer = stored_file(tmp_path / "second.safetensors", *other)
    model = load_compressed(net(), first)
    bias = model["a"].bias
    load_compressed(model, second)

    near(model["a"](X), expected(layer, X, bias=True))
    assert model["a"].bias is bias
    assert model["a"].state_dict().keys() == {name.removeprefix("a.") for name in load_file(second)}


def test_a_model_takes_a_file_of_its_own_form_in_its_own_tensors(form, tmp_path):
    first, _ = stored_file(tmp_path / "first.safetensors", *form)
    model = load_compressed(net(), first)
    before = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for tensor in before.values():
            tensor.zero_()
    load_compressed(model, first)

    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(first).items())


@pytest.mark.parametrize("method", BITS)
def test_columns_that_fill_no_whole_word_are_read(method, tmp_path):
    shape = (7, 96)
    path, layer = stored_file(tmp_path / "x.safetensors", method, bias=False, shape=shape)
    loaded = load_compressed(nn.ModuleDict({"a": nn.Linear(96, 7, bias=False)}), path)

    near(loaded["a"].weight.detach().clone(), layer.dense)


def test_three_bits_are_also_read_as_ten_in_a_word(tmp_path):
    path, layer = stored_file(tmp_path / "x.safetensors", "int3", bias=False)
    scale = layer.tensors["a.weight_scale"].double().repeat_interleave(32, 1)
    integers = torch.round(layer.dense / scale).long() + 4
    padded = functional.pad(integers, (0, 6)).view(OUTPUTS, 7, 10)
    words = (padded << torch.arange(0, 30, 3)).sum(-1).to(torch.int32)
    write(path, layer.tensors | {"a.weight_packed": words}, {"a": layer.entry})

    near(load_compressed(net(bias=False), path)["a"](X), expected(layer, X, bias=False))
