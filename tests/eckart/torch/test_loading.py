"""Loading compressed checkpoints into real torch modules."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaModel

from eckart import InputError, LoadError
from eckart.torch import LowRankConv1D, LowRankLinear, load_compressed
from tests.eckart.torch.factoring import RANK, factored, write


class Net(nn.Module):
    """An embedding, two Linears inside a block, a norm and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.block = nn.ModuleDict({"up": nn.Linear(6, 9), "down": nn.Linear(9, 6, bias=False)})
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.norm(x + self.block["down"](self.block["up"](x))))


class Conv1D(nn.Module):
    """A layer that stores its weight transposed, as GPT-2's do."""

    def __init__(self, outputs=9, inputs=6):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.ones(inputs, outputs))
        self.bias = nn.Parameter(torch.ones(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Turned(nn.Module):
    """A model of one such layer."""

    def __init__(self):
        super().__init__()
        self.mlp = Conv1D()

    def forward(self, x):
        return self.mlp(x)


def turned_file(path, **changes):
    """Write a file of the factors of such a layer."""
    generator = torch.Generator().manual_seed(0)
    first, second, bias = (torch.randn(*size, generator=generator) for size in ((6, 2), (2, 9), (9,)))
    state = {"mlp.0.weight": first, "mlp.1.weight": second, "mlp.1.bias": bias}
    entry = {"method": "svd", "rank": 2, "shape": [6, 9], "dtype": "F32", "transposed": True}
    return write(path, state, {"mlp": entry | changes}), state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_conv1d_gives_way_to_a_chain_of_its_own_kind(tmp_path, dtype):
    path, state = turned_file(tmp_path / "x.safetensors")
    model = load_compressed(Turned().to(dtype).eval(), path)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).to(dtype)

    first, second = (state[f"mlp.{i}.weight"].to(dtype) for i in (0, 1))
    torch.testing.assert_close(model(x), x @ first @ second + state["mlp.1.bias"].to(dtype))
    assert type(model.mlp) is LowRankConv1D
    assert [type(part) for part in model.mlp] == [Conv1D, Conv1D]
    assert [part.nf for part in model.mlp] == [2, 9]
    assert model.state_dict().keys() == state.keys()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("changes", "model", "words"),
    [
        ({"transposed": False}, Turned(), "factors of mlp have the shapes"),
        ({}, nn.ModuleDict({"mlp": nn.Linear(6, 9)}), r"mlp.weight is \[9, 6\] in the model, but \[6, 9\]"),
        (
            {},
            nn.ModuleDict({"mlp": Conv1D(6, 9)}),
            r"a Conv1D of shape \[9, 6\] in the model, but of \[6, 9\]",
        ),
        ({"rank": 3}, Turned(), "factors of mlp have the shapes"),
    ],
)
def test_a_transposed_layer_that_does_not_fit_is_refused(tmp_path, changes, model, words):
    path, _ = turned_file(tmp_path / "x.safetensors", **changes)
    with pytest.raises(LoadError, match=words):
        load_compressed(model, path)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def dense(net, *names, rank=RANK):
    """Truncate these layers in place, as the factors do."""
    for name in names:
        weight = net.get_submodule(name).weight
        u, s, vh = torch.linalg.svd(weight.data, full_matrices=False)
        weight.data = (u * s)[:, :rank] @ vh[:rank]
    return net


LAYERS = ("block.up", "block.down", "head")
IDS = torch.tensor([1, 5, 10])


@pytest.mark.parametrize("factors", [2, 3])
def test_the_loaded_model_computes_what_the_truncated_one_does(net, tmp_path, factors):
    path = write(tmp_path / "x.safetensors", *factored(net.state_dict(), *LAYERS, factors=factors))
    loaded = load_compressed(Net().eval(), path)

    assert torch.allclose(loaded(IDS), dense(net, *LAYERS)(IDS), atol=1e-6)
    for name in LAYERS:
        chain = loaded.get_submodule(name)
        assert type(chain) is LowRankLinear
        assert [type(part) for part in chain] == [nn.Linear] * factors


def test_a_bias_stands_on_the_last_factor_only_and_none_is_invented(net, tmp_path):
    path = write(tmp_path / "x.safetensors", *factored(net.state_dict(), *LAYERS, factors=3))
    loaded = load_compressed(Net(), path)

    for name, has_bias in zip(LAYERS, (True, False, True), strict=True):
        biases = [part.bias is not None for part in loaded.get_submodule(name)]
        assert biases == [False, False, has_bias]


