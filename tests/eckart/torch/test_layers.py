"""A chain of factors is a Linear to those who read it, and keeps what belonged to the layer before it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from eckart import LoadError
from eckart.torch import LowRankConv1D, LowRankLinear, load_compressed
from tests.eckart.torch.factoring import close, compress, factored, write


class Reader(nn.Module):
    """A module that reads its layers instead of calling them only."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 6)

    def forward(self, x):
        x = self.a(x).to(self.a.weight.dtype)
        return functional.linear(x, self.b.weight, self.b.bias) * self.b.out_features + self.b(x)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def reader(tmp_path):
    """Load a file of factors; return the loaded model and the dense one."""
    torch.manual_seed(0)
    path, dense = compress(Reader(), tmp_path / "x.safetensors")
    return load_compressed(Reader(), path), dense


def test_a_module_that_reads_the_weight_of_its_layer_computes_what_the_product_does(reader):
    loaded, dense = reader

    assert close(loaded(X), dense(X))


def test_a_chain_has_what_a_linear_has(reader):
    loaded, dense = reader

    for chain, linear in ((loaded.a, dense.a), (loaded.b, dense.b)):
        assert (chain.in_features, chain.out_features) == (linear.in_features, linear.out_features)
        assert close(chain.weight, linear.weight)
        assert torch.equal(chain.bias, linear.bias)


def test_the_weight_has_the_factors_dtype_and_passes_gradients_to_them(reader):
    chain = reader[0].b
    chain.weight.sum().backward()

    assert all(part.weight.grad.abs().sum() > 0 for part in chain)
    assert chain.bias.grad is None
    assert chain.bfloat16().weight.dtype == torch.bfloat16


