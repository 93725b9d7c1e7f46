"""The dense checkpoint of a compressed one: the same names, shapes and dtypes, made a layer at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from eckart import InputError, LoadError
from eckart.cli import main
from eckart.torch import expand, load_compressed
from tests.compression import compress
from tests.eckart.torch.factoring import close, factored, products, write

ROOT = Path(__file__).parents[3]
GPT2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8)
BERT = BertConfig(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
)


def compressed(source, target, **spec):
    """Compress as a job does."""
    compress(source, target, **spec)
    return target


@pytest.fixture
def bert(tmp_path):
    """Save a model by its own library."""
    torch.manual_seed(0)
    BertModel(BERT).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def shapes(folder):
    return {
        name: (tensor.shape, tensor.dtype)
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("dtype", ["keep", "float16", "bfloat16"])
@pytest.mark.parametrize("method", ["svd", "cur"])
def test_names_shapes_and_dtypes_are_those_of_the_original(bert, tmp_path, method, dtype):
    small = compressed(bert / "model.safetensors", tmp_path / "small", method=method, dtype=dtype)
    (file,) = expand(small / "model.safetensors", tmp_path / "dense")

    assert file == tmp_path / "dense" / "model.safetensors"
    assert shapes(file.parent) == shapes(bert)
    stored = load_file(small / "model.safetensors")
    name = "encoder.layer.0.output.dense"
    parts = [stored[f"{name}.{i}.weight"].float() for i in range(3) if f"{name}.{i}.weight" in stored]
    assert close(load_file(file)[f"{name}.weight"], torch.linalg.multi_dot(parts[::-1]))


def test_a_half_precision_checkpoint_stays_one(tmp_path):
    torch.manual_seed(0)
    BertModel(BERT).bfloat16().save_pretrained(tmp_path / "bert")
    small = compressed(tmp_path / "bert" / "model.safetensors", tmp_path / "small", dtype="float32")
    expand(small / "model.safetensors", tmp_path / "dense")

    assert shapes(tmp_path / "dense") == shapes(tmp_path / "bert")


def test_the_metadata_stay_without_the_entry_of_the_factors(bert, tmp_path):
    path = tmp_path / "x.safetensors"
    state, layers = factored({"a.weight": torch.randn(8, 8)}, "a")
    write(path, state, layers)
    save_file(load_file(path), path, {"note": "mine", "eckart": json.dumps({"version": 1, "layers": layers})})
    expand(path, tmp_path / "dense.safetensors")

    with safe_open(tmp_path / "dense.safetensors", "pt") as file:
        assert file.metadata() == {"note": "mine", "format": "pt"}


@pytest.fixture
def folder(bert, tmp_path):
    """Compress the model's folder, and add what else a folder can hold."""
    small = compressed(bert, tmp_path / "small")
    (small / "vocab.txt").write_text("a\nb\n")
    (small / "1_Pooling").mkdir()
    (small / "1_Pooling" / "config.json").write_text("{}")
    (small / ".hidden").write_text("")
    return small


def test_a_folder_becomes_one_that_from_pretrained_takes(folder, tmp_path):
    written = expand(folder, tmp_path / "dense")
    dense = BertModel.from_pretrained(tmp_path / "dense").eval()

    found = {path.relative_to(tmp_path / "dense").as_posix() for path in (tmp_path / "dense").rglob("*")}
    assert found == {
        "model.safetensors",
        "config.json",
        "vocab.txt",
        "1_Pooling",
        "1_Pooling/config.json",
        "README.md",
    }
    assert {path.name for path in written} == {path for path in found if "/" not in path}
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in config
    assert "transformers_weights" not in config
    stored = load_file(folder / "eckart.safetensors")
    name = "encoder.layer.0.output.dense"
    product = stored[f"{name}.1.weight"] @ stored[f"{name}.0.weight"]
    assert close(dense.get_submodule(name).weight, product)


def code(card):
    """Return the code of a card, ours being the first."""
    return card.partition("```python\n")[2].partition("```")[0]


def model_of(card):
    """Run the code of a card, and return the model that it makes."""
    names: dict[str, object] = {}
    exec(code(card), names)
    return names["model"]


FRONT = "---\nlicense: mit\n---\n"
# As after a second compression.
TEXT = "# A model\n\n<!-- eckart: how to run it -->\nIts text.\n<!-- eckart: notes -->\n"


