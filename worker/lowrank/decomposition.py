"""The singular value decomposition of a weight, by a ladder of ever more careful methods."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from worker.lowrank.lapack import NotConvergedError, failures, full_spectrum, full_svd
from worker.lowrank.ranks import RankRule, least_rank, optimal_error
from worker.lowrank.scale import scaled_copy, working_dtype

# From this aspect ratio on, a QR first is cheaper than a direct SVD, and leaves the long side unformed.
QR_ASPECT = 1.6
# A float32 decomposition is an exact one of W + E with ‖E‖ ≈ 1e-6‖W‖, which raises the error of a truncation
# by about (‖E‖/tail)²/2: under 1e-4 where the tail is at least this part of ‖W‖, with room to spare.
FLOAT32_TAIL = 1e-2


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

    Divide and conquer in the working dtype, then in float64 (LAPACK's gesdd), then QR iteration (gesvd) in
    float64; a long weight is first reduced by QR (Chan 1982). A step that does not converge is passed over,
    and the caller goes on until one is good enough, or none is left.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; float64, float32, float16 or bfloat16. Its device is where the work is done.
    exponent : int
        Its scale (see :func:`worker.lowrank.scale.exponent_of`).
    vectors : bool
        Whether singular vectors are needed; without them only `singular_values` may be used.

    Yields
    ------
    Decomposition
        At most three, all of finite singular values; none where nothing converged.
    """
    for dtype, iterate in _steps(weight):
        try:
            found = _decompose(scaled_copy(weight, exponent, dtype), vectors=vectors, iterate=iterate)
        except failures(weight.device):
            continue
        if bool(torch.isfinite(found.singular_values).all()):
            yield found
        del found  # The next step needs the room.


def resolved(weight: torch.Tensor, exponent: int, rank: int) -> Decomposition:
    """Return the first of :func:`decompositions` that resolves this rank.

    Raises
    ------
    NotConvergedError
        An ArithmeticError: if none does.
    """
    for decomposition in decompositions(weight, exponent):
        if decomposition.resolves(rank):
            return decomposition
    raise NotConvergedError


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
        return Decomposition(full_spectrum(core, iterate=iterate).to("cpu", torch.float64), dtype)
    u, s, vh = full_svd(core, iterate=iterate)
    return Decomposition(s.to("cpu", torch.float64), dtype, u, vh, reflectors, transposed)


def _steps(weight: torch.Tensor) -> list[tuple[torch.dtype, bool]]:
    first = working_dtype(weight)
    in_float64 = [(torch.float64, False), (torch.float64, True)]
    return in_float64 if first == torch.float64 else [(first, False), *in_float64]


def _apply_reflectors(reflectors: tuple[torch.Tensor, torch.Tensor], core: torch.Tensor) -> torch.Tensor:
    a, tau = reflectors
    padded = core.new_zeros(a.shape[0], core.shape[1])  # [m, k]
    padded[: core.shape[0]] = core
    return torch.ormqr(a, tau, padded)


def _signs(right: torch.Tensor) -> torch.Tensor:
    largest = right.abs().argmax(dim=1, keepdim=True)  # [k, 1]
    return torch.where(right.gather(1, largest).squeeze(1) < 0, -1.0, 1.0).to(right)  # [k]
