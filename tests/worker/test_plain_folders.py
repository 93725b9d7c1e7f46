"""worker/companions.py: folders of integers alone, which stock transformers loads right or not at all."""

import json
import re
import sys

import pytest
import torch
import transformers
from transformers.utils.import_utils import is_compressed_tensors_available

from eckart.torch import load_compressed
from schemas.format.companion import CARD_NAME, CONFIG_NAME

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": 1}
HEADS = {"num_key_value_heads": 2, "head_dim": 16}
OWN_SIZES = {
    "DistilBert": {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "T5": {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
    "GPT2": {"vocab_size": 60, "n_positions": 40, "n_embd": 32, "n_layer": 1, "n_head": 2},
    "ViT": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    | {"image_size": 16, "patch_size": 8},
    "Mixtral": SIZES | HEADS | {"num_local_experts": 2},
    "Llama": SIZES | HEADS,
    "Qwen3": SIZES | HEADS,
}
DENSE_LAYERS = ["*embed*", "lm_head", "*.decoder", "*.0.*"]


@pytest.fixture
def saved(tmp_path):
    """Return a function that makes a small model of a class, and the folder that it saves."""

    def make(name, dtype=torch.float32, **options):
        torch.manual_seed(3)
        model_class = getattr(transformers, name)
        family = re.match(r"[A-Za-z0-9]+?(?=Model|For|LMHead)", name)[0]
        model = model_class(model_class.config_class(**OWN_SIZES.get(family, SIZES) | options)).to(dtype)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def quantization(result):
    return json.loads((result.directory / CONFIG_NAME).read_text())["quantization_config"]


def outputs(model):
    """Return the model's first output, which also makes compressed-tensors decode the weights."""
    with torch.no_grad():
        return model(torch.arange(4, 13)[None])[0]


def assert_loads_alike(found, expected, **options):
    """Check that stock transformers makes the same model of both results."""
    left, told = found.from_pretrained(options["plain"].directory, output_loading_info=True)
    torch.manual_seed(5)
    right, expected_told = expected.from_pretrained(options["dense"].directory, output_loading_info=True)
    known = expected_told["missing_keys"]
    assert told["missing_keys"] == known
    assert torch.isfinite(outputs(left)).all()
    if not known:
        torch.testing.assert_close(outputs(left), outputs(right), rtol=0, atol=1e-6)
    mine = left.state_dict()
    for name, value in right.state_dict().items():
        assert name in known or torch.equal(mine[name], value), name


@pytest.mark.parametrize(
    ("name", "loaded_as", "options"),
    [
        ("BertModel", "BertModel", {"method": "int8"}),
        ("BertModel", "BertForMaskedLM", {"method": "int3", "group": 32}),
        ("BertForMaskedLM", "BertForMaskedLM", {"method": "int8"}),
        ("BertForMaskedLM", "BertForMaskedLM", {"method": "int4", "group": 32}),
        ("BertForMaskedLM", "BertForMaskedLM", {"method": "int3", "group": 32, "exclude": DENSE_LAYERS}),
        ("BertForMaskedLM", "BertModel", {"method": "int8", "exclude": DENSE_LAYERS}),
        ("RobertaForMaskedLM", "RobertaForMaskedLM", {"method": "int4", "group": 32}),
        ("RobertaForSequenceClassification", "RobertaForSequenceClassification", {"method": "int8"}),
        ("ElectraForMaskedLM", "ElectraForMaskedLM", {"method": "int8"}),
        ("MPNetModel", "MPNetForMaskedLM", {"method": "int8"}),
        ("DistilBertForMaskedLM", "DistilBertForMaskedLM", {"method": "int8"}),
        ("DistilBertModel", "DistilBertForMaskedLM", {"method": "int4", "group": 32}),
        ("LlamaForCausalLM", "LlamaModel", {"method": "int8"}),
        ("LlamaModel", "LlamaForQuestionAnswering", {"method": "int8"}),
        ("Qwen3ForCausalLM", "Qwen3ForCausalLM", {"method": "int3", "group": 32, "exclude": DENSE_LAYERS}),
    ],
)
def test_stock_transformers_loads_the_numbers_of_the_dense_layout(saved, compress, name, loaded_as, options):
    """A class that loads the files of another may have a prefix more, or less, and a head that is tied."""
    folder = saved(name)
    plain, dense = compress(folder, **options), compress(folder, layout="dense", **options)

    assert quantization(plain)["quant_method"] == "compressed-tensors"
    model_class = getattr(transformers, loaded_as)
    assert_loads_alike(model_class, model_class, plain=plain, dense=dense)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_is_rounded_only_where_it_is_not_tied(saved, compress, tied, dtype):
    folder = saved("LlamaForCausalLM", dtype, tie_word_embeddings=tied)
    plain, dense = (
        compress(folder, method="int8", exclude=["*embed*"], layout=x) for x in ("factored", "dense")
    )

    targets = quantization(plain)["config_groups"]["group_0"]["targets"]
    assert any("lm_head" in target for target in targets) == (not tied)
    assert ("lm_head" in quantization(plain)["ignore"]) == tied
    model_class = transformers.LlamaForCausalLM
    assert_loads_alike(model_class, model_class, plain=plain, dense=dense)


def test_layers_whose_width_no_group_divides_stay_what_they_are(saved, compress):
    folder = saved("BertModel", intermediate_size=40)
    plain, dense = (compress(folder, method="int4", group=32, layout=x) for x in ("factored", "dense"))

    kept = [layer.name for layer in plain.report.layers if layer.reason == "group"]
    assert kept == [f"encoder.layer.{number}.output.dense" for number in range(2)]
    assert set(kept) <= set(quantization(plain)["ignore"])
    assert_loads_alike(transformers.BertModel, transformers.BertModel, plain=plain, dense=dense)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("T5ForConditionalGeneration", {}),
        ("GPT2LMHeadModel", {}),
        ("ViTModel", {}),
        ("MixtralForCausalLM", {}),
        ("BertForMaskedLM", {"exclude": []}),
    ],
    ids=["decodes too late", "no Linear", "renamed", "stacked experts", "embeddings"],
)
def test_what_stock_transformers_would_load_wrong_it_does_not_find(saved, compress, name, options):
    result = compress(saved(name), method="int8", **options)

    assert quantization(result)["quant_method"] == "eckart"
    assert not (result.directory / "model.safetensors").exists()
    sought = json.loads((result.directory / CONFIG_NAME).read_text())["transformers_weights"]
    assert sought.startswith("import-eckart")
    assert not (result.directory / sought).exists()


