"""eckart/transformers: `from_pretrained` of folders that a job made."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import eckart.transformers  # noqa: F401 - registers the method
from eckart import EckartError, LoadError
from eckart.torch import LowRankConv1D, LowRankLinear
from eckart.transformers import EckartConfig
from examples import minilm
from schemas.format.companion import CONFIG_NAME
from schemas.planning.model_folder import MISSING_WEIGHTS
from schemas.spec import CompressionSpec
from worker.local import compress_local

FIVE = Version(transformers.__version__) >= Version("5")
SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Transformers and torch warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore:::transformers", "ignore:::torch", "ignore:::accelerate")


def ids():
    return torch.arange(1, 13).reshape(2, 6)


def llama(**changes):
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64, **changes
    )
    return transformers.LlamaForCausalLM(config), lambda model: model(ids()).logits


def bert():
    config = transformers.BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=64)
    return transformers.BertForMaskedLM(config), lambda model: model(ids()).logits


def t5():
    config = transformers.T5Config(
        vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    return model, lambda model: model(input_ids=ids(), decoder_input_ids=ids()).logits


def gpt2():
    config = transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config), lambda model: model(ids()).logits


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=61,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    features = torch.linspace(-1, 1, 2 * 8 * 32).reshape(2, 8, 32)
    return model, lambda model: model(input_features=features, decoder_input_ids=ids()).logits


def mixtral():
    config = transformers.MixtralConfig(
        **SIZES,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    return transformers.MixtralForCausalLM(config), lambda model: model(ids()).logits


MODELS = {"llama": llama, "bert": bert, "t5": t5, "gpt2": gpt2, "whisper": whisper, "mixtral": mixtral}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    """Return a folder that a job made of a model with random weights, and what that model computes."""
    return make(tmp_path_factory.mktemp(request.param), request.param)


class Folder:
    """A model saved in `dense`, compressed in `compressed`, and the product of its factors in `product`."""

    def __init__(self, model, run, base, *, dense=None, max_shard_size="1GB", **spec):
        self.kind, self.run = type(model), run
        self.dense, self.compressed, self.product = (
            base / name for name in ("dense", "compressed", "product")
        )
        if dense is None:
            model.eval().save_pretrained(self.dense, max_shard_size=max_shard_size)
        else:
            self.dense = dense
        self.report = compress_local(
            self.dense,
            self.compressed,
            CompressionSpec.model_validate({"rank": {"ratio": 0.5}, **spec}),
            device=torch.device("cpu"),
            observe=lambda progress: None,
        )
        shutil.copytree(self.dense, self.product, ignore=shutil.ignore_patterns("*.safetensors*"))
        save_file(multiplied_out(self), self.product / "model.safetensors", metadata={"format": "pt"})

    def load(self, path=None, **options):
        """Load a folder with the class that it was saved from; experts are multiplied out with a warning."""
        experts = FIVE and "Mixtral" in self.kind.__name__ and not options.get("quantization_config")
        with pytest.warns(UserWarning, match="loaded with dense weights") if experts else nullcontext():
            return self.kind.from_pretrained(path or self.compressed, **options)

    @property
    def expected(self):
        with torch.no_grad():
            return self.run(self.kind.from_pretrained(self.product))

    def computed(self, model):
        with torch.no_grad():
            return self.run(model)


def make(base, name, **options):
    """Return a folder that a job made of one of the models with random weights."""
    torch.manual_seed(5)
    return Folder(*MODELS[name](), base, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shared"), "llama")


def change_config(folder, changes):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def factors_in(folder):
    """Return the factored layers as the folder's config.json lists them."""
    return json.loads((folder / CONFIG_NAME).read_text())["quantization_config"]["layers"]


def multiplied_out(folder):
    """Multiply the factors in the compressed file with numpy, under the names of the input."""
    stored = {}
    for file in folder.compressed.glob("*.safetensors"):
        stored |= load_file(file)
    for name, entry in factors_in(folder.compressed).items():
        first, last = (stored.pop(f"{name}.{i}.weight").double().numpy() for i in (0, 1))
        product = first @ last if entry.get("transposed") else last @ first
        stored[f"{name}.weight"] = torch.from_numpy(product).float()
        if f"{name}.1.bias" in stored:
            stored[f"{name}.bias"] = stored.pop(f"{name}.1.bias")
    return stored


def low_rank_layers(model):
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear | LowRankConv1D)
    }


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


@pytest.mark.parametrize("dense", [False, True])
def test_what_save_pretrained_writes_loads_again(folder, dense, tmp_path):
    options = {"quantization_config": EckartConfig(dequantize=True)} if dense else {}
    model = folder.load(**options)
    model.save_pretrained(tmp_path)
    again = folder.kind.from_pretrained(tmp_path)
    assert low_rank_layers(again).keys() == low_rank_layers(model).keys()
    assert torch.equal(folder.computed(again), folder.computed(model))
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert config.get("transformers_weights") == (None if dense else MISSING_WEIGHTS)


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
    quantization = json.loads((shared.compressed / CONFIG_NAME).read_text())["quantization_config"]
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


