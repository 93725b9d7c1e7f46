"""Adapters in PEFT: real classes load them strictly, and merged they are off by the reported error."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from examples.minilm import installed

# Transformers warns of its own future. A key that is missing is a UserWarning, and so an error.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:fan_in_fan_out is set to:UserWarning"
)
IDS = torch.arange(24).reshape(2, 12)


def llama():
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=48, n_layer=2, n_head=4))


def bert():
    config = BertConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
    )
    return BertModel(config)


CLASSES = {"llama": llama, "gpt2": gpt2, "bert": bert}


@pytest.fixture(params=CLASSES)
def pair(request):
    """Return a model, and one to fine-tune that is equal to it."""
    torch.manual_seed(0)
    base = CLASSES[request.param]().eval()
    tuned = CLASSES[request.param]().eval()
    tuned.load_state_dict(base.state_dict())
    return base, tuned


def matrices(model):
    """Return the weights of linear layers, by the name of their module."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return {
        name.removesuffix(".weight"): weight
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and id(weight) not in embeddings
    }


def save(model, folder):
    model.save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    return file


@pytest.fixture
def adapt(compress, tmp_path):
    """Return the result of a difference job on two models."""

    def run(base, tuned, **spec):
        files = save(tuned, tmp_path / "tuned"), save(base, tmp_path / "base")
        return compress(files[0], base=files[1], **{"rank": 8, "layout": "adapter"} | spec)

    return run


def load_strictly(base, result):
    """Load an adapter into its base, and check that each of its tensors is in use and none is missing."""
    model = PeftModel.from_pretrained(base, result.directory)
    used = get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = load_file(result.directory / "adapter_model.safetensors")
    assert used.keys() == stored.keys()
    assert all(torch.equal(used[name], stored[name]) for name in stored)
    scales = {scale for m in model.modules() if isinstance(m, LoraLayer) for scale in m.scaling.values()}
    assert scales == {1.0}
    return model.eval()


def outputs(model):
    found = model(IDS)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


@torch.inference_mode()
def test_an_adapter_of_a_rank_8_fine_tune_is_the_fine_tune(pair, adapt):
    base, tuned = pair
    before = {name: weight.clone() for name, weight in matrices(base).items()}
    for weight in matrices(tuned).values():
        weight.add_(0.3 * torch.randn(weight.shape[0], 8) @ torch.randn(8, weight.shape[1]) / 48)
    result = adapt(base, tuned)

    factored = {layer.name: layer for layer in result.report.layers if layer.rank}
    assert factored.keys() == matrices(tuned).keys()
    assert max(layer.relative_error for layer in factored.values()) <= 1e-5
    assert result.report.totals.relative_error <= 1e-5
    model = load_strictly(base, result)
    assert torch.allclose(outputs(model), outputs(tuned), atol=1e-4)
    merged = matrices(model.merge_and_unload())
    for name, weight in matrices(tuned).items():
        change = torch.linalg.norm(weight - before[name])
        assert torch.linalg.norm(merged[name] - weight) <= 1e-5 * change


@torch.inference_mode()
def test_layers_of_different_ranks_merge_within_their_reported_errors(pair, adapt):
    base, tuned = pair
    before = {name: weight.clone() for name, weight in matrices(base).items()}
    for number, weight in enumerate(matrices(tuned).values()):
        if number % 3:
            weight.add_(0.05 * torch.randn_like(weight) * torch.logspace(0, -2, weight.shape[1]))
    result = adapt(base, tuned, rank={"energy": 0.9})

    factored = {layer.name: layer for layer in result.report.layers if layer.rank}
    assert len({layer.rank for layer in factored.values()}) > 2
    assert {x.reason for x in result.report.layers} == {None, "unchanged"}
    merged = matrices(load_strictly(base, result).merge_and_unload())
    for name, weight in matrices(tuned).items():
        if name in factored:
            error = torch.linalg.norm(merged[name] - weight) / torch.linalg.norm(weight - before[name])
            assert float(error) == pytest.approx(factored[name].relative_error, rel=1e-3)
        else:
            assert torch.equal(merged[name], weight)


def test_the_config_says_what_peft_writes(adapt):
    torch.manual_seed(0)
    base, tuned = gpt2(), gpt2()
    result = adapt(base, tuned)

    config = json.loads((result.directory / "adapter_config.json").read_text())
    assert (config["peft_type"], config["bias"], config["task_type"]) == ("LORA", "none", None)
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (8, 8, {})
    assert config["fan_in_fan_out"] is True


def test_a_class_with_other_names_makes_peft_warn_of_missing_keys(adapt):
    torch.manual_seed(0)
    base, tuned = bert(), bert()
    result = adapt(base, tuned)
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        PeftModel.from_pretrained(BertForMaskedLM(base.config), result.directory)


@torch.inference_mode()
def test_an_embedding_that_a_spec_selects_is_left_out_and_named(pair, adapt):
    """PEFT has embeddings under other names, and would pass over factors without a word."""
    base, tuned = pair
    embeddings = {n for n, module in tuned.named_modules() if isinstance(module, torch.nn.Embedding)}
    for module in tuned.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.add_(torch.randn_like(module.weight) / 50)
    for weight in matrices(tuned).values():
        weight.add_(torch.randn_like(weight) / 50)
    result = adapt(base, tuned, exclude=[])

    load_strictly(base, result)
    assert {x.name for x in result.report.layers if x.reason == "embedding"} == embeddings
    (entry,) = [entry for entry in result.report.not_selected if entry.rule == "embedding"]
    assert entry.tensors == len(embeddings)
    (warning,) = [text for text in result.report.warnings if text.startswith("base:")]
    assert all(f"{name}.weight (" in warning for name in embeddings)


def fine_tune(model, steps):
    """Train all weights to tell sentences of two lengths apart."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    for _ in range(steps):
        ids = torch.randint(1000, 30000, (4, 16))
        wanted = (ids[:, :8].float().mean(1) > ids[:, 8:].float().mean(1)).float() * 2 - 1
        loss = ((model(ids).last_hidden_state[:, 0].mean(1) - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_error_of_a_real_fine_tune_is_the_best_possible_one(adapt):
    folder = Path(installed("model.safetensors")).parent
    base, tuned = (BertModel.from_pretrained(folder, num_hidden_layers=2) for _ in range(2))
    fine_tune(tuned, 4)
    result = adapt(base, tuned, rank=16)

    start = {name: weight.detach().clone() for name, weight in matrices(base).items()}
    residual = whole = 0.0
    changed = [layer for layer in result.report.layers if layer.reason != "unchanged"]
    assert len(changed) == 12
    for layer in changed:
        change = (matrices(tuned)[layer.name] - start[layer.name]).detach().double()
        squares = torch.linalg.eigvalsh(change @ change.T).flip(0).clamp_min(0)
        best = float((squares[16:].sum() / squares.sum()).sqrt())
        residual, whole = residual + float(squares[16:].sum()), whole + float(squares.sum())
        assert layer.relative_error == pytest.approx(best, rel=1e-4)
    assert result.report.totals.relative_error == pytest.approx((residual / whole) ** 0.5, rel=1e-3)
    (warning,) = [w for w in result.report.warnings if w.startswith("base:")]
    assert "embeddings.word_embeddings.weight" in warning
    merged = load_strictly(base, result).merge_and_unload().state_dict()
    for layer in changed:
        wanted = tuned.state_dict()[layer.tensor]
        error = torch.linalg.norm(merged[layer.tensor] - wanted) / torch.linalg.norm(
            wanted - start[layer.name]
        )
        assert float(error) == pytest.approx(layer.relative_error, rel=1e-3)