class Multiplications(TorchDispatchMode):
    """Counts the products of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def test_what_is_known_of_a_weight_is_told_without_multiplying(reader):
    chain, dense = reader[0].b, reader[1].b

    with Multiplications() as done:
        weight = chain.weight
        assert isinstance(weight, torch.Tensor)
        assert (weight.dtype, weight.device) == (torch.float32, torch.device("cpu"))
        assert (weight.shape, weight.size(0), weight.ndim, weight.numel()) == ((6, 8), 6, 2, 48)
        assert done.count == 0
        assert close(functional.linear(X, weight), functional.linear(X, dense.weight))
    assert done.count > 0


def test_a_weight_can_be_kept_copied_and_changed_as_any_tensor(reader):
    chain, dense = reader[0].b, reader[1].b
    weight = chain.weight

    assert weight.requires_grad
    assert not weight.detach().requires_grad
    for kept in (pickle.loads(pickle.dumps(weight.detach())), copy.deepcopy(weight.detach()), weight.clone()):
        assert close(kept, dense.weight)
    assert close(torch.from_numpy(weight.detach().numpy()), dense.weight)
    with torch.no_grad():
        assert close(nn.Linear(8, 6).weight.copy_(weight), dense.weight)
        assert not chain.weight.requires_grad


def copied(model):
    return copy.deepcopy(model)(X)


def pickled(model):
    return pickle.loads(pickle.dumps(model))(X)


def exported(model):
    return torch.export.export(model, (X,)).module()(X)


def traced(model):
    return torch.jit.trace(model, X)(X)


def compiled(model):
    return torch.compile(model, backend="eager", fullgraph=True)(X)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("way", [copied, pickled, exported, traced, compiled])
def test_a_loaded_model_goes_where_any_torch_model_goes(reader, way):
    loaded, dense = reader

    assert close(way(loaded), dense(X))


def test_a_loaded_model_runs_in_bfloat16(reader):
    loaded, dense = reader

    torch.testing.assert_close(
        loaded.bfloat16()(X.bfloat16()).float(),
        dense(X),
        rtol=0.05,
        atol=0.05 * float(dense(X).detach().abs().max()),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantization_of_the_factors_leaves_a_weight_to_read(reader):
    loaded, dense = reader
    quantized = torch.ao.quantization.quantize_dynamic(loaded, {nn.Linear})

    assert not isinstance(quantized.b[0], nn.Linear)
    assert quantized.b.in_features == 8
    torch.testing.assert_close(
        quantized(X), dense(X), rtol=0, atol=0.05 * float(dense(X).detach().abs().max())
    )


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2)


def transformer():
    return nn.Transformer(16, 2, 1, 1, 32, batch_first=True, dropout=0.0)


def attention():
    return nn.MultiheadAttention(16, 2, batch_first=True)


def linears(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("make", "inputs"), [(encoder, 1), (transformer, 2), (attention, 3)])
def test_torchs_own_transformers_run_in_both_modes(tmp_path, make, inputs, training):
    torch.manual_seed(0)
    names = linears(make())
    path, dense = compress(make(), tmp_path / "x.safetensors", *names)
    loaded = load_compressed(make(), path).train(training)
    given = [torch.randn(2, 5, 16)] * inputs

    with torch.no_grad():
        found, wanted = loaded(*given), dense.train(training)(*given)
    found, wanted = (y[0] if isinstance(y, tuple) else y for y in (found, wanted))
    assert close(found, wanted)
    assert all(isinstance(loaded.get_submodule(name), LowRankLinear) for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_attention_whose_projection_is_factored_can_be_quantized(tmp_path):
    torch.manual_seed(0)
    path, dense = compress(encoder(), tmp_path / "x.safetensors", *linears(encoder()))
    loaded = load_compressed(encoder(), path)
    quantized = torch.ao.quantization.quantize_dynamic(loaded.eval(), {nn.Linear})
    x = torch.randn(2, 5, 16)

    torch.testing.assert_close(quantized(x), dense.eval()(x), rtol=0, atol=0.1)


class Casting(nn.Linear):
    """A Linear that casts, as OpenAI's Whisper has it."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class Bare(nn.Module):
    """A linear layer that is no nn.Linear and always adds a bias."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Rectified(nn.Linear):
    """No linear map, though it is a Linear by its class."""

    def forward(self, x):
        return super().forward(x).relu()


class Scaled(nn.Linear):
    """A linear map by another factor."""

    scale = 2.0

    def forward(self, x):
        return super().forward(x) * self.scale


class Masking(nn.Linear):
    """A linear map in eval() only."""

    def forward(self, x):
        return functional.dropout(super().forward(x), 0.1, self.training)


class Wordy(nn.Linear):
    """A Linear that returns more than its output."""

    def forward(self, x):
        return super().forward(x), self.bias


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("kind", [Casting, Bare])
def test_a_linear_layer_of_another_class_is_made_of_that_class(tmp_path, kind):
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": kind(8, 6)})
    nn.init.normal_(net["a"].weight)
    path, dense = compress(net, tmp_path / "x.safetensors")
    chain = load_compressed(nn.ModuleDict({"a": kind(8, 6)}), path)["a"]

    assert type(chain) is LowRankLinear
    assert [type(part) for part in chain] == [kind, kind]
    assert close(chain(X), dense["a"](X))
    assert chain.state_dict().keys() == {"0.weight", "1.weight", "1.bias"}


def test_a_class_that_casts_still_casts(tmp_path):
    path, _ = compress(nn.ModuleDict({"a": Casting(8, 6)}), tmp_path / "x.safetensors")
    chain = load_compressed(nn.ModuleDict({"a": Casting(8, 6)}), path)["a"]

    assert chain(X.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [Rectified, Scaled, Masking, Wordy])
def test_a_class_that_computes_anything_else_gets_the_product(tmp_path, kind):
    torch.manual_seed(0)
    path, dense = compress(nn.ModuleDict({"a": kind(8, 6)}), tmp_path / "x.safetensors")
    net = nn.ModuleDict({"a": kind(8, 6)}).eval()

    with pytest.warns(UserWarning, match=rf"a \({kind.__name__} is no linear layer\)"):
        load_compressed(net, path)
    assert type(net["a"]) is kind
    assert close(first(net["a"](X)), first(dense.eval()["a"](X)))


class Counting(nn.Linear):
    """A Linear that counts its calls."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


def test_a_class_is_tried_out_once_for_all_its_layers(tmp_path):
    def make():
        return nn.ModuleList(Counting(8, 6 + i) for i in range(20))

    path, _ = compress(make(), tmp_path / "x.safetensors")
    Counting.calls = 0
    loaded = load_compressed(make(), path)

    assert 0 < Counting.calls < 20
    assert all(type(layer) is LowRankLinear for layer in loaded)