def test_a_fine_tuned_model_loads_with_what_it_learnt(shared, tmp_path):
    model = shared.load()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids(), labels=ids()).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    again = shared.kind.from_pretrained(tmp_path)
    assert torch.equal(shared.computed(again), shared.computed(model))
    assert not torch.equal(shared.computed(again), shared.expected)


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


def test_a_config_that_is_saved_alone_asks_for_the_missing_file_too(shared, tmp_path):
    transformers.AutoConfig.from_pretrained(shared.compressed).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert saved["transformers_weights"] == MISSING_WEIGHTS
    assert saved["quantization_config"]["layers"] == factors_in(shared.compressed)


def test_one_config_object_loads_a_folder_in_both_ways(shared):
    config = transformers.AutoConfig.from_pretrained(shared.compressed)
    dense = EckartConfig(dequantize=True)
    counts = [
        len(low_rank_layers(shared.kind.from_pretrained(shared.compressed, config=config, **options)))
        for options in ({}, {"quantization_config": dense}, {}, {"quantization_config": dense})
    ]
    assert counts[0] == counts[2] > 0
    assert counts[1] == counts[3] == 0


def test_a_trainer_goes_on_from_what_it_saved(shared, tmp_path):
    pytest.importorskip("accelerate")
    data = [{"input_ids": torch.arange(1, 7), "labels": torch.arange(1, 7)}] * 2
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_steps": 1}
    for steps, resume in ((1, None), (2, str(tmp_path / "checkpoint-1"))):
        arguments = transformers.TrainingArguments(str(tmp_path), max_steps=steps, **options)
        model = shared.load()
        transformers.Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=resume)
    again = shared.kind.from_pretrained(tmp_path / "checkpoint-2")
    assert low_rank_layers(again)
    assert torch.equal(shared.computed(again), shared.computed(model.eval()))


def test_other_models_load_and_save_as_ever(tmp_path):
    torch.manual_seed(1)
    model, run = llama()
    model.eval().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert config.keys().isdisjoint({"transformers_weights", "quantization_config"})
    assert torch.equal(run(type(model).from_pretrained(tmp_path)), run(model))


def test_another_quantization_config_is_refused_as_ever(shared):
    with pytest.raises(ValueError, match="quantized with EckartConfig but you are passing"):
        shared.load(quantization_config=transformers.GPTQConfig(bits=4))


def test_a_dense_folder_cannot_be_asked_for_the_method(shared):
    with pytest.raises(ValueError, match="pre-quantized"):
        shared.kind.from_pretrained(shared.dense, quantization_config=EckartConfig())


def test_a_repository_in_the_cache_of_the_hub_loads(shared, tmp_path, monkeypatch):
    commit = "0" * 40
    place = tmp_path / "models--someone--small"
    shutil.copytree(shared.compressed, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    model = shared.kind.from_pretrained("someone/small", **options)
    assert low_rank_layers(model)
    assert torch.equal(shared.computed(model), shared.computed(shared.load()))


def test_a_subfolder_and_a_variant_load(shared, tmp_path):
    parent = shared.compressed.parent
    model = shared.kind.from_pretrained(parent, subfolder=shared.compressed.name, variant="fp16")
    assert low_rank_layers(model)
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "model.fp16.safetensors").is_file()
    again = shared.kind.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(shared.computed(again), shared.computed(model))


def test_a_state_dict_loads_with_the_folders_config(shared):
    config = transformers.AutoConfig.from_pretrained(shared.compressed)
    state = load_file(shared.compressed / "eckart.safetensors")
    model = shared.kind.from_pretrained(None, config=config, state_dict=state)
    assert torch.equal(shared.computed(model), shared.computed(shared.load()))


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


