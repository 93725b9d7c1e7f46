"""Matrices with a known spectrum, generated in seconds at any size."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.linalg
import torch
from safetensors import safe_open

from benchmarks.checkpoints import minilm

MINILM_WEIGHT = "encoder.layer.3.intermediate.dense.weight"
Values = npt.NDArray[np.float64]


def minilm_values(count: int) -> Values:
    """Return the spectrum of a weight of MiniLM, stretched to that many values."""
    with safe_open(minilm(), "np") as file:
        values = np.linalg.svd(file.get_tensor(MINILM_WEIGHT), compute_uv=False)
    stretched = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(values)), values)
    return np.asarray(stretched, dtype=np.float64)


SPECTRA: dict[str, Callable[[int], Values] | None] = {
    "exponential": lambda p: np.exp(-10 * np.arange(p) / p),
    "power law": lambda p: np.asarray(np.arange(1, p + 1) ** -0.5, dtype=np.float64),
    "Gaussian": None,
    "MiniLM": minilm_values,
}


def matrix(name: str, rows: int, columns: int) -> tuple[torch.Tensor, Values]:
    """Return a float32 matrix and its singular values, descending."""
    rng = np.random.default_rng(0)
    p = min(rows, columns)
    make = SPECTRA[name]
    if make is None:
        gaussian = rng.standard_normal((rows, columns), dtype=np.float32)
        tall = torch.from_numpy(gaussian if rows >= columns else gaussian.T).double()
        energies = scipy.linalg.eigvalsh((tall.T @ tall).numpy(), driver="evd", check_finite=False)
        return torch.from_numpy(gaussian), np.sqrt(np.maximum(energies[::-1], 0))
    values = make(p)
    whole: Values = np.zeros((rows, columns))
    whole[np.arange(p), np.arange(p)] = values
    for axis in (0, 1):
        whole = _rotated(whole, axis, rng)
    return torch.from_numpy(whole.astype(np.float32)), values


def _rotated(whole: Values, axis: int, rng: np.random.Generator) -> Values:
    """Apply random signs, permutations and cosine transforms (Ailon and Chazelle, 2006)."""
    length = whole.shape[axis]
    for _ in range(3):
        signs = rng.choice([-1.0, 1.0], length)
        whole = np.take(whole, rng.permutation(length), axis=axis)
        whole = scipy.fft.dct(whole * (signs[:, None] if axis == 0 else signs), axis=axis, norm="ortho")
    return whole