def test_without_the_package_transformers_says_what_to_install(saved, compress, monkeypatch):
    result = compress(saved("BertModel"), method="int8")
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    is_compressed_tensors_available.cache_clear()
    try:
        with pytest.raises(ImportError, match="pip install compressed-tensors"):
            transformers.BertModel.from_pretrained(result.directory)
    finally:
        is_compressed_tensors_available.cache_clear()
    assert "pip install compressed-tensors" in (result.directory / CARD_NAME).read_text()
    assert "pip install compressed-tensors" in result.report.how_to_load


def test_load_compressed_takes_such_a_folder_too(saved, compress):
    folder = saved("BertModel")
    plain, dense = (compress(folder, method="int8", layout=x) for x in ("factored", "dense"))

    expected = transformers.BertModel.from_pretrained(dense.directory)
    found = load_compressed(transformers.BertModel(expected.config).eval(), plain.directory)
    torch.testing.assert_close(outputs(found), outputs(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "int8+svd", "rank": 2},
        {"method": "int8", "overrides": [{"match": "*.key", "method": "svd", "rank": 2}]},
        {"method": "int8", "overrides": [{"match": "*.key", "method": "int4"}], "group": 32},
    ],
    ids=["factors", "another form", "two kinds of integers"],
)
def test_integers_beside_other_forms_are_not_taken_for_another_format(saved, compress, options):
    result = compress(saved("BertModel"), **options)

    assert quantization(result)["quant_method"] == "eckart"
    assert (result.directory / "eckart.safetensors").exists()


def test_integers_in_a_folder_of_another_method_are_found_by_nobody(saved, compress):
    folder = saved("BertModel")
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    result = compress(folder, method="int8")

    assert (
        json.loads((result.directory / CONFIG_NAME).read_text())["transformers_weights"]
        == "import-eckart.transformers-first.safetensors"
    )
    assert any("keeps its own quantization_config" in warning for warning in result.report.warnings)