DAMAGES = {
    "factors are missing": lambda state: state.pop("model.layers.0.mlp.up_proj.1.weight"),
    "a layer is missing": lambda state: [state.pop(f"model.layers.0.mlp.up_proj.{i}.weight") for i in (0, 1)],
    "a factor has another rank": lambda state: state.update(
        {"model.layers.0.mlp.up_proj.1.weight": torch.ones(48, 3)}
    ),
    "a layer is dense": lambda state: state.update({"model.layers.0.mlp.up_proj.weight": torch.ones(48, 32)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(shared, tmp_path, damage):
    shutil.copytree(shared.compressed, tmp_path / "damaged")
    path = tmp_path / "damaged" / "eckart.safetensors"
    state = load_file(path)
    DAMAGES[damage](state)
    save_file(state, path, metadata={"format": "pt"})
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(LoadError, match=r"model\.layers\.0\.mlp\.up_proj.*damaged"):
            shared.kind.from_pretrained(tmp_path / "damaged", **options)


def test_a_cut_file_is_refused(shared, tmp_path):
    shutil.copytree(shared.compressed, tmp_path / "cut")
    path = tmp_path / "cut" / "eckart.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises((EckartError, SafetensorError), match="incomplete"):
        shared.kind.from_pretrained(tmp_path / "cut")


def test_a_config_of_another_result_is_refused(shared, tmp_path):
    shutil.copytree(shared.compressed, tmp_path / "mixed")
    quantization = json.loads((tmp_path / "mixed" / CONFIG_NAME).read_text())["quantization_config"]
    del quantization["layers"]["model.layers.1.mlp.down_proj"]
    change_config(tmp_path / "mixed", {"quantization_config": quantization})
    with pytest.raises(LoadError, match=r"lacks factored layers of the files: model.layers.1.mlp.down_proj"):
        shared.kind.from_pretrained(tmp_path / "mixed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version.*upgrade eckart"),
        ({"layers": {"x": {"method": "svd"}}}, "layers/x/rank.*upgrade eckart"),
        ({"layers": 3}, "layers"),
    ],
)
def test_a_folder_of_another_version_is_refused(shared, tmp_path, change, message):
    shutil.copytree(shared.compressed, tmp_path / "newer")
    quantization = json.loads((tmp_path / "newer" / CONFIG_NAME).read_text())["quantization_config"]
    change_config(tmp_path / "newer", {"quantization_config": quantization | change})
    with pytest.raises(LoadError, match=message):
        shared.kind.from_pretrained(tmp_path / "newer")


def test_fields_of_a_newer_release_are_let_by(shared, tmp_path):
    shutil.copytree(shared.compressed, tmp_path / "newer")
    quantization = json.loads((tmp_path / "newer" / CONFIG_NAME).read_text())["quantization_config"]
    quantization["note"] = "later"
    for entry in quantization["layers"].values():
        entry["note"] = "later"
    change_config(tmp_path / "newer", {"quantization_config": quantization})
    model = shared.kind.from_pretrained(tmp_path / "newer")
    assert torch.equal(shared.computed(model), shared.computed(shared.load()))


def test_offloading_to_disk_is_refused(shared, tmp_path):
    with pytest.raises(LoadError, match=r"disk.*dequantize=True"):
        shared.kind.from_pretrained(shared.compressed, device_map={"": "disk"}, offload_folder=str(tmp_path))


WITHOUT_IMPORT = """
import json, sys
from os.path import basename, dirname
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
folders, dense, repository = json.loads(sys.argv[1])
plain = AutoConfig.from_pretrained(dense)
calls = {
    "auto": lambda path: AutoModelForCausalLM.from_pretrained(path),
    "base": lambda path: AutoModel.from_pretrained(path),
    "ignored sizes": lambda path: AutoModel.from_pretrained(path, ignore_mismatched_sizes=True),
    "variant": lambda path: AutoModel.from_pretrained(path, variant="fp16"),
    "pickle": lambda path: AutoModel.from_pretrained(path, use_safetensors=False),
    "safetensors": lambda path: AutoModel.from_pretrained(path, use_safetensors=True),
    "config": lambda path: AutoModel.from_pretrained(path, config=AutoConfig.from_pretrained(path)),
    "subfolder": lambda path: AutoModel.from_pretrained(dirname(path), subfolder=basename(path)),
    "device map": lambda path: AutoModel.from_pretrained(path, device_map="auto"),
    "bfloat16": lambda path: AutoModel.from_pretrained(path, torch_dtype="bfloat16"),
}
results = {}
def attempt(label, call):
    try:
        call()
        results[label] = "loaded"
    except Exception as error:
        results[label] = str(error)
for folder in folders:
    for name, call in calls.items():
        attempt(f"{name} {folder}", lambda: call(folder))
cached = {"cache_dir": repository, "local_files_only": True}
attempt("cache", lambda: AutoModel.from_pretrained("someone/small", **cached))
attempt("plain", lambda: AutoModel.from_pretrained(folders[0], config=plain))
assert not any(name.startswith("eckart") for name in sys.modules)
print(json.dumps(results))
"""


def test_without_the_import_transformers_fails_and_says_what_is_missing(shared, tmp_path):
    shared.load().save_pretrained(tmp_path / "saved")
    sharded = make(tmp_path / "sharded", "llama", max_shard_size="20KB")
    cached = tmp_path / "models--someone--small"
    shutil.copytree(shared.compressed, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    folders = [str(path) for path in (shared.compressed, sharded.compressed, tmp_path / "saved")]
    arguments = json.dumps([folders, str(shared.dense), str(tmp_path)])
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_IMPORT, arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    results = json.loads(found.stdout.splitlines()[-1])
    assert len(results) == 32
    assert "loaded" not in results.values()
    # These two find no weights at all, so that they do not name the file.
    unnamed = {name for name, text in results.items() if MISSING_WEIGHTS not in text}
    assert unnamed <= {"plain", "cache"}
