"""Names that a file and a model do not share: prefixes, other releases, what is never stored."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eckart import LoadError
from eckart.torch import LowRankLinear, load_compressed
from tests.eckart.torch.factoring import close, compress, factored, write


def block():
    return nn.ModuleDict({"up": nn.Linear(8, 6), "norm": nn.LayerNorm(6)})


class Model(nn.Module):
    """A backbone and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = block()
        self.head = nn.Linear(6, 5)


@pytest.fixture
def source():
    """Return a block with weights of its own."""
    torch.manual_seed(0)
    model = block()
    nn.init.normal_(model["norm"].weight)
    return model


def named(model, path, change):
    """Write a compressed file of a model with other names."""
    state, layers = factored(model.state_dict(), "up")
    state = {change(name): tensor for name, tensor in state.items()}
    return write(path, state, {change(name): entry for name, entry in layers.items()})


def is_loaded(model, source):
    return type(model["up"]) is LowRankLinear and torch.equal(model["norm"].weight, source["norm"].weight)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "transformer.h."])
def test_a_prefix_that_the_model_does_not_have_is_found(tmp_path, source, prefix):
    path = named(source, tmp_path / "x.safetensors", lambda name: prefix + name)

    assert is_loaded(load_compressed(block(), path), source)


def test_a_file_goes_into_the_wrapper_of_its_model(tmp_path, source):
    path = named(source, tmp_path / "x.safetensors", str)
    wrapped = nn.DataParallel(block())

    assert is_loaded(load_compressed(wrapped, path).module, source)


def test_a_file_of_a_backbone_into_a_model_with_a_head_names_the_prefix(tmp_path, source):
    path = named(source, tmp_path / "x.safetensors", str)
    model = Model()

    with pytest.raises(LoadError, match=r"factors of 'up', .*rename=\[\('', 'backbone\.'\)\]"):
        load_compressed(model, path)
    missing, unexpected = load_compressed(model, path, rename=[("", "backbone.")], strict=False)
    assert (missing, unexpected) == (["head.weight", "head.bias"], [])
    assert is_loaded(model.backbone, source)


def test_a_prefix_is_named_where_the_file_holds_more_than_the_model(tmp_path):
    torch.manual_seed(0)
    model = Model()
    path, _ = compress(model, tmp_path / "x.safetensors", "backbone.up")

    with pytest.raises(LoadError, match=r"rename=\[\('backbone\.', ''\)\]"):
        load_compressed(block(), path)
    target = block()
    missing, unexpected = load_compressed(target, path, rename=[("backbone.", "")], strict=False)
    assert (missing, sorted(unexpected)) == ([], ["head.bias", "head.weight"])
    assert is_loaded(target, model.backbone)


def test_two_prefixes_that_fit_equally_are_not_chosen_between(tmp_path, source):
    path = named(source, tmp_path / "x.safetensors", str)
    two = nn.ModuleDict({"left": block(), "right": block()})

    with pytest.raises(LoadError, match="factors of 'up'"):
        load_compressed(two, path)


@pytest.mark.parametrize(
    "rename",
    [
        {"layer.up.weight": "up.weight", "layer.up.bias": "up.bias", "layer.n": "norm"},
        {"layer.up": "up", "layer.n": "norm"},
        {"layer": "", "layer.n": "norm", "layer.up": "up"},
        [("layer.n.", "norm."), ("layer.", "")],
        lambda name: name.replace("layer.n.", "norm.").replace("layer.", ""),
    ],
    ids=["tensors", "modules", "longest", "prefixes", "function"],
)
def test_names_are_changed_by_a_mapping_by_prefixes_or_by_a_function(tmp_path, source, rename):
    path = named(source, tmp_path / "x.safetensors", lambda name: "layer." + name.replace("norm", "n"))

    assert is_loaded(load_compressed(block(), path, rename=rename), source)


def test_a_renaming_is_given_the_name_of_the_weight_that_was_factored(tmp_path, source):
    path = named(source, tmp_path / "x.safetensors", str)
    seen = set()

    def note(name):
        seen.add(name)
        return name

    load_compressed(block(), path, rename=note)
    assert seen == {"up.weight", "norm.weight", "norm.bias"}


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ({"norm.weight": "norm.bias"}, "gives norm.* and norm.* the same name, norm.bias"),
        ({"up.weight": "up.kernel"}, "the name of a factored weight ends in .weight"),
        ({"up.weight": "norm.weight"}, "gives norm.weight and up.weight the same name, norm.weight"),
        ({"up": "down"}, "factors of 'up', but the model has no such module"),
    ],
)
def test_a_renaming_that_does_not_fit_is_refused(tmp_path, source, rename, said):
    path = named(source, tmp_path / "x.safetensors", str)
    with pytest.raises(LoadError, match=said):
        load_compressed(block(), path, rename=rename)


