"""Helpers of the tests of schemas/: headers of small checkpoints, and spectra of their layers."""

import random
from dataclasses import replace

from schemas.format.files import CheckpointFiles
from schemas.format.header import NewTensor, build_header, parse_header
from schemas.format.index import ShardIndex

SHAPES = {"a": (64, 64), "b": (48, 96), "c": (96, 48), "d": (64, 64)}


def header_of(shapes, dtype="F32", metadata=None):
    new_tensors = [NewTensor(name, dtype, shape) for name, shape in shapes.items()]
    text = build_header(new_tensors, metadata or {})
    return parse_header(text, file_bytes=8 + len(text) + sum(tensor.nbytes for tensor in new_tensors))


def files_of(shapes=None, dtype="F32", shards=1):
    """Make a checkpoint's headers: linear layers with a bias, and an embedding."""
    tensors = {f"{name}.weight": shape for name, shape in (shapes or SHAPES).items()}
    tensors |= {f"{name}.bias": (shape[0],) for name, shape in (shapes or SHAPES).items()}
    tensors["embeddings.weight"] = (100, 16)
    if shards == 1:
        return CheckpointFiles({"model.safetensors": header_of(tensors, dtype, {"format": "pt"})}, None)
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    parts = [dict(list(tensors.items())[i::shards]) for i in range(shards)]
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    headers = {name: header_of(part, dtype) for name, part in zip(names, parts, strict=True)}
    return CheckpointFiles(headers, ShardIndex(weight_map, {"total_size": 1, "total_parameters": 1}))


def spectra_of(files, seed=0):
    rng = random.Random(seed)
    found = {}
    for tensor in files.tensors:
        if len(tensor.shape) == 2:
            exponent, norm = rng.uniform(0.1, 1.5), 10 ** rng.uniform(-3, 3)
            found[tensor.name] = [norm * (i + 1) ** -exponent for i in range(min(tensor.shape))]
    return found


def chosen_at(layers, ranks):
    """Return the chosen layers at these ranks, by number."""
    return {number: replace(layers[number], rank=rank) for number, rank in ranks.items()}