def card_of(bert, tmp_path, config=None):
    """Compress a folder that has a card, expand the result, and return the cards of both."""
    (bert / "README.md").write_text(FRONT + TEXT)
    own = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(own | (config or {})))
    small = compressed(bert, tmp_path / "small")
    expand(small, tmp_path / "dense")
    was, now = ((tmp_path / name / "README.md").read_text() for name in ("small", "dense"))
    return was, now


def test_the_card_says_what_the_folder_is_and_loads_it_without_eckart(bert, tmp_path, monkeypatch):
    was, now = card_of(bert, tmp_path)

    assert now.startswith(FRONT)
    assert now.endswith(f"\n---\n\n{TEXT}")
    assert "# Expanded from a model that Eckart compressed" in now
    for stale in (
        "import eckart",
        "Never load this folder",
        "eckart[transformers]",
        "report.json",
        "# Compr",
    ):
        assert stale in was
        assert stale not in now
    (error,) = [line for line in was.splitlines() if line.startswith("| relative error of the factored")]
    assert error in now
    assert "name the model that it was made from as `base_model`" in now
    monkeypatch.chdir(tmp_path / "dense")
    assert type(model_of(now)) is BertModel


def test_the_card_of_what_no_known_library_loads_names_no_lines(bert, tmp_path):
    was, now = card_of(bert, tmp_path, {"quantization_config": {"quant_method": "gptq"}})

    assert "load_compressed" in was
    assert not code(now)
    assert "with that model's own library" in now
    assert now.endswith(TEXT)


def test_a_card_of_somebody_elses_stays_as_it_is(folder, tmp_path):
    (folder / "README.md").write_bytes(b"# Mine\r\n\xff")
    expand(folder, tmp_path / "dense")
    assert (tmp_path / "dense" / "README.md").read_bytes() == b"# Mine\r\n\xff"


def test_a_config_of_another_quantization_is_kept(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers_weights"]
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    expand(folder, tmp_path / "dense")

    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "fp8"}
    assert "transformers_weights" not in config


def test_shards_stay_shards_even_with_a_bias_away_from_its_factors(bert, tmp_path):
    BertModel.from_pretrained(bert).save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    small = compressed(tmp_path / "sharded", tmp_path / "small")
    assert (small / "eckart.safetensors.index.json").exists()
    expand(small, tmp_path / "dense")

    was = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    now = json.loads((tmp_path / "dense" / "model.safetensors.index.json").read_text())
    assert now["weight_map"] == was["weight_map"]
    assert now["metadata"]["total_size"] == was["metadata"]["total_size"]
    assert shapes(tmp_path / "dense") == shapes(tmp_path / "sharded")
    BertModel.from_pretrained(tmp_path / "dense")


def test_an_index_alone_becomes_a_folder_of_weights(bert, tmp_path):
    BertModel.from_pretrained(bert).save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    small = compressed(tmp_path / "sharded", tmp_path / "small")
    written = expand(small / "eckart.safetensors.index.json", tmp_path / "dense")

    assert {path.name for path in written} == {
        path.name for path in (tmp_path / "sharded").iterdir() if "safetensors" in path.name
    }


def test_transposed_weights_and_gpt2s_tied_head_come_back(tmp_path):
    torch.manual_seed(0)
    original = GPT2LMHeadModel(GPT2)
    original.save_pretrained(tmp_path / "gpt2")
    small = compressed(tmp_path / "gpt2" / "model.safetensors", tmp_path / "small", transposed=["*.c_*"])
    shutil.copy(tmp_path / "gpt2" / "config.json", small)
    expand(small, tmp_path / "dense")
    dense = GPT2LMHeadModel.from_pretrained(tmp_path / "dense").eval()

    stored = load_file(small / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc"
    assert close(dense.get_submodule(name).weight, stored[f"{name}.0.weight"] @ stored[f"{name}.1.weight"])
    assert dense.lm_head.weight is dense.transformer.wte.weight


def test_tensors_that_would_not_be_aligned_are_sorted_by_the_size_of_their_elements(tmp_path):
    state, layers = factored({"a.weight": torch.randn(4, 4)}, "a")
    state |= {"z.flag": torch.tensor([True]), "z.half": torch.ones(3).half(), "z.packed": torch.ones(2, 4)}
    packed = torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)
    path = write(tmp_path / "x.safetensors", state | {"z.packed": packed}, layers)
    expand(path, tmp_path / "dense.safetensors")
    dense = load_file(tmp_path / "dense.safetensors")

    assert close(dense["a.weight"], products(state, layers)["a"])
    assert torch.equal(dense["z.half"], state["z.half"])
    assert torch.equal(dense["z.packed"].view(torch.uint8), packed.view(torch.uint8))


