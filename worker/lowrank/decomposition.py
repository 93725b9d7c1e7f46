"""The singular value decomposition of a weight, by a ladder of ever more careful methods."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from worker.lowrank.ranks import RankRule, least_rank, optimal_error
from worker.lowrank.scale import scaled_copy, working_dtype

# From this aspect ratio on, a QR first is cheaper than a direct SVD, and leaves the long side unformed.
QR_ASPECT = 1.6
# A float32 decomposition is an exact one of W + E with ‖E‖ ≈ 1e-6‖W‖, which raises the error of a truncation
# by about (‖E‖/tail)²/2: under 1e-4 where the tail is at least this part of ‖W‖, with room to spare.
FLOAT32_TAIL = 1e-2

LINALG_ERRORS: tuple[type[Exception], ...] = (
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # Public, but re-exported without saying so.
    np.linalg.LinAlgError,
)


@dataclass(frozen=True)
class Decomposition:
    """2^-exponent · W = U Σ Vᵀ, the long factor kept as Householder reflectors where a QR came first.

    Attributes
    ----------
    singular_values : Tensor [p], float64, on the CPU
        p = min(m, n), descending, of the scaled weight.
    dtype : torch.dtype
        What it was computed in.
    """

    singular_values: torch.Tensor
    dtype: torch.dtype
    _u: torch.Tensor | None = None
    _vh: torch.Tensor | None = None
    _reflectors: tuple[torch.Tensor, torch.Tensor] | None = None
    _transposed: bool = False

    def vectors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return U_k [m, k] and V_kᵀ [k, n]; each row of V_kᵀ has its largest entry positive."""
        assert self._u is not None
        assert self._vh is not None
        left = self._u[:, :rank]  # [p or m, k]
        right = self._vh[:rank]  # [k, p or n]
        if self._reflectors is not None:
            left = _apply_reflectors(self._reflectors, left)  # [m, k]
        if self._transposed:
            left, right = right.mT, left.mT
        signs = _signs(right)  # [k]
        return left * signs, right * signs[:, None]

    def decide(self, rule: RankRule) -> int | None:
        """Return the rank by a rule, or None where it hangs on the rounding of this decomposition."""
        if self.dtype == torch.float64:
            return least_rank(self.singular_values, rule)
        rounding = torch.finfo(self.dtype).eps * math.sqrt(self.singular_values.numel())
        least = least_rank(self.singular_values, rule, slack=rounding)
        return least if least == least_rank(self.singular_values, rule, slack=-rounding) else None

    def resolves(self, rank: int) -> bool:
        """Say whether the error left at this rank stands clear of the rounding of this decomposition."""
        if self.dtype == torch.float64 or not bool(self.singular_values.any()):
            return True
        return optimal_error(self.singular_values, rank) > FLOAT32_TAIL


def decompositions(weight: torch.Tensor, exponent: int, *, vectors: bool = True) -> Iterator[Decomposition]:
    """Yield decompositions of 2^-exponent · W, each made more carefully than the one before.

    Divide and conquer in the working dtype, then in float64, then QR iteration (LAPACK's gesvd) in float64. A
    step that does not converge is passed over; the caller goes on until one is good enough, or none is left.
    """
    for dtype, iterate in _steps(weight):
        try:
            found = _decompose(scaled_copy(weight, exponent, dtype), vectors=vectors, iterate=iterate)
        except _failures(weight.device):
            continue
        if bool(torch.isfinite(found.singular_values).all()):
            yield found
        del found  # The next step needs the room.


def resolved(weight: torch.Tensor, exponent: int, rank: int) -> Decomposition:
    """Return the first decomposition that resolves this rank; ArithmeticError if none converged."""
    for decomposition in decompositions(weight, exponent):
        if decomposition.resolves(rank):
            return decomposition
    raise ArithmeticError("the singular value decomposition did not converge by any method")


def full_svd(
    matrix: torch.Tensor, *, iterate: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U [m, p], diag(Σ) [p], Vᵀ [p, n] by divide and conquer, or by QR iteration on the CPU."""
    if not iterate:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh
    parts = scipy.linalg.svd(
        matrix.cpu().numpy(), full_matrices=False, lapack_driver="gesvd", check_finite=False
    )
    u, s, vh = (torch.from_numpy(np.ascontiguousarray(part)).to(matrix.device) for part in parts)
    return u, s, vh


def _decompose(matrix: torch.Tensor, *, vectors: bool, iterate: bool) -> Decomposition:
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = matrix.mT if transposed else matrix
    reflectors = None
    core = matrix
    if tall.shape[0] >= QR_ASPECT * tall.shape[1]:
        reflectors = torch.geqrf(tall)
        core = reflectors[0][: tall.shape[1]].triu()  # [p, p]
    else:
        transposed = False
    del matrix, tall
    dtype = core.dtype
    if not vectors:
        return Decomposition(_singular_values(core, iterate=iterate).to("cpu", torch.float64), dtype)
    u, s, vh = full_svd(core, iterate=iterate)
    return Decomposition(s.to("cpu", torch.float64), dtype, u, vh, reflectors, transposed)


def _singular_values(matrix: torch.Tensor, *, iterate: bool) -> torch.Tensor:
    if not iterate:
        values: torch.Tensor = torch.linalg.svdvals(matrix)
        return values
    iterated = scipy.linalg.svd(
        matrix.cpu().numpy(), compute_uv=False, lapack_driver="gesvd", check_finite=False
    )
    return torch.from_numpy(iterated)


def _steps(weight: torch.Tensor) -> list[tuple[torch.dtype, bool]]:
    first = working_dtype(weight)
    in_float64 = [(torch.float64, False), (torch.float64, True)]
    return in_float64 if first == torch.float64 else [(first, False), *in_float64]


def _failures(device: torch.device) -> tuple[type[Exception], ...]:
    if device.type == "cpu":
        return LINALG_ERRORS
    # cuSOLVER also gives up with plain RuntimeErrors; the last step then computes on the CPU.
    return (RuntimeError, np.linalg.LinAlgError)


def _apply_reflectors(reflectors: tuple[torch.Tensor, torch.Tensor], core: torch.Tensor) -> torch.Tensor:
    a, tau = reflectors
    padded = core.new_zeros(a.shape[0], core.shape[1])  # [m, k]
    padded[: core.shape[0]] = core
    return torch.ormqr(a, tau, padded)


def _signs(right: torch.Tensor) -> torch.Tensor:
    largest = right.abs().argmax(dim=1, keepdim=True)  # [k, 1]
    return torch.where(right.gather(1, largest).squeeze(1) < 0, -1.0, 1.0).to(right)  # [k]
