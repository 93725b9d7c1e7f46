"""eckart/transformers: `from_pretrained` of folders that a job made."""

import shutil
import sys
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from eckart import LoadError
from eckart.torch import LowRankConv1D
from eckart.transformers import EckartConfig
from examples import minilm
from tests.eckart.torch.factoring import factored
from tests.eckart.transformers.folders import (
    FIVE,
    QUIET,
    SIZES,
    Folder,
    bert,
    change_config,
    factors_in,
    gpt2,
    ids,
    low_rank_layers,
    make,
    mixtral,
    quantization_of,
)

pytestmark = QUIET


def test_a_folder_computes_what_the_product_of_its_factors_does(folder):
    model = folder.load()
    assert low_rank_layers(model)
    torch.testing.assert_close(folder.computed(model), folder.expected, rtol=0, atol=1e-5)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_folder_can_be_loaded_with_dense_weights(folder):
    model = folder.load(quantization_config=EckartConfig(dequantize=True))
    assert not low_rank_layers(model)
    torch.testing.assert_close(folder.computed(model), folder.expected, rtol=0, atol=1e-5)
    assert not hasattr(model.config, "quantization_config")


def test_a_base_model_takes_a_folder_with_a_head(tmp_path):
    folder = make(tmp_path, "llama")
    base = transformers.AutoModel.from_pretrained(folder.compressed)
    expected = transformers.AutoModel.from_pretrained(folder.product)
    assert low_rank_layers(base)
    with torch.no_grad():
        torch.testing.assert_close(
            base(ids()).last_hidden_state, expected(ids()).last_hidden_state, rtol=0, atol=1e-5
        )
    base.save_pretrained(tmp_path / "base")
    again = folder.kind.from_pretrained(tmp_path / "base")
    assert set(low_rank_layers(again)) == {f"model.{name}" for name in low_rank_layers(base)}


def test_a_model_with_a_new_head_takes_a_base_folder(tmp_path):
    torch.manual_seed(2)
    model, _ = bert()
    folder = Folder(model.bert, lambda model: model(ids()).last_hidden_state, tmp_path)
    found = transformers.AutoModelForSequenceClassification.from_pretrained(folder.compressed)
    assert low_rank_layers(found)
    torch.testing.assert_close(folder.computed(found.bert), folder.expected, rtol=0, atol=1e-5)
    # A new head is drawn as in any model, and is not what lay in memory.
    assert 0.005 < found.classifier.weight.std() < 0.05
    assert not found.classifier.bias.any()
    assert not any(parameter.is_meta for parameter in found.parameters())


def test_the_file_of_the_hub_without_a_prefix_loads_with_a_head(tmp_path):
    """GPT-2's file on the hub also has the masks of an old release."""
    torch.manual_seed(2)
    model, _ = gpt2()
    model.transformer.save_pretrained(tmp_path / "hub")
    state = load_file(tmp_path / "hub" / "model.safetensors")
    mask = torch.ones(64, 64).tril()[None, None]
    state |= {f"h.{block}.attn.bias": mask.clone() for block in (0, 1)}
    save_file(state, tmp_path / "hub" / "model.safetensors", metadata={"format": "pt"})
    folder = Folder(
        model.transformer, lambda model: model(ids()).last_hidden_state, tmp_path, dense=tmp_path / "hub"
    )
    assert "h.0.attn.c_attn" in factors_in(folder.compressed)
    assert "h.0.attn.bias" in load_file(folder.compressed / "eckart.safetensors")

    found = transformers.GPT2LMHeadModel.from_pretrained(folder.compressed)
    layers = low_rank_layers(found)
    assert len(layers) == 8
    assert all(isinstance(layer, LowRankConv1D) for layer in layers.values())
    torch.testing.assert_close(folder.computed(found.transformer), folder.expected, rtol=0, atol=1e-5)
    assert torch.equal(found.lm_head.weight, found.transformer.wte.weight)