EXPAND = """
import sys
from eckart.torch import expand
from tests.peak import peak_kib
for path in sys.argv[1:]:
    expand(path, path + "-dense")
    print(peak_kib())
"""


def test_memory_holds_a_layer_at_a_time(tmp_path):
    """Many layers take hardly more memory than two of the same size."""
    size, rank, most = 768, 192, 24
    paths = []
    for count in (2, most):
        names = [f"h.{i}" for i in range(count)]
        state = {f"{name}.0.weight": torch.ones(rank, size) for name in names}
        state |= {f"{name}.1.weight": torch.ones(size, rank) for name in names}
        layers = {
            name: {"method": "svd", "rank": rank, "shape": [size, size], "dtype": "F32"} for name in names
        }
        paths.append(str(write(tmp_path / f"{count}.safetensors", state, layers)))
    done = subprocess.run(
        [sys.executable, "-c", EXPAND, *paths], capture_output=True, text=True, check=True, cwd=ROOT
    )

    few, many = map(int, done.stdout.split())
    assert many - few < most / 3 * size * size * 4 / 1024
    dense = tmp_path / f"{most}.safetensors-dense" / f"{most}.safetensors"
    assert dense.stat().st_size > most * size * size * 4


NOISE = pytest.mark.filterwarnings("ignore:::diffusers", "ignore:::torch")