class ScaledEach(nn.Linear):
    """A linear map by a factor that each layer has for itself."""

    def __init__(self, inputs, outputs, scale):
        super().__init__(inputs, outputs)
        self.scale = scale

    def forward(self, x):
        return super().forward(x) * (self.scale[0] if isinstance(self.scale, list) else self.scale)


@pytest.mark.parametrize("scales", [(1.0, 2.0), (True, 2), ([1.0], [2.0])])
def test_layers_of_one_class_that_compute_differently_are_told_apart(tmp_path, scales):
    def make():
        torch.manual_seed(0)
        return nn.ModuleList(ScaledEach(8, 6, scale) for scale in scales)

    path, dense = compress(make(), tmp_path / "x.safetensors")
    model = make()
    with pytest.warns(UserWarning, match=r"got their products.*: 1 \(ScaledEach is no linear layer\)"):
        load_compressed(model, path)

    assert [type(layer) for layer in model] == [LowRankLinear, ScaledEach]
    assert all(close(layer(X), wanted(X)) for layer, wanted in zip(model, dense, strict=True))


def test_trying_a_class_out_leaves_the_random_numbers_as_they_were(tmp_path):
    path, _ = compress(nn.ModuleDict({"a": Masking(8, 6)}), tmp_path / "x.safetensors")
    net = nn.ModuleDict({"a": Masking(8, 6)})
    before = torch.random.get_rng_state()

    with pytest.warns(UserWarning, match="Masking is no linear"):
        load_compressed(net, path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_hooks_of_the_layer_are_called_and_can_still_be_removed(tmp_path):
    path, _ = compress(Reader(), tmp_path / "x.safetensors")
    model, calls = Reader(), []
    handles = [
        model.a.register_forward_hook(lambda *_: calls.append("forward")),
        model.a.register_forward_pre_hook(lambda *_: calls.append("before")),
        model.a.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    load_compressed(model, path)

    x = X.clone().requires_grad_()
    model(x).sum().backward()
    assert calls == ["before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert len(calls) == 3


def test_attributes_mode_and_gradients_carry_over(tmp_path):
    path, _ = compress(Reader(), tmp_path / "x.safetensors")
    model = Reader().eval()
    model.a.note = "mine"
    model.a.weight.requires_grad_(False)
    model.b.bias.requires_grad_(False)
    bias = model.a.bias
    load_compressed(model, path)

    assert model.a.note == "mine"
    assert model.a.bias is bias
    assert not model.a.training
    assert [p.requires_grad for p in model.a.parameters()] == [False, False, True]
    assert [p.requires_grad for p in model.b.parameters()] == [True, True, False]


def test_a_layer_with_hooks_on_its_state_or_another_forward_gets_the_product(tmp_path):
    path, dense = compress(Reader(), tmp_path / "x.safetensors")
    model = Reader()
    model.a.register_state_dict_post_hook(lambda *_: None)
    model.b.forward = model.b.forward

    with pytest.warns(UserWarning, match=r"a \(Linear has been changed.*b \(Linear has been changed"):
        load_compressed(model, path)
    assert close(model(X), dense(X))


class Twice(nn.Module):
    """One layer under two names, and in a list that torch does not know."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a
        self.known = [self.a]

    def forward(self, x):
        return self.known[0](self.b(self.a(x)))


@pytest.mark.parametrize("stored", ["once", "twice"])
def test_a_shared_module_is_factored_at_all_its_names(tmp_path, stored):
    torch.manual_seed(0)
    state = Twice().state_dict()
    original = Twice()
    original.load_state_dict(state)
    names = ["a"] if stored == "once" else ["a", "b"]
    kept = {name: tensor for name, tensor in state.items() if name[0] in names}
    path, dense = compress(original, tmp_path / "x.safetensors", *names, state=kept)
    loaded = load_compressed(Twice(), path)

    assert loaded.a is loaded.b is loaded.known[0]
    assert type(loaded.a) is LowRankLinear
    assert close(loaded(X), dense(X))


def test_a_shared_module_of_which_the_file_holds_one_name_whole_gets_that(tmp_path):
    original = Twice()
    path, _ = compress(original, tmp_path / "x.safetensors", "a")
    loaded = Twice()

    with pytest.warns(UserWarning, match=r"a \(whole in the file as b.weight\)"):
        load_compressed(loaded, path)
    assert torch.equal(loaded.a.weight, original.a.weight)


class Tied(nn.Module):
    """A head whose bias is a parameter of the model too, as BERT's is."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(8, 6)
        self.head.bias = self.bias


@pytest.mark.parametrize("left_out", [None, "bias", "head.1.bias"])
def test_a_tied_bias_stays_tied_and_need_be_stored_once_only(tmp_path, left_out):
    state, layers = factored(
        Tied().state_dict() | {"bias": torch.ones(6), "head.bias": torch.ones(6)}, "head"
    )
    state = {name: tensor for name, tensor in state.items() if name != left_out}
    loaded = load_compressed(Tied(), write(tmp_path / "x.safetensors", state, layers))

    assert type(loaded.head) is LowRankLinear
    assert loaded.head[1].bias is loaded.head.bias is loaded.bias
    assert torch.equal(loaded.bias, torch.ones(6))


def test_layers_of_two_axes_and_bags_get_the_product_in_one_warning(tmp_path):
    def make():
        return nn.ModuleDict(
            {"norm": nn.LayerNorm([8, 6]), "bag": nn.EmbeddingBag(12, 8), "fc": nn.Linear(8, 6)}
        )

    torch.manual_seed(0)
    net = make()
    nn.init.normal_(net["norm"].weight)
    state, layers = factored(net.state_dict(), "norm", "bag", "fc")
    state["norm.bias"] = state.pop("norm.1.bias")
    loaded = make()

    with pytest.warns(UserWarning, match="norm .*bag ") as warned:
        load_compressed(loaded, write(tmp_path / "x.safetensors", state, layers))
    assert len(warned) == 1
    assert close(loaded["norm"].weight, state["norm.1.weight"] @ state["norm.0.weight"])
    assert close(loaded["bag"].weight, state["bag.1.weight"] @ state["bag.0.weight"])
    assert type(loaded["fc"]) is LowRankLinear


def test_what_cannot_be_factored_is_refused_on_demand_as_a_ready_exclude(tmp_path):
    net = nn.ModuleDict({"a": nn.Embedding(9, 8), "b": nn.EmbeddingBag(12, 8), "c": nn.Linear(8, 6)})
    path, _ = compress(net, tmp_path / "x.safetensors")

    with pytest.raises(LoadError, match=r'"exclude": \["a", "b"\]'):
        load_compressed(net, path, dequantize=False)
    assert type(net["c"]) is nn.Linear


def test_everything_is_multiplied_out_on_demand(tmp_path):
    torch.manual_seed(0)
    path, dense = compress(Reader(), tmp_path / "x.safetensors")
    loaded = load_compressed(Reader(), path, dequantize=True)

    assert type(loaded.a) is type(loaded.b) is nn.Linear
    assert close(loaded(X), dense(X))


def test_a_low_rank_layer_without_sizes_of_its_own_is_a_conv1d(tmp_path):
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    net = nn.ModuleDict({"a": Conv1D(6, 8)})
    path, dense = compress(net, tmp_path / "x.safetensors", transposed=("a",))
    chain = load_compressed(nn.ModuleDict({"a": Conv1D(6, 8)}), path)["a"]

    assert type(chain) is LowRankConv1D
    assert (chain.nx, chain.nf) == (8, 6)
    assert close(chain.weight, dense["a"].weight)
    assert close(chain(X), dense["a"](X))
    assert copy.deepcopy(chain).state_dict().keys() == {"0.weight", "1.weight", "1.bias"}


@pytest.mark.parametrize("turned", [True, False])
def test_a_layer_that_was_factored_the_other_way_round_gets_the_product(tmp_path, turned):
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)

    def make():
        return nn.ModuleDict({"a": nn.Linear(8, 6) if turned else Conv1D(6, 8)})

    path, dense = compress(make(), tmp_path / "x.safetensors", transposed=("a",) if turned else ())
    net = make()

    with pytest.warns(UserWarning, match="stores its weight the other way round"):
        load_compressed(net, path)
    assert close(net["a"](X), dense["a"](X))
