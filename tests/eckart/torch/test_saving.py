"""A loaded model, trained further, is saved so that it loads again."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from eckart import InputError
from eckart.torch import LowRankConv1D, LowRankLinear, expand, load_compressed, save_compressed
from schemas.format.metadata import factored_layers
from tests.eckart.torch.factoring import close, compress

IDS = torch.tensor([[1, 5, 10, 3]])
CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    tie_word_embeddings=True,
)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG)


@pytest.fixture
def trained(tmp_path):
    """Load a compressed model with a tied head, and take a step with it."""
    names = [name for name, module in llama().named_modules() if name.endswith("_proj")]
    state = {name: tensor for name, tensor in llama().state_dict().items() if name != "lm_head.weight"}
    model = load_compressed(llama(), compress(llama(), tmp_path / "x.safetensors", *names, state=state)[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_trained_model_loads_again_and_computes_the_same(trained, tmp_path):
    save_compressed(trained, tmp_path / "again.safetensors")
    again = load_compressed(llama(), tmp_path / "again.safetensors")

    assert torch.equal(logits(again), logits(trained))
    assert type(again.model.layers[0].mlp.up_proj) is LowRankLinear
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_tied_tensor_is_stored_once(trained, tmp_path):
    save_compressed(trained, tmp_path / "again.safetensors")
    stored = load_file(tmp_path / "again.safetensors")

    assert "model.embed_tokens.weight" in stored
    assert "lm_head.weight" not in stored


def test_the_file_says_what_a_file_of_the_service_says(trained, tmp_path):
    save_compressed(trained, tmp_path / "again.safetensors")
    with safe_open(tmp_path / "again.safetensors", "pt") as file:
        metadata = file.metadata()

    layers = factored_layers(metadata)
    assert metadata["format"] == "pt"
    assert len(layers) == 7
    entry = layers["model.layers.0.mlp.up_proj"]
    assert (entry.method, entry.rank, entry.shape, entry.dtype) == ("svd", 2, (32, 16), "F32")


def test_a_saved_model_expands_to_one_that_from_pretrained_takes(trained, tmp_path):
    (tmp_path / "saved").mkdir()
    save_compressed(trained, tmp_path / "saved" / "model.safetensors")
    CONFIG.save_pretrained(tmp_path / "saved")
    expand(tmp_path / "saved", tmp_path / "dense")

    assert close(logits(LlamaForCausalLM.from_pretrained(tmp_path / "dense")), logits(trained))


def test_layers_of_other_kinds_methods_and_numbers_of_factors_are_saved(tmp_path):
    def make():
        return nn.ModuleDict({"turned": Conv1D(6, 8), "three": nn.Linear(8, 6, bias=False)})

    path, dense = compress(make(), tmp_path / "x.safetensors", factors=3, transposed=("turned",))
    model = load_compressed(make(), path).bfloat16()
    save_compressed(model, tmp_path / "again.safetensors")
    again = load_compressed(make(), tmp_path / "again.safetensors")

    assert type(again["turned"]) is LowRankConv1D
    assert [len(layer) for layer in again.values()] == [3, 3]
    assert again["three"].method == "cur"
    torch.testing.assert_close(again["turned"].weight.data, dense["turned"].weight.data, rtol=0, atol=0.1)


def test_a_module_under_two_names_is_stored_and_described_once(tmp_path):
    def make():
        net = nn.ModuleDict({"a": nn.Linear(8, 6)})
        net["b"] = net["a"]
        return net

    state = {name: tensor for name, tensor in make().state_dict().items() if name[0] == "a"}
    model = load_compressed(make(), compress(make(), tmp_path / "x.safetensors", "a", state=state)[0])
    save_compressed(model, tmp_path / "again.safetensors")
    again = load_compressed(make(), tmp_path / "again.safetensors")

    assert load_file(tmp_path / "again.safetensors").keys() == {"a.0.weight", "a.1.weight", "a.1.bias"}
    assert again["a"] is again["b"]
    assert torch.equal(again["b"].weight, model["a"].weight)


def test_tensors_that_share_memory_without_being_one_are_each_stored(tmp_path):
    net = nn.Module()
    whole = torch.arange(6.0)
    net.register_buffer("whole", whole)
    net.register_buffer("part", whole[:3])
    save_compressed(net, tmp_path / "x.safetensors")
    stored = load_file(tmp_path / "x.safetensors")

    assert torch.equal(stored["whole"], whole)
    assert torch.equal(stored["part"], whole[:3])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")
def test_adapters_must_be_merged_first(trained, tmp_path):
    import peft

    wrapped = peft.get_peft_model(trained, peft.LoraConfig(r=2, target_modules=["q_proj.1"]))
    with pytest.raises(InputError, match=r"q_proj is no longer a chain .* merge its adapters"):
        save_compressed(wrapped, tmp_path / "again.safetensors")

    with torch.no_grad():
        wrapped.base_model.model.model.layers[0].self_attn.q_proj[1].lora_B["default"].weight.fill_(0.1)
    adapted = logits(wrapped)
    merged = wrapped.merge_and_unload()
    save_compressed(merged, tmp_path / "again.safetensors")
    assert close(logits(load_compressed(llama(), tmp_path / "again.safetensors")), adapted)


def test_a_quantized_model_is_refused(tmp_path):
    net = nn.ModuleDict({"a": nn.Linear(8, 6)})
    load_compressed(net, compress(net, tmp_path / "x.safetensors")[0])
    net["a"][0].weight.data = net["a"][0].weight.data
    net["a"][0] = nn.Identity()

    with pytest.raises(InputError, match="a is no longer a chain of plain factors"):
        save_compressed(net, tmp_path / "again.safetensors")


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"what was there")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_compressed(nn.Linear(2, 2), path)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        save_compressed(nn.Linear(2, 2), tmp_path / "x.bin")


def test_a_model_without_factors_is_saved_as_it_is(tmp_path):
    net = nn.Linear(2, 2)
    save_compressed(net, tmp_path / "x.safetensors")

    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["eckart"]) == {"version": 1, "layers": {}}
    assert torch.equal(load_compressed(nn.Linear(2, 2), tmp_path / "x.safetensors").weight, net.weight)
