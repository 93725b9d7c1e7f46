"""Small checkpoints, written by hand."""

import json
import struct


def checkpoint_bytes(tensors: dict[str, tuple[int, ...]] | None = None, *, fill: int = 1) -> bytes:
    """Make a float32 safetensors file with these shapes; every data byte is `fill`."""
    shapes = tensors or {"layer.0.weight": (8, 8), "layer.0.bias": (8,)}
    entries, end = {}, 0
    for name, shape in shapes.items():
        nbytes = 4
        for size in shape:
            nbytes *= size
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes([fill]) * end


def sharded_set(shards: int = 2, *, fill: int = 1) -> dict[str, bytes]:
    """Make shards of one layer each, and their index."""
    files, weight_map = {}, {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        tensors = {f"layer.{i}.weight": (8, 8)}
        files[name] = checkpoint_bytes(tensors, fill=fill)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 256 * shards}, "weight_map": weight_map}
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}


def big_checkpoint(nbytes: int) -> bytes:
    """Make the header of a file with one tensor of that size; the caller sends the data."""
    entry = {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}
    header = json.dumps({"big": entry}).encode()
    return struct.pack("<Q", len(header)) + header


MODEL = checkpoint_bytes()
FILES = {"model.safetensors": MODEL}
