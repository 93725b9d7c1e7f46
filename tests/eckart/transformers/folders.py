"""Folders that a job made of small models with random weights, and what these models compute."""

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
from schemas.format.companion import CONFIG_NAME
from tests.compression import compress

FIVE = Version(transformers.__version__) >= Version("5")
SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Transformers and torch warn of their own future.
QUIET = pytest.mark.filterwarnings("ignore:::transformers", "ignore:::torch", "ignore:::accelerate")


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
        compress(self.dense, self.compressed, **spec)
        write_product(self.compressed, self.dense, self.product)

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


def change_config(folder, changes):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def quantization_of(folder):
    return json.loads((folder / CONFIG_NAME).read_text())["quantization_config"]


def factors_in(folder):
    """Return the factored layers as the folder's config.json lists them."""
    return quantization_of(folder)["layers"]


def write_product(compressed, dense, target):
    """Multiply the factors out with numpy, and write a folder with the names and the config of the input."""
    stored = {}
    for file in compressed.glob("*.safetensors"):
        stored |= load_file(file)
    for name, entry in factors_in(compressed).items():
        first, last = (stored.pop(f"{name}.{i}.weight").double().numpy() for i in (0, 1))
        product = first @ last if entry.get("transposed") else last @ first
        stored[f"{name}.weight"] = torch.from_numpy(product).float()
        if f"{name}.1.bias" in stored:
            stored[f"{name}.bias"] = stored.pop(f"{name}.1.bias")
    stacks = {
        name.rpartition(".")[0]: entry["experts"]
        for name, entry in factors_in(compressed).items()
        if "experts" in entry
    }
    for stack, experts in stacks.items():
        stored[stack] = torch.stack([stored.pop(f"{stack}.{number}.weight") for number in range(experts)])
    shutil.copytree(dense, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})


def low_rank_layers(model):
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear | LowRankConv1D)
    }
