"""Singular values, eigenpairs and QR by LAPACK, and by cuSOLVER on a GPU; which errors they raise."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import scipy.linalg
import torch

from worker.lowrank import openblas
from worker.lowrank.blas import prefers_scipy, restore_torch_threads

LINALG_ERRORS: tuple[type[Exception], ...] = (
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # Public, but re-exported without saying so.
    np.linalg.LinAlgError,
)

# LAPACK counts its workspace in 32 bits: 4p² and a little for gesdd, 2n² and a little for syevd.
LARGEST_SVD = 16_384
LARGEST_EIGH = 32_000
# Up to this share of all eigenpairs, computing only those is faster than computing all.
FEW = 0.45
# Up to this side torch finds eigenvalues in float32 on a GPU by a Jacobi method (syevj of cuSOLVER), whose
# rounding adds up to 1e-4 of their sum: 50 times what divide and conquer adds, which takes less time as well.
LARGEST_JACOBI = 512


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
        True for QR iteration (gesvd), always on the CPU; False for divide and conquer (gesdd).

    Returns
    -------
    u, s, vh : Tensor [m, p], [p], [p, n]
        p = min(m, n), on the device and in the dtype of the matrix; s descends and is ≥ 0.

    Raises
    ------
    LinAlgError
        Of torch or numpy, if it did not converge or the matrix is not finite.
    RuntimeError
        If cuSOLVER failed in another way.
    """
    by_scipy = matrix.device.type == "cpu" and prefers_scipy() and min(matrix.shape) <= LARGEST_SVD
    if not (iterate or by_scipy):
        with restore_torch_threads():
            u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh
    if not bool(torch.isfinite(matrix).all()):
        raise np.linalg.LinAlgError("the matrix is not finite")
    array = matrix.cpu().numpy()
    parts = openblas.gesvd(array) if iterate else openblas.gesdd(array)
    u, s, vh = (torch.from_numpy(np.ascontiguousarray(part)).to(matrix.device) for part in parts)
    return u, s, vh


def leading_eigenpairs(
    matrix: torch.Tensor, count: int, *, all_values: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest eigenvalues and their eigenvectors.

    A small share of the pairs is computed by relatively robust representations (LAPACK syevr), a large one by
    divide and conquer (syevd).

    Parameters
    ----------
    matrix : Tensor [n, n]
        Symmetric; only the lower triangle is read. float32 or float64.
    count : int
        The number of eigenvectors, 1 ≤ k ≤ n.
    all_values : bool
        Whether all eigenvalues are wanted, and not the largest k only.

    Returns
    -------
    values : Tensor [k or n], float64, on the CPU
        Descending.
    vectors : Tensor [k, n]
        Orthonormal rows, each with its largest entry positive; in the dtype and on the device of the matrix.

    Raises
    ------
    LinAlgError
        Of torch or numpy, if it did not converge.
    RuntimeError
        If cuSOLVER failed in another way.
    """
    n = len(matrix)
    few = not all_values and count <= FEW * n
    if matrix.device.type == "cpu" and (few or (prefers_scipy() and n <= LARGEST_EIGH)):
        array = matrix.numpy()
        found = openblas.syevr(array, count) if few else openblas.syevd(array)
        values, columns = (torch.from_numpy(part) for part in found)
    else:
        with restore_torch_threads():
            values, columns = torch.linalg.eigh(past_jacobi(matrix))
    rows = columns.mT.flip(0)[:count].to(matrix.dtype).contiguous()  # [k, n]
    descending = values.flip(0).to("cpu", torch.float64)
    return descending if all_values else descending[:count], fix_signs(rows)


def past_jacobi(matrix: torch.Tensor) -> torch.Tensor:
    """Return a symmetric matrix [n, n] in a dtype in which no Jacobi method finds its eigenvalues."""
    is_small = matrix.device.type != "cpu" and len(matrix) <= LARGEST_JACOBI
    return matrix.to(torch.float64) if is_small else matrix


def fix_signs(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows [k, n], each turned so that its largest entry is positive.

    Singular vectors are unique up to sign only; so the library does not decide it.
    """
    largest = rows.abs().argmax(dim=1, keepdim=True)  # [k, 1]
    return torch.where(rows.gather(1, largest) < 0, -rows, rows)


def thin_qr(tall: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Q [m, p] and R [p, n] of a matrix [m, n], p = min(m, n), float32 or float64 (Householder 1958).

    scipy's own QR releases the interpreter's lock, so it needs no :mod:`worker.lowrank.openblas`.
    """
    if tall.device.type != "cpu" or not prefers_scipy():
        q, r = torch.linalg.qr(tall)
        return q, r
    parts = scipy.linalg.qr(tall.numpy(), mode="economic", check_finite=False)
    q, r = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return q, r


def triangle(tall: torch.Tensor) -> torch.Tensor:
    """Return only R [n, n] of :func:`thin_qr`, m ≥ n."""
    if tall.device.type != "cpu" or not prefers_scipy():
        found: torch.Tensor = torch.linalg.qr(tall, mode="r").R
        return found
    # "raw" gives R without another array of the size of the matrix.
    _, r = scipy.linalg.qr(tall.numpy(), mode="raw", check_finite=False)
    return torch.from_numpy(np.ascontiguousarray(r))


@contextmanager
def converging(device: torch.device) -> Iterator[None]:
    """Raise NotConvergedError for whatever a decomposition on this device raises where it does not converge.

    cuSOLVER also raises plain RuntimeErrors. So does torch where the memory of a GPU is full, but that is no
    reason to try another solver.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except LINALG_ERRORS as error:
        raise NotConvergedError from error
    except RuntimeError as error:
        if device.type == "cpu":
            raise
        raise NotConvergedError from error


def ridged_cholesky(matrix: torch.Tensor, ridge: float) -> torch.Tensor | None:
    """Return the lower triangular L [n, n] with L Lᵀ = C + δI in float64; None where that is not positive.

    Parameters
    ----------
    matrix : Tensor [n, n]
        C: symmetric, float64. It is not changed.
    ridge : float
        δ ≥ 0.
    """
    ridged = matrix.clone()
    ridged.diagonal().add_(ridge)
    lower, failed = torch.linalg.cholesky_ex(ridged)
    return None if int(failed) or not bool(lower.diagonal().isfinite().all()) else lower
