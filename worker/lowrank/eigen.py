"""Leading eigenpairs of a symmetric matrix, by LAPACK or by cuSOLVER on a GPU."""

import torch

from worker.lowrank import openblas
from worker.lowrank.blas import prefers_scipy, torch_pool

# Up to this share of all pairs, computing only those is the faster way.
FEW = 0.45
# Syevd counts its workspace, 2n² and a little, in 32 bits.
LARGEST = 32_000


def leading_pairs(matrix: torch.Tensor, count: int, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest eigenvalues and their eigenvectors.

    Few pairs come by bisection and inverse iteration on the tridiagonal form (LAPACK syevr), many by divide
    and conquer (syevd).

    Parameters
    ----------
    matrix : Tensor [n, n]
        Symmetric, of which the lower triangle is read; float32 or float64.
    count : int
        How many eigenvectors, 1 ≤ k ≤ n.
    whole : bool
        Whether all eigenvalues are wanted, and not the largest k alone.

    Returns
    -------
    values : Tensor [k or n], float64, on the CPU
        Descending.
    vectors : Tensor [k, n]
        Orthonormal rows, each with its largest entry positive; in the dtype and on the device of the matrix.

    Raises
    ------
    LinAlgError
        torch's or numpy's, if it did not converge.
    RuntimeError
        If cuSOLVER gave up in a way of its own.
    """
    n = len(matrix)
    few = not whole and count <= FEW * n
    if matrix.device.type == "cpu" and (few or (prefers_scipy() and n <= LARGEST)):
        array = matrix.numpy()
        found = openblas.syevr(array, count) if few else openblas.syevd(array)
        values, columns = (torch.from_numpy(part) for part in found)
    else:
        with torch_pool():
            values, columns = torch.linalg.eigh(matrix)
    rows = columns.mT.flip(0)[:count].contiguous()  # [k, n]
    descending = values.flip(0).to("cpu", torch.float64)
    return descending if whole else descending[:count], oriented(rows)


def oriented(rows: torch.Tensor) -> torch.Tensor:
    """Turn each row so that its largest entry is positive: no sign is left to the library."""
    largest = rows.abs().argmax(dim=1, keepdim=True)  # [k, 1]
    return torch.where(rows.gather(1, largest) < 0, -rows, rows)
