"""eckart/transformers: `from_pretrained` of folders that a job made."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file

import eckart.transformers  # noqa: F401 - registers the method
from eckart.torch import LowRankConv1D, LowRankLinear
from eckart.transformers import EckartConfig
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
    torch.manual_seed(5)
    model, run = MODELS[request.param]()
    base = tmp_path_factory.mktemp(request.param)
    return Folder(model, run, base)


class Folder:
    """A model saved in `dense`, compressed in `compressed`, and the product of its factors in `product`."""

    def __init__(self, model, run, base, **spec):
        self.kind, self.run = type(model), run
        self.dense, self.compressed, self.product = (
            base / name for name in ("dense", "compressed", "product")
        )
        model.eval().save_pretrained(self.dense)
        self.report = compress_local(
            self.dense,
            self.compressed,
            CompressionSpec.model_validate({"rank": {"ratio": 0.5}, **spec}),
            device=torch.device("cpu"),
            observe=lambda progress: None,
        )
        shutil.copytree(self.dense, self.product)
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


def factors_in(folder):
    """Return the factored layers as the folder's config.json lists them."""
    return json.loads((folder / CONFIG_NAME).read_text())["quantization_config"]["layers"]


def multiplied_out(folder):
    """Multiply the factors in the compressed file with numpy, under the names of the input."""
    stored = load_file(folder.compressed / "eckart.safetensors")
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
