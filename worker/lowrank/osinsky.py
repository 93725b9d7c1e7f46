"""Columns within the best bound there is: ‖A - CC⁺A‖_F² ≤ (k + 1)·‖A - A_k‖_F² for any matrix."""

import numpy as np
import numpy.typing as npt
import torch

from worker.lowrank.blas import product, self_product, subtract_product
from worker.lowrank.lapack import thin_qr
from worker.lowrank.pivoting import BLOCK, candidates, combined, products, slack, squared_norms

# A vector whose part in the basis, 1 at most, has shrunk to this counts as dependent.
THIN = 1e-10
# A part of a vector outside the basis below this many roundings of the matrix counts as none.
ROUNDINGS = 4


def osinsky(vectors: torch.Tensor, basis: torch.Tensor) -> list[int]:
    """Return k indices of vectors whose span has at most √(k + 1) times the error of the basis.

    Of the columns a_j of A, with B = V_kᵀ of orthonormal rows and E = A - A BᵀB, any k with B_J regular leave
    ‖A - CC⁺A‖² ≤ ‖E - E_J B_J⁻¹ B‖². Choosing column j turns b_j's direction out of the rows of B, which stay
    orthonormal, and e_j out of E along them, which adds ‖e_j‖²/‖b_j‖² to ‖E‖². With t chosen Σ‖b_j‖² = k - t,
    so the least such quotient is ‖E‖²/(k - t) at most, and k least ones let ‖E‖² grow by no more than
    (k + 1)/k · k/(k - 1) ⋯ 2/1 = k + 1 (Osinsky 2023, Close to optimal column approximations with a single
    SVD). No k columns of some matrices do better (Deshpande and Rademacher 2006).

    Blocks: among the candidates the least quotient is taken as long as it is at most ‖E‖²/(k - t), which is
    all that the bound needs, and none outside was clearly less when the block began.

    Parameters
    ----------
    vectors : Tensor [n, d]
        The columns of A as rows; float64 or float32, finite. They are not changed.
    basis : Tensor [n, k]
        V_k, orthonormal columns, n ≥ k ≥ 1; float64 or float32.

    Returns
    -------
    list of int
        k distinct indices in [0, n), in the order of their choice.
    """
    n, rank = basis.shape
    inside = _orthonormal(basis.to(vectors.device))  # B's columns as rows [n, k]
    outside, floor = _outside(vectors, inside, torch.promote_types(vectors.dtype, basis.dtype))
    dead = torch.zeros(n, dtype=torch.bool, device=vectors.device)
    chosen: list[int] = []
    while (remaining := rank - len(chosen)) > 0:
        errors, parts = squared_norms(outside).clamp_min_(floor), squared_norms(inside)  # [n], [n]
        gains = torch.where(dead | (parts <= THIN), torch.inf, errors / parts)
        pool, limit = candidates(-gains)
        grams = products(outside[pool]), products(inside[pool])  # [c, c] both
        picked = pool[_picks(*grams, floor, -limit, total=float(errors.sum()), remaining=remaining)]  # [b]
        _eliminate(outside, inside, picked)
        dead[picked] = True
        chosen += picked.tolist()
    return chosen


def _orthonormal(basis: torch.Tensor) -> torch.Tensor:
    """Return a basis in float64, orthonormal to more digits than float32 has: one Newton step."""
    widened = basis.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    if basis.dtype == torch.float64:
        return widened
    core = self_product(widened, torch.float64).mul_(-0.5)  # [k, k]
    core.diagonal().add_(1.5)
    return product(widened, core)


def _outside(vectors: torch.Tensor, inside: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
    """Return E's columns as rows [n, d], and what counts as none of ‖e_j‖²."""
    vectors, inside = vectors.to(dtype), inside.to(dtype)
    energy = float(squared_norms(vectors).mean())
    floor = (ROUNDINGS * torch.finfo(dtype).eps) ** 2 * energy
    # Where there is no error at all, the largest parts in the basis are taken.
    outside = vectors.clone(memory_format=torch.contiguous_format)
    subtract_product(outside, inside, product(inside.mT, vectors))
    return outside, floor or 1.0


def _eliminate(outside: torch.Tensor, inside: torch.Tensor, picked: torch.Tensor) -> None:
    q, r = thin_qr(inside[picked].mT)  # [k, b], [b, b]
    shares = product(inside, q)  # [n, b]
    subtract_product(inside, shares, q.mT)
    weights = torch.linalg.solve_triangular(r.mT, shares, upper=False, left=False)  # [n, b]
    subtract_product(outside, weights.to(outside.dtype), outside[picked])


def _picks(
    outside: npt.NDArray[np.float64],
    inside: npt.NDArray[np.float64],
    floor: float,
    limit: float,
    *,
    total: float,
    remaining: int,
) -> list[int]:
    """Take the least quotients by EᵀE and BᵀB of the candidates [c, c], as far as they are low enough."""
    errors, parts = outside.diagonal().copy(), inside.diagonal().copy()  # [c]
    most = min(BLOCK, remaining)
    turned = np.empty((most, len(parts)))  # bᵀB/‖b‖² of those taken
    halves = np.empty_like(turned)  # so that EᵀE changes by turnedᵀ · halves and the transpose of it
    sizes = np.empty(most)
    picked: list[int] = []
    while (done := len(picked)) < most:
        gains = np.where(parts > THIN, np.maximum(errors, floor) / np.maximum(parts, THIN), np.inf)
        gains[picked] = np.inf
        best = int(gains.argmin())
        if picked and gains[best] > min(limit / slack(done), total / (remaining - done)):
            break
        before = turned[:done]
        part = inside[best] - combined(sizes[:done] * before[:, best], before)
        error = (
            outside[best] - combined(halves[:done, best], before) - combined(before[:, best], halves[:done])
        )
        sizes[done] = part[best]
        turned[done] = part / part[best]
        halves[done] = error - error[best] / 2 * turned[done]
        parts -= part * turned[done]
        errors -= 2 * turned[done] * halves[done]
        total += gains[best]
        picked.append(best)
    return picked