def unet():
    """Return a tiny model of diffusers."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
    ).eval()


def denoised(model):
    noise, text = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8), torch.linspace(-1, 1, 48).reshape(1, 3, 16)
    with torch.no_grad():
        return model(noise, 3, text).sample


@NOISE
@pytest.mark.parametrize(("size", "variant"), [("1GB", None), ("1GB", "fp16"), ("100KB", "fp16")])
def test_diffusers_takes_the_expanded_folder_of_its_model(tmp_path, monkeypatch, size, variant):
    unet().save_pretrained(tmp_path / "unet", max_shard_size=size, variant=variant)
    small = compressed(tmp_path / "unet", tmp_path / "small")
    twice = compressed(small, tmp_path / "twice", include=["nothing"])
    before = {path.name for path in (tmp_path / "unet").iterdir()}
    for source in (small, twice):
        folder = tmp_path / f"{source.name}-dense"
        expand(source, folder)
        assert {path.name for path in folder.iterdir()} == before | {"README.md"}
        dense = UNet2DConditionModel.from_pretrained(folder, variant=variant)
        factored = load_compressed(UNet2DConditionModel.from_config(dense.config), source)
        assert close(denoised(dense), denoised(factored))
        monkeypatch.chdir(folder)
        assert close(denoised(model_of((folder / "README.md").read_text())), denoised(factored))


@NOISE
def test_diffusers_refuses_a_factored_folder(tmp_path):
    unet().save_pretrained(tmp_path / "unet")
    small = compressed(tmp_path / "unet", tmp_path / "small")

    with pytest.raises(ValueError, match="Unknown quantization type, got eckart"):
        UNet2DConditionModel.from_pretrained(small)


@NOISE
@pytest.mark.parametrize(("layout", "variant"), [("factored", "fp16"), ("dense", "fp16"), ("dense", None)])
def test_the_lines_of_the_card_of_a_diffusers_model_run(tmp_path, monkeypatch, layout, variant):
    unet().save_pretrained(tmp_path / "unet", variant=variant)
    small = compressed(tmp_path / "unet", tmp_path / "small", layout=layout)
    card = (small / "README.md").read_text()
    monkeypatch.chdir(small)
    model = model_of(card)

    dense = small
    if layout == "factored":
        dense = tmp_path / "dense"
        expand(small, dense)
    expected = UNet2DConditionModel.from_pretrained(dense, variant=variant)
    assert close(denoised(model), denoised(expected))
    assert "eckart[transformers]" not in card
    assert ("Install `eckart[torch]` first." in card) == (layout == "factored")


OLDER = {"quant_method": "eckart", "version": 1, "layers": {}}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quantization_config": OLDER}, "model.safetensors"),
        ({"quantization_config": OLDER, "_class_name": "X"}, "diffusion_pytorch_model.safetensors"),
        ({"quantization_config": OLDER | {"original_weights": "m.fp8.safetensors"}}, "m.fp8.safetensors"),
        # None of these can be the name of a weight file.
        ({"quantization_config": OLDER | {"original_weights": "../../m.safetensors"}}, "model.safetensors"),
        ({"quantization_config": OLDER | {"original_weights": "config.json"}}, "model.safetensors"),
        (
            {"quantization_config": OLDER | {"original_weights": "m.safetensors.index.json"}},
            "model.safetensors",
        ),
        ({"quantization_config": OLDER | {"original_weights": ["x"]}}, "model.safetensors"),
        ({"quantization_config": {"quant_method": "fp8"}}, "model.safetensors"),
        ([], "model.safetensors"),
        (None, "model.safetensors"),
    ],
)
def test_the_weights_get_a_name_that_is_known_or_the_usual_one(tmp_path, config, name):
    (tmp_path / "small").mkdir()
    write(tmp_path / "small" / "eckart.safetensors", *factored({"a.weight": torch.randn(8, 8)}, "a"))
    if config is not None:
        (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    expand(tmp_path / "small", tmp_path / "dense")
    (alone,) = expand(tmp_path / "small" / "eckart.safetensors", tmp_path / "alone")

    assert [path.name for path in (tmp_path / "dense").glob("*.safetensors")] == [name]
    assert alone == tmp_path / "alone" / name


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_what_is_there_is_not_written_over(tmp_path, taken):
    path = write(tmp_path / "x.safetensors", *factored({"a.weight": torch.randn(8, 8)}, "a"))
    target = path if taken == "file" else tmp_path
    before = path.read_bytes()

    with pytest.raises(InputError, match="is there already"):
        expand(path, target)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("shapes", "metadata", "words"),
    [
        ({"a.weight": (2, 4), "b.0.weight": (8, 2), "b.1.weight": (4, 8)}, None, "nothing to multiply out"),
        ({"a.weight": (2, 4)}, {"eckart": '{"version": 1, "layers": {}}'}, "nothing to multiply out"),
        ({"a.0.weight": (1, 4), "a.1.weight": (4, 1)}, None, r"a\.0\.weight, a\.1\.weight look like factors"),
        (
            {"a.0.weight": (4, 1), "a.1.weight": (1, 3)},
            None,
            r"load_compressed\(model, path, dequantize=True",
        ),
    ],
)
def test_a_file_without_factored_layers_is_refused(tmp_path, shapes, metadata, words):
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    with pytest.raises(InputError, match=words):
        expand(tmp_path / "x.safetensors", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def without_metadata(folder):
    """Write the weights as other programs do, so that only config.json lists the layers."""
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), path, {"format": "pt"})


@pytest.mark.parametrize("size", ["1GB", "20kB"])
def test_a_folder_whose_layers_only_its_config_lists_is_expanded_as_the_original(tmp_path, size):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2).bfloat16().save_pretrained(tmp_path / "gpt2", max_shard_size=size)
    small = compressed(tmp_path / "gpt2", tmp_path / "small")
    expand(small, tmp_path / "dense")
    without_metadata(small)
    expand(small, tmp_path / "again")

    names = {path.name for path in (tmp_path / "dense").iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    assert shapes(tmp_path / "again") == shapes(tmp_path / "gpt2")
    for path in (tmp_path / "dense").glob("*.safetensors"):
        again = load_file(tmp_path / "again" / path.name)
        assert all(torch.equal(value, again[name]) for name, value in load_file(path).items())
    configs = [(tmp_path / folder / "config.json").read_bytes() for folder in ("dense", "again")]
    assert configs[0] == configs[1]
    with pytest.raises(InputError, match=f"the config.json beside it does; give their folder, {small}"):
        expand(next(small.glob("*.safetensors")), tmp_path / "new")


def test_factors_of_a_layer_may_lie_in_several_files(bert, tmp_path):
    """Transformers shards a factored model without regard to which factors belong together."""
    small = compressed(bert, tmp_path / "small")
    expand(small, tmp_path / "dense")
    state = load_file(small / "eckart.safetensors")
    last = {name for name in state if name.endswith(".1.weight")}
    (small / "eckart.safetensors").unlink()
    halves = {
        f"model-0000{number}-of-00002.safetensors": {name: state[name] for name in names}
        for number, names in ((1, last), (2, state.keys() - last))
    }
    for name, tensors in halves.items():
        save_file(tensors, small / name, {"format": "pt"})
    index = {"weight_map": {name: file for file, tensors in halves.items() for name in tensors}}
    (small / "model.safetensors.index.json").write_text(json.dumps(index))
    expand(small, tmp_path / "again")

    wanted = load_file(tmp_path / "dense" / "model.safetensors")
    weights = load_file(tmp_path / "again" / "model-00001-of-00002.safetensors")
    found = weights | load_file(tmp_path / "again" / "model-00002-of-00002.safetensors")
    assert weights.keys() == {name.replace(".1.weight", ".weight") for name in last}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    model, told = BertModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not told["missing_keys"]
    assert torch.equal(model.pooler.dense.weight, wanted["pooler.dense.weight"])


def test_a_file_of_which_nothing_is_left_is_not_written(bert, tmp_path):
    small = compressed(bert, tmp_path / "small")
    state = load_file(small / "eckart.safetensors")
    (small / "eckart.safetensors").unlink()
    last = {name for name in state if name.endswith(".1.weight")}
    files = {
        "model-00001-of-00002.safetensors": state.keys() - last,
        "model-00002-of-00002.safetensors": last,
    }
    for file, names in files.items():
        save_file({name: state[name] for name in names}, small / file)
    index = {"weight_map": {name: file for file, names in files.items() for name in names}}
    (small / "model.safetensors.index.json").write_text(json.dumps(index))
    written = expand(small, tmp_path / "dense")

    assert [path.name for path in written[:2]] == [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert shapes(tmp_path / "dense") == shapes(bert)
    assert not BertModel.from_pretrained(tmp_path / "dense", output_loading_info=True)[1]["missing_keys"]


def test_factors_that_nothing_lists_are_saved_dense_as_the_refusal_says(bert, tmp_path):
    small = compressed(bert, tmp_path / "small")
    expand(small, tmp_path / "dense")
    without_metadata(small)
    shutil.copy(bert / "config.json", small)
    with pytest.raises(InputError, match="look like factors"):
        expand(small, tmp_path / "again")
    model = load_compressed(BertModel(BERT), small, dequantize=True)
    model.save_pretrained(tmp_path / "again")

    assert shapes(tmp_path / "again") == shapes(bert)
    wanted = load_file(tmp_path / "dense" / "model.safetensors")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert all(close(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("version", [1, 2])
def test_a_config_that_is_not_understood_is_refused_with_what_it_says(bert, tmp_path, version):
    small = compressed(bert, tmp_path / "small")
    without_metadata(small)
    config = json.loads((small / "config.json").read_text())
    config["quantization_config"] |= {"version": version, "layers": {"a": {"shape": [1, 1]}}}
    (small / "config.json").write_text(json.dumps(config))
    field = {1: "layers/a/rank", 2: "version"}[version]
    with pytest.raises(LoadError, match=f"does not understand the quantization_config.*{field}"):
        expand(small, tmp_path / "dense")


def test_an_adapter_is_merged_by_peft_instead(bert, tmp_path):
    base, tuned = bert / "model.safetensors", tmp_path / "tuned.safetensors"
    save_file({name: tensor + torch.rand_like(tensor) for name, tensor in load_file(base).items()}, tuned)
    adapter = compressed(tuned, tmp_path / "adapter", base=base, layout="adapter", rank=2)
    for given in (adapter, adapter / "adapter_model.safetensors"):
        with pytest.raises(InputError, match=r"adapter.*merge it by PEFT"):
            expand(given, tmp_path / "dense")


def test_a_damaged_file_is_refused_before_anything_is_written(tmp_path):
    state, layers = factored({"a.weight": torch.randn(8, 8)}, "a")
    del state["a.1.weight"]

    with pytest.raises(LoadError, match="the factors of a have the shapes"):
        expand(write(tmp_path / "x.safetensors", state, layers), tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_the_command_line_expands_and_names_the_files(bert, tmp_path, capsys):
    small = compressed(bert / "model.safetensors", tmp_path / "small")
    assert main(["expand", str(small / "model.safetensors"), str(tmp_path / "dense.safetensors")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'dense.safetensors'}\n"
    assert main(["expand", str(small), str(tmp_path / "again"), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert str(tmp_path / "again" / "model.safetensors") in files

    assert main(["expand", str(small), str(small)]) == 1
    assert "is there already; name another file, or a new or empty folder" in capsys.readouterr().err
