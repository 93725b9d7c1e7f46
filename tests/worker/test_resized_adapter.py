"""Adapters of lower ranks: PEFT loads them as before, and each layer changes by the best approximation."""

import json
from math import sqrt
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from schemas.format.errors import CheckpointError
from schemas.problem import SpecError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
IDS = torch.arange(24).reshape(2, 12)
ADAPTER = {"layout": "adapter"}


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def adapter(tmp_path):
    """Return a function that saves a trained-looking adapter as PEFT does."""

    def save(**options):
        options = {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options
        model = get_peft_model(llama(), LoraConfig(**options))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    decay = torch.logspace(0, -1.5, min(weight.shape))
                    weight.copy_(0.1 * torch.randn(weight.shape))
                    side = 0 if "lora_A" in name or "embedding_A" in name else 1
                    weight.mul_(decay[:, None] if side == 0 else 1.0)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        return tmp_path / "adapter"

    return save


def layers_of(model):
    """Return the LoRA layers of a loaded adapter, by the name of their module in the file."""
    prefix = "base_model.model."
    return {prefix + n.removeprefix(prefix): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}


def load(folder):
    return PeftModel.from_pretrained(llama(), folder).eval()


@torch.inference_mode()
def outputs(model):
    return model(IDS).logits


def best(product, rank):
    u, s, vh = torch.linalg.svd(product.double(), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ vh[:rank]).to(product.dtype)


@torch.inference_mode()
def truncated(folder, ranks):
    """Return the model with the best approximation of each change put into its weights."""
    model = load(folder)
    for name, layer in layers_of(model).items():
        change = layer.get_delta_weight("default")
        layer.get_base_layer().weight.add_(best(change, ranks[name]) if name in ranks else change)
    return model.unload().eval()


OPTIONS = {
    "alpha above r": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"v_proj": 6, "layers.0.mlp.down_proj": 12},
        "alpha_pattern": {"q_proj": 3, r"layers\.1\.mlp.*": 7.5},
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("rank", [3, {"energy": 0.8}], ids=["integer", "energy"])
def test_peft_loads_the_best_approximation_of_each_change(adapter, compress, options, rank):
    folder = adapter(**options)
    result = compress(folder, rank=rank, **ADAPTER)
    ranks = {layer.name: layer.rank for layer in result.report.layers}
    assert len(ranks) == 6
    assert all(ranks.values())
    assert rank != 3 or set(ranks.values()) == {3}

    before, model = load(folder), load(result.directory)
    old, new = layers_of(before), layers_of(model)
    assert old.keys() == new.keys() == ranks.keys()
    for name, layer in new.items():
        assert layer.r["default"] == ranks[name]
        assert layer.scaling["default"] == pytest.approx(old[name].scaling["default"], rel=1e-12)
    assert torch.allclose(outputs(model), outputs(truncated(folder, ranks)), atol=1e-5)
    for layer in result.report.layers:
        change = old[layer.name].get_delta_weight("default").detach().double()
        error = (
            new[layer.name].get_delta_weight("default").detach().double() - change
        ).norm() / change.norm()
        assert layer.relative_error == pytest.approx(float(error), rel=1e-3)


def test_names_and_config_are_those_of_the_input(adapter, compress):
    folder = adapter(use_rslora=True)
    result = compress(folder, rank=2, **ADAPTER)
    old, new = (json.loads((each / "adapter_config.json").read_text()) for each in (folder, result.directory))
    assert new == {
        **old,
        "r": 2,
        "lora_alpha": 32 * sqrt(2) / sqrt(8),
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    before = load_file(folder / "adapter_model.safetensors")
    assert result.tensors().keys() == before.keys()
    assert (result.directory / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    totals = result.report.totals
    assert totals.parameters_before == sum(tensor.numel() for tensor in before.values())
    assert totals.parameters_after == sum(tensor.numel() for tensor in result.tensors().values())
    assert totals.parameters_after == totals.parameters_before / 4
    assert totals.bytes_after == 4 * totals.parameters_after


def test_a_layer_whose_rank_would_not_fall_keeps_its_bytes(adapter, compress):
    folder = adapter(rank_pattern={"v_proj": 4})
    same = compress(folder, rank=8, **ADAPTER)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (same.directory / name).read_bytes() == (folder / name).read_bytes()
    assert {layer.reason for layer in same.report.layers} == {"no_saving"}
    some = compress(folder, rank=4, **ADAPTER)
    before, after = load_file(folder / "adapter_model.safetensors"), some.tensors()
    assert {layer.name for layer in some.report.layers if layer.rank is None} == {
        f"base_model.model.model.layers.{n}.self_attn.v_proj" for n in range(2)
    }
    assert all(torch.equal(after[name], before[name]) for name in before if "v_proj" in name)
    config = json.loads((some.directory / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (4, {})
    ranks = {layer.name: layer.rank for layer in some.report.layers if layer.rank}
    assert torch.allclose(outputs(load(some.directory)), outputs(truncated(folder, ranks)), atol=1e-5)


def test_ratios_errors_and_budgets_mean_shares_of_the_pairs(adapter, compress):
    folder = adapter()
    assert {x.rank for x in compress(folder, rank={"ratio": 0.5}, **ADAPTER).report.layers} == {4}
    report = compress(folder, rank={"error": 0.1}, **ADAPTER).report
    assert all(layer.relative_error <= 0.1 for layer in report.layers)
    assert len({layer.rank for layer in report.layers}) > 1
    report = compress(folder, rank={"budget": 0.5}, **ADAPTER).report
    assert 0.4 < report.totals.parameters_after / report.totals.parameters_before <= 0.5
    size = (folder / "adapter_model.safetensors").stat().st_size
    result = compress(folder, rank={"budget_bytes": size * 6 // 10}, **ADAPTER)
    assert size * 5 // 10 < (result.directory / "adapter_model.safetensors").stat().st_size <= size * 6 // 10
    assert outputs(load(result.directory)).isfinite().all()


def test_embeddings_and_whole_weights_stay(adapter, compress):
    folder = adapter(target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
    result = compress(folder, rank=2, **ADAPTER)
    assert {layer.rank for layer in result.report.layers} == {2}
    (entry,) = result.report.not_selected
    assert (entry.rule, entry.tensors) == ("no_lora_pair", 3)
    config = json.loads((result.directory / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 32)
    assert set(config["rank_pattern"].values()) == {2}
    ranks = {layer.name: 2 for layer in result.report.layers}
    assert torch.allclose(outputs(load(result.directory)), outputs(load_reference(folder, ranks)), atol=1e-5)


@torch.inference_mode()
def load_reference(folder, ranks):
    """Return the adapter with the pairs of these layers truncated in place, at the rank that they have."""
    model = load(folder)
    for name, layer in layers_of(model).items():
        if name in ranks:
            up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            u, s, vh = torch.linalg.svd(up @ down, full_matrices=False)
            rank = ranks[name]
            up.zero_()[:, :rank] = u[:, :rank] * s[:rank]
            down.zero_()[:rank] = vh[:rank]
    return model


def test_dora_alone_is_no_adapter_that_can_be_resized(adapter, compress):
    with pytest.raises(SpecError, match="no pair lora_A and lora_B"):
        compress(adapter(use_dora=True), rank=2, **ADAPTER)


def kohya(path, *, alpha=8.0, r=16, dtype=torch.float16, **extra):
    torch.manual_seed(0)
    tensors = {}
    for name, m, n in (("lora_unet_attn_to_q", 64, 48), ("lora_te_time_embedding_1", 48, 64)):
        tensors[f"{name}.lora_down.weight"] = torch.randn(r, n).to(dtype)
        tensors[f"{name}.lora_up.weight"] = torch.randn(m, r).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    tensors["lora_unet_conv.lora_down.weight"] = torch.randn(r, 6, 3, 3).to(dtype)
    tensors["lora_unet_conv.lora_up.weight"] = torch.randn(20, r, 1, 1).to(dtype)
    tensors |= extra
    metadata = {
        "ss_network_dim": str(r),
        "ss_network_alpha": str(alpha),
        "ss_base_model": "sd",
        "sshs_model_hash": "0",
    }
    save_file(tensors, path, metadata=metadata)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_file_of_kohya_keeps_names_and_scales(tmp_path, compress, dtype):
    path = tmp_path / "style.safetensors"
    before = kohya(path, dtype=dtype)
    result = compress(path, rank=5, **ADAPTER)
    after = load_file(result.directory / "style.safetensors")
    assert after.keys() == before.keys()
    assert not (result.directory / "adapter_config.json").exists()
    for layer in result.report.layers:
        down, up, scale = (
            after.get(f"{layer.name}.{x}") for x in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        old_down, old_up = (before[f"{layer.name}.{x}.weight"] for x in ("lora_down", "lora_up"))
        assert (down.dtype, down.shape[0], up.shape[1]) == (dtype, 5, 5)
        assert down.shape[1:] == old_down.shape[1:]
        assert scale is None or float(scale) == 8.0 * 5 / 16
        wanted = best(old_up.flatten(1).float() @ old_down.flatten(1).float(), 5)
        found = up.flatten(1).float() @ down.flatten(1).float()
        assert (found - wanted).norm() <= (2e-3 if dtype is torch.float16 else 1e-5) * wanted.norm()
    with safe_open(result.directory / "style.safetensors", "pt") as file:
        assert file.metadata() == {"ss_base_model": "sd", "format": "pt"}


def test_what_does_not_fit_is_kept_and_told(tmp_path, compress):
    path, single = tmp_path / "style.safetensors", tmp_path / "small.safetensors"
    odd = {
        "a.lora_down.weight": torch.ones(4, 8),
        "a.lora_up.weight": torch.ones(8, 5),
        "b.lora_down.weight": torch.ones(4, 8),
        "c.lora_down.weight": torch.ones(4, 8),
        "c.lora_up.weight": torch.ones(8, 4, dtype=torch.float16),
        "d.lora_down.weight": torch.ones(4, 8),
        "d.lora_up.weight": torch.ones(8, 4),
        "d.alpha": torch.ones(2),
        "e.lora_down.weight": torch.ones(4, 8),
        "e.lora_up.weight": torch.ones(8, 4),
        "e.dora_scale": torch.ones(8, 1),
        "f.lora_down.weight": torch.ones(4, 8),
        "f.lora_up.weight": torch.ones(8, 4, 1, 1),
        "g.lora_down.weight": torch.ones(4, 8, 3, 3),
        "g.lora_up.weight": torch.ones(8, 4, 3, 3),
        "h.lora_down.weight": torch.ones(0, 8),
        "h.lora_up.weight": torch.ones(8, 0),
    }
    before = kohya(path, **odd)
    report = compress(path, rank=2, **ADAPTER).report
    assert len(report.layers) == 3
    (entry,) = report.not_selected
    assert (entry.rule, entry.tensors) == ("no_lora_pair", len(odd))
    save_file({name: tensor for name, tensor in before.items() if name in odd}, single)
    with pytest.raises(SpecError) as error:
        compress(single, rank=2, **ADAPTER)
    assert error.value.pointer == "/layout"


def test_nan_is_kept(tmp_path, compress):
    path = tmp_path / "style.safetensors"
    down = torch.full((4, 8), torch.nan)
    before = kohya(path, **{"a.lora_down.weight": down, "a.lora_up.weight": torch.ones(8, 4)})
    result = compress(path, rank=2, **ADAPTER)
    assert {layer.name: layer.reason for layer in result.report.layers if layer.reason} == {"a": "not_finite"}
    assert result.tensors()["a.lora_down.weight"].shape == before["a.lora_down.weight"].shape


CONFIGS = {
    "peft_type": ({"peft_type": "VERA"}, "only LORA"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "depend on the rank"),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, "not the sum"),
    "rank": ({"r": 9}, 'is "9" there, and 8'),
    "alpha": ({"lora_alpha": "x"}, "must be numbers"),
    "pattern": ({"alpha_pattern": {"(.*a)*": 3}}, "not taken"),
    "no expression": ({"alpha_pattern": {"(": 3}}, "no regular expression"),
    "no object": ({"rank_pattern": [1]}, "no object"),
}


@pytest.mark.parametrize(("change", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_not_understood_is_refused(adapter, compress, change, message):
    path = adapter() / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message) as error:
        compress(path.parent, rank=2, **ADAPTER)
    assert error.value.fault == "bad-adapter-config"


def test_an_adapter_of_peft_without_its_config_is_refused(adapter, compress):
    folder = adapter()
    with pytest.raises(CheckpointError, match="only it says how PEFT scales"):
        compress(Path(folder / "adapter_model.safetensors"), rank=2, **ADAPTER)


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ({"method": "cx", "rank": 2}, "/method"),
        ({"rank": 2, "overrides": [{"match": "*", "method": "pivot"}]}, "/overrides/0/method"),
        ({"rank": {"auto": "vbmf"}}, "/rank/auto"),
        ({"rank": 2, "transposed": ["*"]}, "/transposed"),
    ],
)
def test_what_a_pair_cannot_have_is_refused(tmp_path, compress, spec, pointer):
    kohya(tmp_path / "style.safetensors")
    with pytest.raises(SpecError) as error:
        compress(tmp_path / "style.safetensors", **spec, **ADAPTER)
    assert error.value.pointer == pointer