def test_without_strict_what_is_missing_and_unexpected_is_returned_and_all_else_loaded(tmp_path, source):
    state, layers = factored(source.state_dict(), "up")
    state["old.position_ids"] = torch.arange(4)
    del state["norm.bias"]
    path = write(tmp_path / "x.safetensors", state, layers)
    model = block()

    with pytest.raises(LoadError, match=r"lacks what the model needs: norm.bias; strict=False"):
        load_compressed(model, path)
    assert type(model["up"]) is nn.Linear
    found = load_compressed(model, path, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["norm.bias"], ["old.position_ids"])
    assert is_loaded(model, source)


def test_without_strict_factors_must_have_their_place_and_their_shape(tmp_path, source):
    path = named(source, tmp_path / "x.safetensors", str)

    with pytest.raises(LoadError, match="factors of 'up'"):
        load_compressed(nn.ModuleDict({"norm": nn.LayerNorm(6)}), path, strict=False)
    with pytest.raises(LoadError, match=r"up is a Linear of shape \[7, 8\]"):
        load_compressed(nn.ModuleDict({"up": nn.Linear(8, 7)}), path, strict=False)


class Positions(nn.Module):
    """A layer, and a buffer that is not saved."""

    def __init__(self, count=4):
        super().__init__()
        self.up = nn.Linear(8, 6)
        self.register_buffer("position_ids", torch.arange(count)[None], persistent=False)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_stored_buffer_that_the_model_has_but_does_not_save_is_let_by(tmp_path, dtype):
    torch.manual_seed(0)
    state, layers = factored(Positions().state_dict(), "up")
    path = write(
        tmp_path / "x.safetensors", state | {"position_ids": torch.arange(4)[None].to(dtype)}, layers
    )

    assert type(load_compressed(Positions(), path).up) is LowRankLinear


@pytest.mark.parametrize("values", [torch.arange(5)[None], torch.arange(4)[None] + 1])
def test_a_stored_buffer_with_other_values_is_refused_unless_asked(tmp_path, values):
    torch.manual_seed(0)
    state, layers = factored(Positions().state_dict(), "up")
    path = write(tmp_path / "x.safetensors", state | {"position_ids": values}, layers)

    with pytest.raises(LoadError, match="no place for what the checkpoint holds: position_ids; strict=False"):
        load_compressed(Positions(), path)
    assert load_compressed(Positions(), path, strict=False).unexpected_keys == ["position_ids"]


class Declaring(Positions):
    """A class that declares what files may lack and may hold, as those of transformers do."""

    _keys_to_ignore_on_load_missing = (r"sinus\.weight",)
    _keys_to_ignore_on_load_unexpected = (r"masked_bias",)

    def __init__(self):
        super().__init__()
        self.sinus = nn.Embedding(4, 8)


def test_what_a_class_declares_as_never_stored_or_never_used_is_let_by(tmp_path):
    torch.manual_seed(0)
    state, layers = factored(Declaring().state_dict(), "up")
    del state["sinus.weight"]
    state["h.0.masked_bias"] = torch.ones(1)
    path = write(tmp_path / "x.safetensors", state, layers)
    model = Declaring()
    own = model.sinus.weight.detach().clone()

    load_compressed(model, path)
    assert torch.equal(model.sinus.weight, own)


def test_packed_four_bit_floats_have_torchs_shape(tmp_path):
    codes = torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)

    def make():
        net = nn.ModuleDict({"up": nn.Linear(8, 6)})
        net.register_buffer("codes", torch.empty_like(codes))
        return net

    state, layers = factored(make().state_dict() | {"codes": codes}, "up")
    loaded = load_compressed(make(), write(tmp_path / "x.safetensors", state, layers))

    assert torch.equal(loaded.codes.view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("factors", [2, 3])
def test_a_file_that_lost_its_metadata_loads_by_its_shapes(tmp_path, factors):
    torch.manual_seed(0)
    path, dense = compress(Model(), tmp_path / "x.safetensors", "backbone.up", "head", factors=factors)
    bare = tmp_path / "bare.safetensors"
    save_file(load_compressed(Model(), path).state_dict(), bare)
    loaded = load_compressed(Model(), bare)

    assert type(loaded.backbone["up"]) is type(loaded.head) is LowRankLinear
    assert close(loaded.head.weight, dense.head.weight)


def test_a_sequential_of_the_model_itself_is_not_taken_for_factors(tmp_path):
    net = nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 6, bias=False))})
    save_file(net.state_dict(), tmp_path / "x.safetensors")

    with pytest.warns(UserWarning, match="holds no factored layers"):
        assert type(load_compressed(net, tmp_path / "x.safetensors")["a"]) is nn.Sequential
