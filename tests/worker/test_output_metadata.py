"""schemas/planning/output.py and schemas/format/metadata.py: the metadata of what a job writes."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from schemas.format.files import open_checkpoint
from schemas.format.metadata import CONTENT_HASHES


def metadata_of(result, name="model.safetensors"):
    with safe_open(result.directory / name, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_a_changed_file_without_metadata_gains_the_format_that_some_readers_require(
    compress, save, gaussian, layout
):
    metadata = metadata_of(compress(save({"a.weight": gaussian(40, 60)}), layout=layout))

    assert metadata.pop("format") == "pt"
    assert list(metadata) == (["eckart"] if layout == "factored" else [])


def test_the_format_of_the_input_stays(compress, save, gaussian):
    result = compress(save({"a.weight": gaussian(40, 60)}, metadata={"format": "mlx", "note": "x"}))

    assert metadata_of(result) | {"eckart": ""} == {"format": "mlx", "note": "x", "eckart": ""}


def test_a_file_without_metadata_in_which_nothing_changes_is_copied_as_it_is(compress, save, gaussian):
    source = save({"embed.weight": gaussian(40, 60)})
    result = compress(source)

    assert metadata_of(result) is None
    assert (result.directory / "model.safetensors").read_bytes() == source.read_bytes()


def test_only_the_shards_with_factors_have_an_entry_of_ours(compress, save_sharded, gaussian):
    result = compress(save_sharded([{"a.weight": gaussian(40, 60)}, {"embed.weight": gaussian(40, 60)}]))
    first, second = (metadata_of(result, f"model-0000{number}-of-00002.safetensors") for number in (1, 2))

    assert list(json.loads(first["eckart"])["layers"]) == ["a"]
    assert second == {"format": "pt"}


@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_digests_of_the_old_tensors_are_left_out_and_told(compress, save, gaussian, layout):
    source = save(
        {"a.weight": gaussian(40, 60)},
        metadata=dict.fromkeys(CONTENT_HASHES, "0x1") | {"modelspec.title": "t"},
    )
    result = compress(source, layout=layout)

    assert metadata_of(result).keys() - {"eckart"} == {"format", "modelspec.title"}
    (warning,) = result.report.warnings
    assert warning.endswith("digests of the input: sshs_model_hash, sshs_legacy_hash, modelspec.hash_sha256")


def test_digests_of_tensors_that_do_not_change_stay(compress, save, gaussian):
    digests = dict.fromkeys(CONTENT_HASHES, "0x1")
    result = compress(save({"embed.weight": gaussian(40, 60)}, metadata=digests))

    assert metadata_of(result) == digests | {"format": "pt"}
    assert not any("digests" in warning for warning in result.report.warnings)


class TiedBiases(nn.Module):
    """Two layers with one bias, and a head that is the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.a, self.b, self.head = nn.Linear(32, 48), nn.Linear(40, 48), nn.Linear(32, 64, bias=False)
        self.b.bias, self.head.weight = self.a.bias, self.embed.weight


def test_aliases_follow_the_tensors_that_are_renamed(compress, tmp_path):
    torch.manual_seed(0)
    model = TiedBiases()
    save_model(model, str(tmp_path / "model.safetensors"))
    before = open_checkpoint(tmp_path / "model.safetensors")
    result = compress(tmp_path / "model.safetensors", rank=3)
    metadata = metadata_of(result)

    assert before.aliases == {"b.bias": "a.bias", "head.weight": "embed.weight"}
    assert metadata["b.1.bias"] == "a.1.bias"
    assert metadata["head.weight"] == "embed.weight"
    assert "b.bias" not in metadata

    compressed = TiedBiases()
    for name in ("a", "b"):
        linear = compressed.get_submodule(name)
        chain = nn.Sequential(nn.Linear(linear.in_features, 3, bias=False), nn.Linear(3, 48))
        compressed.set_submodule(name, chain)
    compressed.b[1].bias = compressed.a[1].bias
    # The reference loader takes what is not stored from the aliases' tensors, as in the input.
    load_model(compressed, str(result.directory / "model.safetensors"))
    assert torch.equal(compressed.b[1].bias, model.b.bias)


class HeadStored(nn.Module):
    """A tied head whose name comes first, so that it is the one that is stored."""

    def __init__(self):
        super().__init__()
        self.a_head, self.embed = nn.Linear(32, 64, bias=False), nn.Embedding(64, 32)
        self.a_head.weight = self.embed.weight


def test_a_weight_that_is_stored_for_another_name_too_stays_dense(compress, tmp_path):
    save_model(HeadStored(), str(tmp_path / "model.safetensors"))
    result = compress(tmp_path / "model.safetensors")

    assert [(layer.name, layer.reason) for layer in result.report.layers] == [("a_head", "tied")]
    assert metadata_of(result) == {"format": "pt", "embed.weight": "a_head.weight"}
