"""Singular values and vectors by LAPACK, and by cuSOLVER on a GPU; how each says that it failed."""

import numpy as np
import scipy.linalg
import torch

from worker.lowrank import openblas
from worker.lowrank.blas import prefers_scipy, torch_pool

LINALG_ERRORS: tuple[type[Exception], ...] = (
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # Public, but re-exported without saying so.
    np.linalg.LinAlgError,
)

# LAPACK counts its workspace, 4p² and a little, in 32 bits.
LARGEST = 16_384


class NotConvergedError(ArithmeticError):
    """No method found a singular value decomposition that was needed."""

    def __init__(self) -> None:
        super().__init__("the singular value decomposition did not converge by any method")


def full_svd(
    matrix: torch.Tensor, *, iterate: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the thin singular value decomposition by LAPACK, or by cuSOLVER on a GPU.

    Parameters
    ----------
    matrix : Tensor [m, n]
        float64 or float32.
    iterate : bool
        Whether by QR iteration (gesvd), always on the CPU, and not by divide and conquer (gesdd).

    Returns
    -------
    u, s, vh : Tensor [m, p], [p], [p, n]
        p = min(m, n), on the device and in the dtype of the matrix; s descends and is ≥ 0.

    Raises
    ------
    LinAlgError
        torch's or numpy's, if it did not converge or the matrix is not finite.
    RuntimeError
        If cuSOLVER gave up in a way of its own.
    """
    by_scipy = matrix.device.type == "cpu" and prefers_scipy() and min(matrix.shape) <= LARGEST
    if not (iterate or by_scipy):
        with torch_pool():
            u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh
    if not bool(torch.isfinite(matrix).all()):
        raise np.linalg.LinAlgError("the matrix is not finite")
    array = matrix.cpu().numpy()
    parts = openblas.gesvd(array) if iterate else openblas.gesdd(array)
    u, s, vh = (torch.from_numpy(np.ascontiguousarray(part)).to(matrix.device) for part in parts)
    return u, s, vh


def thin_qr(tall: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Q [m, p] and R [p, n] of a matrix [m, n], p = min(m, n), float32 or float64 (Householder 1958).

    scipy's own QR lets go of the interpreter's lock, so it needs no :mod:`worker.lowrank.openblas`.
    """
    if tall.device.type != "cpu" or not prefers_scipy():
        q, r = torch.linalg.qr(tall)
        return q, r
    parts = scipy.linalg.qr(tall.numpy(), mode="economic", check_finite=False)
    q, r = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return q, r


def triangle(tall: torch.Tensor) -> torch.Tensor:
    """Return R [n, n] of :func:`thin_qr` alone, m ≥ n."""
    if tall.device.type != "cpu" or not prefers_scipy():
        found: torch.Tensor = torch.linalg.qr(tall, mode="r").R
        return found
    # As "raw" it is taken out of the packed form before anything as tall as the matrix is made of it.
    _, r = scipy.linalg.qr(tall.numpy(), mode="raw", check_finite=False)
    return torch.from_numpy(np.ascontiguousarray(r))


def failures(device: torch.device) -> tuple[type[Exception], ...]:
    """Return what a decomposition on this device may raise where it does not converge."""
    if device.type == "cpu":
        return LINALG_ERRORS
    # cuSOLVER also gives up with plain RuntimeErrors; the last step then computes on the CPU.
    return (RuntimeError, np.linalg.LinAlgError)