def test_the_model_is_changed_in_place_and_returned(net, tmp_path):
    path = write(tmp_path / "x.safetensors", *factored(net.state_dict(), "head"))
    model = Net()

    assert load_compressed(model, str(path)) is model
    assert type(model.block["up"]) is nn.Linear


def test_device_dtype_mode_and_gradients_stay_the_models(net, tmp_path):
    path = write(tmp_path / "x.safetensors", *factored(net.state_dict(), "head", dtype=torch.bfloat16))
    model = Net().double().eval()
    model.head.requires_grad_(False)
    loaded = load_compressed(model, path)

    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.head.parameters())
    assert all(parameter.requires_grad for parameter in loaded.block.parameters())


def test_a_loaded_model_saves_what_it_was_loaded_from(net, tmp_path):
    state, layers = factored(net.state_dict(), *LAYERS)
    loaded = load_compressed(Net(), write(tmp_path / "x.safetensors", state, layers)).state_dict()

    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("given", ["directory", "index"])
def test_each_shard_brings_its_own_layers(net, tmp_path, given):
    state, layers = factored(net.state_dict(), *LAYERS)
    index = {}
    for number in (1, 2):
        file = f"x-0000{number}-of-00002.safetensors"
        part = {name: t for name, t in state.items() if name.startswith("block") == (number == 1)}
        write(
            tmp_path / file, part, {n: x for n, x in layers.items() if n.startswith("block") == (number == 1)}
        )
        index |= dict.fromkeys(part, file)
    path = tmp_path / "x.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    loaded = load_compressed(Net().eval(), path if given == "index" else tmp_path)

    assert torch.allclose(loaded(IDS), dense(net, *LAYERS)(IDS), atol=1e-6)


@pytest.mark.parametrize(
    "index",
    [None, "eckart.safetensors.index.json", "x.safetensors.index.json", "x.safetensors.index.fp16.json"],
)
def test_a_folder_is_found_by_any_of_its_entry_files(net, tmp_path, index):
    name = "x-00001-of-00001.safetensors" if index else "eckart.safetensors"
    state, layers = factored(net.state_dict(), *LAYERS)
    write(tmp_path / name, state, layers)
    (tmp_path / "config.json").write_text("{}")
    if index:
        (tmp_path / index).write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))
    loaded = load_compressed(Net().eval(), tmp_path)

    assert torch.allclose(loaded(IDS), dense(net, *LAYERS)(IDS), atol=1e-6)


@pytest.mark.parametrize("manifest", ["empty", "dense"])
def test_a_file_without_factors_loads_plainly(net, tmp_path, manifest):
    entry = factored(net.state_dict(), "head")[1] if manifest == "dense" else {}
    path = write(tmp_path / "x.safetensors", net.state_dict(), entry)
    loaded = load_compressed(Net().eval(), path)

    assert type(loaded.head) is nn.Linear
    assert torch.equal(loaded(IDS), net(IDS))


def test_a_file_that_eckart_may_not_have_made_loads_with_a_warning(net, tmp_path):
    save_file(net.state_dict(), tmp_path / "x.safetensors")
    model = Net().eval()
    with pytest.warns(UserWarning, match=r"x\.safetensors holds no factored layers") as told:
        loaded = load_compressed(model, tmp_path / "x.safetensors")

    assert told[0].filename == __file__

    assert type(loaded.head) is nn.Linear
    assert torch.equal(loaded(IDS), net(IDS))