@pytest.fixture
def foreign(shared, tmp_path):
    """Return a folder whose names are not those of the class."""
    shutil.copytree(shared.compressed, tmp_path / "foreign")
    path = tmp_path / "foreign" / "eckart.safetensors"
    state = {f"net.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    quantization = quantization_of(shared.compressed)
    layers = {f"net.{name}": entry for name, entry in quantization["layers"].items()}
    change_config(tmp_path / "foreign", {"quantization_config": quantization | {"layers": layers}})
    return tmp_path / "foreign"


@pytest.mark.skipif(not FIVE, reason="transformers 4 asks for a prefix before it maps names")
def test_a_key_mapping_renames_factors_too(shared, foreign):
    model = shared.kind.from_pretrained(foreign, key_mapping={r"^net\.": ""})
    assert low_rank_layers(model).keys() == low_rank_layers(shared.load()).keys()
    assert torch.equal(shared.computed(model), shared.computed(shared.load()))


def test_a_model_without_any_of_the_factored_layers_is_refused(shared, foreign):
    with pytest.raises(LoadError, match=r"none of the folder's factored layers, net\.lm_head.*key_mapping"):
        shared.kind.from_pretrained(foreign, ignore_mismatched_sizes=True)


QUERY = "model.layers.0.self_attn.q_proj"


def factored_again(tensors, layers):
    """Factor the factors of one layer, as a service does that does not know them."""
    again, found = factored(tensors, f"{QUERY}.0", f"{QUERY}.1")
    del layers[QUERY]
    return again, layers | {name: {k: entry[k] for k in ("rank", "shape")} for name, entry in found.items()}


def unlisted(tensors, layers):
    del layers[QUERY]
    return tensors, layers


def all_unlisted(tensors, _layers):
    return tensors, {}


def a_bias_alone(tensors, layers):
    del layers[QUERY]
    bias = {f"{QUERY}.bias": torch.ones(32)}
    return {name: t for name, t in tensors.items() if not name.startswith(QUERY)} | bias, layers


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("damage", [factored_again, unlisted, all_unlisted, a_bias_alone])
def test_a_weight_that_the_files_hold_in_another_form_is_never_random(shared, tmp_path, damage, dense):
    folder = tmp_path / "damaged"
    shutil.copytree(shared.compressed, folder)
    file = folder / "eckart.safetensors"
    tensors, layers = damage(load_file(file), factors_in(folder))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    change_config(folder, {"quantization_config": quantization_of(folder) | {"layers": layers}})
    options = {"quantization_config": EckartConfig(dequantize=True)} if dense else {}
    with pytest.raises(LoadError, match=r"fill .*weight.* random numbers.*Compress the original"):
        shared.kind.from_pretrained(folder, **options)


def test_shards_load(tmp_path):
    folder = make(tmp_path, "llama", max_shard_size="20KB")
    assert (folder.compressed / "eckart.safetensors.index.json").is_file()
    model = folder.load()
    assert low_rank_layers(model)
    torch.testing.assert_close(folder.computed(model), folder.expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.bfloat16},
        {"torch_dtype": torch.bfloat16},
        {"dtype": "bfloat16", "device_map": "cpu"},
        {"device_map": "auto", "torch_dtype": "bfloat16", "low_cpu_mem_usage": True},
    ],
    ids=str,
)
def test_dtypes_and_placement_are_those_of_any_model(shared, options):
    model = shared.load(**options)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert low_rank_layers(model)
    expected = shared.kind.from_pretrained(shared.product, **options)
    with torch.no_grad():
        torch.testing.assert_close(shared.run(model), shared.run(expected), rtol=0.1, atol=0.1)


