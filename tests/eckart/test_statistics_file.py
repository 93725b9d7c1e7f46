"""Statistics files: what the documentation says of their size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

from eckart.calibration_pass import linear_layers
from eckart.statistics_file import tensors_of

PAGE = Path(__file__).parents[2] / "docs" / "3-spec.md"
SAME = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


@pytest.fixture(scope="module")
def layers():
    """Return the layers of one of the 32 blocks of Llama 3.1 8B and its head, without their values."""
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    return linear_layers(model, lambda _name: True)


def file_bytes(layers, *, gradients):
    same_as = {}
    for name in layers:
        module, _, own = name.rpartition(".")
        if own in SAME:
            same_as[name] = f"{module}.{SAME[own]}"
    inputs = {name: layer.in_features for name, layer in layers.items()}
    outputs = {name: layer.out_features for name, layer in layers.items()} if gradients else {}
    assert len(same_as) in (0, 3)
    return sum(tensor.size_bytes for tensor in tensors_of(inputs, outputs, same_as, "float32"))


@pytest.mark.parametrize("head", [False, True])
def test_the_documented_sizes_for_an_8b_model_are_those_of_its_shapes(layers, head):
    block = {name: layer for name, layer in layers.items() if name != "lm_head"}
    heads = {"lm_head": layers["lm_head"]} if head else {}
    label = "with the head" if head else "without the head"
    sizes = [
        (32 * file_bytes(block, gradients=gradients) + file_bytes(heads, gradients=gradients)) / 1e9
        for gradients in (False, True)
    ]

    row = re.search(rf"^\| {label} \| ([\d.]+) GB \| ([\d.]+) GB \|", PAGE.read_text(), re.MULTILINE)
    assert row is not None
    assert [float(size) for size in row.groups()] == [round(size, 1) for size in sizes]
