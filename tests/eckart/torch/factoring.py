"""Compressed files as the service writes them, and the dense models that they stand for."""

from __future__ import annotations

import copy
import json

import torch
from safetensors.torch import save_file

RANK = 2


def factored(state, *names, rank=RANK, factors=2, dtype=None, transposed=()):
    """Factor these layers of a state dict; return the new state dict and its manifest."""
    state, layers = dict(state), {}
    for name in names:
        weight = state.pop(f"{name}.weight")
        turned = name in transposed
        u, s, vh = torch.linalg.svd((weight.mT if turned else weight).float(), full_matrices=False)
        left, right, core = (u * s)[:, :rank], vh[:rank], torch.eye(rank)
        parts = [right, core, left] if factors == 3 else [right, left]
        for i, part in enumerate(parts):
            state[f"{name}.{i}.weight"] = (part.mT if turned else part).to(dtype or weight.dtype)
        if f"{name}.bias" in state:
            state[f"{name}.{factors - 1}.bias"] = state.pop(f"{name}.bias")
        layers[name] = {
            "method": "cur" if factors == 3 else "svd",
            "rank": rank,
            "shape": list(weight.shape),
            "dtype": "F32",
            "relative_error": 0.5,
        } | ({"transposed": True} if turned else {})
    return state, layers


def write(path, state, layers, **fields):
    """Write a compressed file."""
    manifest = json.dumps({"version": 1, "layers": layers, **fields})
    tensors = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"format": "pt", "eckart": manifest})
    return path


def products(state, layers):
    """Return the weights that the factors of a file multiply to."""
    found = {}
    for name, layer in layers.items():
        parts = [state[f"{name}.{i}.weight"] for i in range(3) if f"{name}.{i}.weight" in state]
        parts = parts if layer.get("transposed") else parts[::-1]
        found[name] = torch.linalg.multi_dot(parts)
    return found


def matrices(state):
    """Name every layer whose weight is a matrix of at least four rows and columns."""
    return [
        name.removesuffix(".weight")
        for name, tensor in state.items()
        if name.endswith(".weight") and tensor.dim() == 2 and min(tensor.shape) > 3
    ]


def compress(model, path, *names, state=None, **options):
    """Write a file with these layers of a model factored, or all; return its path and the dense model."""
    state = {name: tensor.clone() for name, tensor in (state or model.state_dict()).items()}
    new, layers = factored(state, *(names or matrices(state)), **options)
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in products(new, layers).items():
            dense.get_submodule(name).weight.copy_(weight)
    return write(path, new, layers), dense


def close(found, wanted):
    """Whether tensors are equal to 1e-5 of the larger one's size."""
    found, wanted = found.detach(), wanted.detach()
    return found.shape == wanted.shape and bool(
        (found - wanted).abs().max() <= 1e-5 * max(float(wanted.abs().max()), 1e-6)
    )
