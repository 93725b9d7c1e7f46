"""worker/companions.py: the result of a model's folder is a folder again."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from eckart.torch import load_compressed
from schemas.format.companion import CARD_NAME, CONFIG_NAME
from schemas.format.errors import CheckpointError
from schemas.format.files import open_checkpoint
from schemas.format.header_stream import read_header
from schemas.format.metadata import factored_layers
from schemas.spec import CompressionSpec
from worker.companions import CompanionWriter
from worker.local import compress_local

SMALL_BERT = BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
)
FRONT_MATTER = "---\nlicense: mit\ntags:\n- kept\n---\n"


class StopError(Exception):
    pass


@pytest.fixture
def folder(tmp_path):
    """Return the folder that save_pretrained makes of a small BERT, with other files beside its weights."""
    torch.manual_seed(3)
    folder = tmp_path / "bert"
    BertModel(SMALL_BERT).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"word{i}\n" for i in range(60)))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case":true}')
    return folder


def shard(folder):
    """Split a folder's file into two shards with an index."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        halves = [{name: file.get_tensor(name) for name in half} for half in (names[::2], names[1::2])]
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, half in enumerate(halves, start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file(half, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def config_of(result):
    return json.loads((result.directory / CONFIG_NAME).read_text())


def test_companions_come_back_byte_for_byte_and_stand_in_the_report(folder, compress):
    result = compress(folder)

    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (result.directory / name).read_bytes() == (folder / name).read_bytes()
    listed = {file.name: file for file in result.report.output.files}
    found = {path.name for path in result.directory.iterdir()}
    assert found == {*listed, "report.json"}
    assert found == {
        "eckart.safetensors",
        "config.json",
        "vocab.txt",
        "tokenizer_config.json",
        "README.md",
        "report.json",
    }
    for name, file in listed.items():
        content = (result.directory / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size_bytes, file.sha256)
    assert result.report.output.bytes == sum(file.size_bytes for file in listed.values())
    assert {file.name for file in result.report.input.files} == {path.name for path in folder.iterdir()}


def test_config_gains_the_factored_layers_and_keeps_every_other_key_in_order(folder, compress):
    before = json.loads((folder / CONFIG_NAME).read_text())
    result = compress(folder, overrides=[{"match": "*.query", "method": "cur"}])
    after = config_of(result)

    quantization = after.pop("quantization_config")
    assert after.pop("transformers_weights") == "import-eckart.transformers-first.safetensors"
    assert list(after.items()) == list(before.items())
    assert (quantization["quant_method"], quantization["version"]) == ("eckart", 1)
    assert quantization["layers"] == {
        layer.name: {"method": layer.method, "rank": layer.rank, "shape": list(layer.shape)}
        for layer in result.report.layers
        if layer.outcome == "factored"
    }


def test_the_folder_is_loaded_by_load_compressed(folder, compress):
    result = compress(folder, rank={"ratio": 0.9})
    loaded = load_compressed(BertModel(SMALL_BERT).eval(), result.directory)
    ids = torch.arange(5)[None]

    exact = BertModel.from_pretrained(folder).eval()
    assert torch.isfinite(loaded(ids).last_hidden_state).all()
    assert loaded(ids).last_hidden_state.shape == exact(ids).last_hidden_state.shape


def test_a_sharded_folder_gets_an_index_under_the_new_name(folder, compress):
    shard(folder)
    result = compress(folder)

    names = {path.name for path in result.directory.glob("*safetensors*")}
    assert names == {
        "eckart.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    index = json.loads((result.directory / "eckart.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) <= names
    load_compressed(BertModel(SMALL_BERT), result.directory)


def test_a_lone_shard_with_the_name_of_a_whole_file_gets_another_one(folder, compress):
    with safe_open(folder / "model.safetensors", "pt") as file:
        index = {"weight_map": dict.fromkeys(file.keys(), "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = compress(folder)

    assert {path.name for path in result.directory.glob("*safetensors*")} == {
        "eckart.safetensors.index.json",
        "eckart_model.safetensors",
    }
    load_compressed(BertModel(SMALL_BERT), result.directory)


def test_in_the_dense_layout_the_folder_is_what_from_pretrained_takes(folder, compress):
    result = compress(folder, layout="dense")

    assert (result.directory / CONFIG_NAME).read_bytes() == (folder / CONFIG_NAME).read_bytes()
    model, told = BertModel.from_pretrained(result.directory, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    stored = result.tensors()
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name]), name


def test_where_nothing_is_factored_the_names_and_the_config_stay(folder, compress):
    result = compress(folder, include=["nothing"])

    assert (result.directory / "model.safetensors").is_file()
    assert (result.directory / CONFIG_NAME).read_bytes() == (folder / CONFIG_NAME).read_bytes()


def test_without_config_companions_are_copied_and_the_weights_keep_their_name(folder, compress):
    (folder / CONFIG_NAME).unlink()
    (folder / CARD_NAME).write_text("ours")
    result = compress(folder)

    assert {path.name for path in result.directory.iterdir()} == {
        "model.safetensors",
        "vocab.txt",
        "tokenizer_config.json",
        "README.md",
        "report.json",
    }
    assert (result.directory / CARD_NAME).read_text() == "ours"


def test_a_quantization_config_of_its_own_stays_and_a_warning_says_so(folder, compress):
    config = json.loads((folder / CONFIG_NAME).read_text()) | {
        "quantization_config": {"quant_method": "gptq"}
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    result = compress(folder)

    assert config_of(result)["quantization_config"] == {"quant_method": "gptq"}
    assert (result.directory / "eckart.safetensors").is_file()
    assert any('"gptq"' in warning for warning in result.report.warnings)


def test_a_compressed_folder_is_compressed_again(folder, compress):
    first = compress(folder, include=["*.query"], rank=4)
    again = compress(first.directory, include=["*.key"], rank=4)

    layers = config_of(again)["quantization_config"]["layers"]
    prefix = "encoder.layer.0.attention.self"
    assert set(layers) == {f"{prefix}.query", f"{prefix}.key"}
    assert (again.directory / "eckart.safetensors").is_file()
    load_compressed(BertModel(SMALL_BERT), again.directory)


def without_metadata(folder):
    """Write a result's weights as other programs do, so that only config.json lists its layers."""
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), path, metadata={"format": "pt"})


@pytest.mark.parametrize("sharded", [False, True])
def test_layers_that_only_the_config_lists_are_not_factored_again(folder, compress, sharded):
    if sharded:
        shard(folder)
    first = compress(folder, include=["*.query"], rank=4)
    known = compress(first.directory, rank=4)
    without_metadata(first.directory)
    again = compress(first.directory, rank=4)

    assert again.tensors().keys() == known.tensors().keys()
    assert all(torch.equal(value, known.tensors()[name]) for name, value in again.tensors().items())
    layers = config_of(again)["quantization_config"]["layers"]
    assert layers == config_of(known)["quantization_config"]["layers"]
    assert "encoder.layer.0.attention.self.query" in layers
    for path in again.directory.glob("*.safetensors"):
        assert factored_layers(read_header(path).metadata).keys() == {
            name for name in layers if f"{name}.0.weight" in load_file(path)
        }
    load_compressed(BertModel(SMALL_BERT), again.directory)


def test_the_layers_of_the_config_stay_known_where_nothing_else_is_factored(folder, compress):
    first = compress(folder, rank=4)
    without_metadata(first.directory)
    again = compress(first.directory, rank=4)

    assert not again.report.layers
    assert {row.rule for row in again.report.not_selected} >= {"factored_before"}
    assert config_of(again)["quantization_config"] == config_of(first)["quantization_config"]
    assert (again.directory / "eckart.safetensors").is_file()


def test_an_interrupted_run_starts_anew_when_the_config_lists_other_layers(folder, compress, tmp_path):
    first = compress(folder, include=["*.query"], rank=4)
    without_metadata(first.directory)
    config = (first.directory / CONFIG_NAME).read_bytes()
    (first.directory / CONFIG_NAME).write_text("{}")
    spec, device = CompressionSpec(rank=2), torch.device("cpu")

    def stop(progress):
        if progress.layers_done >= 2:  # Tiny layers may end two at a time.
            raise StopError

    with pytest.raises(StopError):
        compress_local(first.directory, tmp_path / "out", spec, device=device, observe=stop)
    (first.directory / CONFIG_NAME).write_bytes(config)
    seen = []
    compress_local(
        first.directory,
        tmp_path / "out",
        spec,
        device=device,
        observe=lambda progress: seen.append(progress.layers_done),
    )

    assert seen[0] == 0
    load_compressed(BertModel(SMALL_BERT), tmp_path / "out")


def test_an_interrupted_run_goes_on_when_a_companion_was_changed(folder, tmp_path):
    spec, device = CompressionSpec(rank=4), torch.device("cpu")

    def run(observe):
        return compress_local(folder, tmp_path / "out", spec, device=device, observe=observe)

    def stop(progress):
        if progress.layers_done >= 2:
            raise StopError

    with pytest.raises(StopError):
        run(stop)
    (folder / "vocab.txt").write_text("other\n")
    seen = []
    run(lambda progress: seen.append(progress.layers_done))

    assert seen[0] >= 2
    assert (tmp_path / "out" / "vocab.txt").read_text() == "other\n"


@pytest.mark.parametrize("damage", ["changed", "deleted"])
@pytest.mark.parametrize("way", ["copy", "read"])
def test_a_companion_that_changed_since_it_was_stored_is_noticed(folder, compress, tmp_path, damage, way):
    files = {file.name: file for file in compress(folder).report.input.files}
    if damage == "changed":
        (folder / "vocab.txt").write_text("other\n")
    else:
        (folder / "vocab.txt").unlink()
    writer = CompanionWriter(open_checkpoint(folder), files, tmp_path)
    with pytest.raises(CheckpointError) as error:
        getattr(writer, way)("vocab.txt")
    assert error.value.fault == "file-changed"
    assert not (tmp_path / "vocab.txt").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a":' + "[" * 70 + "]" * 70 + "}", "nested deeper"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "more than .* values"),
        ('{"a":' + "9" * 5000 + "}", "digits"),
        (b"\xff{}", "UTF-8"),
    ],
)
def test_a_config_that_is_none_is_refused_at_once(folder, compress, text, words):
    (folder / CONFIG_NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    seen = []
    with pytest.raises(CheckpointError, match=words) as error:
        compress(folder, observe=seen.append)
    assert error.value.fault == "bad-config"
    assert not seen, "refused before any work"


def test_a_config_with_infinity_and_odd_characters_is_taken(folder, compress):
    config = json.loads((folder / CONFIG_NAME).read_text())
    config |= {"time_step_limit": [0.0, float("inf")], "id2label": {"0": "é\ud800"}}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    after = config_of(compress(folder))

    assert after["time_step_limit"] == [0.0, float("inf")]
    assert after["id2label"] == {"0": "é\ud800"}


def test_the_report_says_how_a_factored_result_is_loaded_and_how_not(folder, compress):
    assert compress(folder, layout="dense").report.how_to_load is None
    assert compress(folder, include=["nothing"]).report.how_to_load is None
    assert "README.md has the lines" in compress(folder).report.how_to_load
    assert "experts" not in compress(folder).report.how_to_load
    alone = compress(folder / "model.safetensors").report.how_to_load
    assert "load_compressed" in alone
    assert "Never put a config.json beside it" in alone


def test_the_report_says_which_subfolders_the_result_lacks(folder, compress):
    before = compress(folder).report.warnings
    (folder / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    (said,) = set(compress(folder).report.warnings) - set(before)

    assert said.startswith("modules.json names subfolders")
    assert '"1_Pooling"' in said


def test_the_report_says_that_experts_run_dense(tmp_path, compress):
    config = MixtralConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")

    assert "runs them dense" in compress(tmp_path / "mixtral").report.how_to_load
    without = compress(tmp_path / "mixtral", exclude=["*.experts.*"]).report
    assert without.totals.layers_factored
    assert "experts" not in without.how_to_load


def test_an_adapters_own_files_are_not_replaced_by_companions_of_their_name(folder, compress, tmp_path):
    base = tmp_path / "base.safetensors"
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, base)
    (folder / "adapter_config.json").write_text("{}")
    result = compress(folder, base=base, layout="adapter", rank=2)

    assert json.loads((result.directory / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert (result.directory / "vocab.txt").is_file()
    assert not (result.directory / CONFIG_NAME).exists()
    listed = [file.name for file in result.report.output.files]
    assert len(listed) == len(set(listed))