class Tied(Net):
    """A head that is the embedding."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_weight_that_is_stored_once_loads_and_stays_tied(tmp_path):
    original = Tied().eval()
    state = original.state_dict()
    del state["head.weight"]
    loaded = load_compressed(Tied().eval(), write(tmp_path / "x.safetensors", *factored(state, "block.up")))

    assert loaded.head.weight is loaded.embed.weight
    assert torch.allclose(loaded(IDS), dense(original, "block.up")(IDS), atol=1e-6)


def test_a_tied_weight_that_is_whole_in_the_file_is_not_replaced_by_a_product(tmp_path):
    original = Tied().eval()
    path = write(tmp_path / "x.safetensors", *factored(original.state_dict(), "head"))

    with pytest.warns(UserWarning, match=r"head \(tied to embed.weight\)"):
        loaded = load_compressed(Tied().eval(), path)

    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded.embed.weight, original.embed.weight)


def test_a_tied_weight_that_the_file_holds_only_as_factors_is_their_product(tmp_path):
    original = Tied().eval()
    state, layers = factored(original.state_dict(), "head")
    del state["embed.weight"]

    with pytest.warns(UserWarning, match=r"head \(tied to embed.weight\)"):
        loaded = load_compressed(Tied().eval(), write(tmp_path / "x.safetensors", state, layers))

    assert loaded.head.weight is loaded.embed.weight
    torch.testing.assert_close(loaded.embed.weight.data, state["head.1.weight"] @ state["head.0.weight"])


def without(net):
    del net.head


def wider(net):
    net.head = nn.Linear(6, 5)


def narrower_norm(net):
    net.norm = nn.LayerNorm(5)


def conv(net):
    net.head = Conv1D()


def attention(net):
    net.head = nn.MultiheadAttention(6, 2).out_proj


def bilinear(net):
    net.head = nn.Bilinear(1, 6, 4)


def biasless(net):
    net.head = nn.Linear(6, 4, bias=False)


def more(net):
    net.more = nn.Linear(2, 2)


def buffer(net):
    net.register_buffer("counter", torch.zeros(1))


def meta(net):
    net.register_buffer("positions", torch.arange(4), persistent=False)
    net.to("meta")


def half_meta(net):
    net.norm.to("meta")
    net.norm.scale = torch.ones(6, device="meta")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without, r"factors of 'head', but the model has no such module"),
        (wider, r"head is a Linear of shape \[5, 6\] in the model, but of \[4, 6\]"),
        (narrower_norm, r"norm.bias is \[5\] in the model, but \[6\]"),
        (conv, r"head.weight is \[6, 9\] in the model, but \[4, 6\]"),
        (attention, r"head is a NonDynamicallyQuantizableLinear of shape \[6, 6\] in the model"),
        (bilinear, r"head.weight is \[4, 1, 6\] in the model, but \[4, 6\]"),
        (biasless, r"no place for what the checkpoint holds: head.1.bias"),
        (more, r"lacks what the model needs: more.weight, more.bias"),
        (buffer, r"lacks what the model needs: counter"),
        (meta, r"meta device, and the file does not hold positions,"),
        (half_meta, r"meta device, and the file does not hold norm.scale,"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_model_that_does_not_fit_is_refused_and_left_as_it_was(net, tmp_path, change, said):
    path = write(tmp_path / "x.safetensors", *factored(net.state_dict(), *LAYERS))
    model = Net()
    change(model)
    before, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())

    with pytest.raises(LoadError, match=said):
        load_compressed(model, path)

    assert dict(model.named_modules()) == before
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state if not state[name].is_meta)


class Shared(Net):
    """The same with a layer under two names, another kind of layer, and a buffer that it saves."""

    def __init__(self):
        super().__init__()
        self.turned = Conv1D(6, 6)
        self.again = self.block["up"]
        self.twin = nn.Linear(6, 9)
        self.twin.bias = self.block["up"].bias
        self.average = nn.BatchNorm1d(6)

    def forward(self, ids):
        x = self.turned(self.embed(ids)[:, 0])
        return self.average(x + self.block["down"](self.again(x) + self.twin(x)))


@pytest.mark.parametrize("parts", [None, ("turned", "average")], ids=["whole", "in part"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_on_the_meta_device_loads_as_one_in_memory(tmp_path, parts, dtype):
    torch.manual_seed(3)
    saved = Shared()
    saved.average(torch.randn(8, 6))
    state = {name: value for name, value in saved.state_dict().items() if not name.startswith("again")}
    del state["twin.bias"]
    path = write(
        tmp_path / "x.safetensors", *factored(state, "block.up", "head", "turned", transposed=["turned"])
    )
    wanted = load_compressed(Shared().to(dtype).eval(), path)
    with torch.device("cpu" if parts else "meta"):
        model = Shared().to(dtype).eval()
    for part in parts or ():
        model.get_submodule(part).to("meta")
    model.embed.weight.requires_grad_(False)
    model = load_compressed(model, path)

    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    found = model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in wanted.state_dict().items())
    assert found["turned.0.weight"].dtype == dtype
    ids = torch.arange(4).reshape(4, 1)
    assert torch.equal(model(ids), wanted(ids))
    assert model.again is model.block["up"]
    assert model.twin.bias is model.block["up"].bias
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["embed.weight"]


def test_a_tensor_that_the_file_lacks_is_not_left_arbitrary_on_the_meta_device(net, tmp_path):
    state, layers = factored(net.state_dict(), *LAYERS)
    del state["norm.bias"]
    path = write(tmp_path / "x.safetensors", state, layers)
    with torch.device("meta"):
        model = Net()
    with pytest.raises(LoadError, match=r"lacks what the model needs: norm.bias"):
        load_compressed(model, path)
    with pytest.raises(LoadError, match=r"meta device, and the file does not hold norm.bias, .* outside of"):
        load_compressed(model, path, strict=False)
    model._keys_to_ignore_on_load_missing = ["bias"]
    with pytest.raises(LoadError, match=r"does not hold norm.bias"):
        load_compressed(model, path)


def test_rotary_frequencies_are_never_arbitrary(tmp_path):
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    path = write(
        tmp_path / "x.safetensors", *factored(LlamaModel(config).state_dict(), "layers.0.mlp.up_proj")
    )
    with torch.device("meta"):
        model = LlamaModel(config)
    with pytest.raises(LoadError, match=r"rotary_emb.inv_freq.* outside of .*or let from_pretrained"):
        load_compressed(model, path)


def lost_factor(state, _):
    del state["head.1.weight"]


def no_factor(state, _):
    del state["head.0.weight"], state["head.1.weight"]


def gap(state, _):
    state["head.2.weight"] = state.pop("head.1.weight")


def wrong_factor(state, _):
    state["head.0.weight"] = torch.ones(RANK, 7)


def flat_factor(state, _):
    state["head.0.weight"] = torch.ones(RANK)


def swapped_factors(state, _):
    state["head.0.weight"], state["head.1.weight"] = state["head.1.weight"], state["head.0.weight"]


def other_rank(_, layers):
    layers["head"]["rank"] = 3


def extra(state, _):
    state["stranger"] = torch.ones(1)


def four(state, _):
    state["head.2.weight"] = torch.ones(RANK, RANK)
    state["head.3.weight"] = torch.ones(4, RANK)


def nameless(state, layers):
    layers[""] = layers["head"]


def inside(state, layers):
    layers["head.weight"] = layers["head"]


def lost_bias(state, _):
    del state["head.1.bias"]


def first_bias(state, _):
    state["head.0.bias"] = torch.ones(RANK)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lost_factor, "the factors of head have the shapes"),
        (no_factor, r"the factors of head have the shapes \[\]"),
        (gap, "the factors of head have the shapes"),
        (wrong_factor, "the factors of head have the shapes"),
        (flat_factor, "the factors of head have the shapes"),
        (swapped_factors, "the factors of head have the shapes"),
        (other_rank, r"do not make up \[4, 6\] at rank 3"),
        (four, "the factors of head have the shapes"),
        (extra, "holds: stranger"),
        (nameless, "the factors of  have the shapes"),
        (inside, "the factors of head.weight have the shapes"),
        (lost_bias, "needs: head.1.bias"),
        (first_bias, "holds: head.0.bias"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_file_that_does_not_hold_together_is_refused(net, tmp_path, spoil, said):
    state, layers = factored(net.state_dict(), "head")
    spoil(state, layers)
    path = write(tmp_path / "x.safetensors", state, layers)
    model = Net()

    with pytest.raises(LoadError, match=said):
        load_compressed(model, path)

    assert type(model.head) is nn.Linear


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{}",
        "[]",
        '{"version": 2, "layers": {}}',
        '{"version": 1, "layers": {"head": {"method": "svd", "rank": 0, "shape": [4, 6], "dtype": "F32"}}}',
        '{"version": 1, "layers": {"head": {"method": "svd", "rank": 2, "shape": [4], "dtype": "F32"}}}',
        '{"version": 1, "layers": []}',
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(net, tmp_path, manifest):
    path = tmp_path / "x.safetensors"
    save_file(net.state_dict(), path, metadata={"eckart": manifest})

    with pytest.raises(LoadError, match=r"x\.safetensors: .* the 'eckart' entry"):
        load_compressed(Net(), path)


def test_fields_that_a_newer_version_adds_are_let_by(net, tmp_path):
    state, layers = factored(net.state_dict(), "head")
    layers["head"]["calibrated"] = True
    loaded = load_compressed(Net(), write(tmp_path / "x.safetensors", state, layers, made_by="a newer one"))

    assert type(loaded.head) is LowRankLinear


def test_two_shards_cannot_hold_the_same_layer(net, tmp_path):
    state, layers = factored(net.state_dict(), *LAYERS)
    index = {}
    for number in (1, 2):
        file = f"x-0000{number}-of-00002.safetensors"
        part = {name: t for name, t in state.items() if name.startswith("block") == (number == 1)}
        write(tmp_path / file, part, layers)
        index |= dict.fromkeys(part, file)
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    with pytest.raises(LoadError, match="two shards"):
        load_compressed(Net(), tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not one")

    with pytest.raises(InputError, match=r"x.safetensors"):
        load_compressed(Net(), tmp_path / "x.safetensors")