def test_a_model_is_an_ordinary_one_after_loading(shared):
    model = shared.load()
    assert not getattr(model, "is_quantized", False)
    expected = shared.computed(model)
    assert {parameter.dtype for parameter in model.half().parameters()} == {torch.float16}
    model.float().train()
    model(ids(), labels=ids()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(shared.computed(model), expected, rtol=0.01, atol=0.01)


def test_generation_runs(shared):
    options = {"max_new_tokens": 3, "do_sample": False}
    expected = shared.kind.from_pretrained(shared.product).generate(ids(), **options)
    assert torch.equal(shared.load().generate(ids(), **options), expected)


def test_sentence_transformers_and_pipelines_run_on_a_folder(tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    source = minilm.installed("modules.json").parent
    folder = Folder(None, None, tmp_path, dense=source, include=["*layer.5.*"])
    for path in (folder.compressed, folder.product):
        shutil.copytree(source / "1_Pooling", path / "1_Pooling", dirs_exist_ok=True)
    text = ["A compressed model is a model."]
    paths = [str(folder.compressed), str(folder.product)]
    found, expected = (sentences.SentenceTransformer(path, device="cpu") for path in paths)
    assert low_rank_layers(found)
    torch.testing.assert_close(found.encode(text), expected.encode(text), rtol=0, atol=1e-5)
    found, expected = (transformers.pipeline("feature-extraction", path, device="cpu") for path in paths)
    assert low_rank_layers(found.model)
    torch.testing.assert_close(found(text), expected(text), rtol=0, atol=1e-5)


def test_peft_trains_on_top(shared):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=r".*_proj\.1", r=2)
    model = peft.get_peft_model(shared.load(), config)
    model(input_ids=ids(), labels=ids()).loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_layer_with_a_forward_of_its_own_stays_dense(tmp_path, monkeypatch):
    folder = make(tmp_path, "llama")

    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    modeling = sys.modules[transformers.LlamaModel.__module__]
    monkeypatch.setattr(modeling.LlamaMLP, "__init__", replaced(modeling.LlamaMLP.__init__, Doubling))
    with pytest.warns(UserWarning, match="2 factored layers are loaded with dense weights") as seen:
        model = folder.kind.from_pretrained(folder.compressed)
    (message,) = [text for warning in seen if "factored layers" in (text := str(warning.message))]
    assert "model.layers.1.mlp.up_proj: its Doubling is no linear layer" in message
    assert type(model.model.layers[0].mlp.up_proj) is Doubling
    torch.testing.assert_close(folder.computed(model), folder.expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert not any("up_proj" in name for name in factors_in(tmp_path / "again"))
    assert torch.equal(
        folder.computed(folder.kind.from_pretrained(tmp_path / "again")), folder.computed(model)
    )


def replaced(original, kind):
    """Return an `__init__` that makes the up projection one of another class."""

    def init(self, config, *args, **kwargs):
        original(self, config, *args, **kwargs)
        self.up_proj = kind(self.up_proj.in_features, self.up_proj.out_features, bias=False)

    return init


def test_a_tied_head_stays_dense(tmp_path):
    """The job saw an untied model; the user's config ties the head to the embedding."""
    folder = make(tmp_path, "llama")
    change_config(folder.compressed, {"tie_word_embeddings": True})
    change_config(folder.product, {"tie_word_embeddings": True})
    with pytest.warns(UserWarning, match="lm_head: it is tied to another weight"):
        model = folder.kind.from_pretrained(folder.compressed)
    assert "lm_head" not in low_rank_layers(model)
    torch.testing.assert_close(folder.computed(model), folder.expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not FIVE, reason="transformers 4 has modules for experts")
def test_a_stack_may_hold_dense_and_factored_experts(tmp_path):
    torch.manual_seed(4)
    model, run = mixtral()
    folder = Folder(model, run, tmp_path, exclude=["*embed*", "*experts.1*"])
    listed = factors_in(folder.compressed)
    assert any("experts.0" in name for name in listed)
    assert not any("experts.1" in name for name in listed)
    loaded = folder.load()
    torch.testing.assert_close(folder.computed(loaded), folder.expected, rtol=0, atol=1e-5)


def test_a_new_head_may_have_another_size(tmp_path):
    torch.manual_seed(2)
    config = transformers.BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=64, num_labels=20)
    model = transformers.BertForSequenceClassification(config)
    folder = Folder(model, lambda model: model.bert(ids()).last_hidden_state, tmp_path)
    assert "classifier" in factors_in(folder.compressed)
    with pytest.raises(RuntimeError, match="mismatch"), warnings.catch_warnings(action="ignore"):
        folder.kind.from_pretrained(folder.compressed, num_labels=5)
    with pytest.warns(UserWarning, match="classifier: it has another shape in the model"):
        found = folder.kind.from_pretrained(folder.compressed, num_labels=5, ignore_mismatched_sizes=True)
    assert found.classifier.weight.shape == (5, 32)
    assert 0.005 < found.classifier.weight.std() < 0.05
    torch.testing.assert_close(folder.computed(found), folder.expected, rtol=0, atol=1e-5)


def test_offloading_to_disk_is_refused(shared, tmp_path):
    with pytest.raises(LoadError, match=r"disk.*dequantize=True"):
        shared.kind.from_pretrained(shared.compressed, device_map={"": "disk"}, offload_folder=str(tmp_path))
