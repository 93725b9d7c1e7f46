"""A product B·A of two thin matrices at a lower rank, exactly, from matrices no larger than they are.

With B = Q·R and Aᵀ = P·S, BA = Q (R·Sᵀ) Pᵀ: the core R·Sᵀ has the singular values of the product, and Q and P
turn its singular vectors into those of the product (Golub and Van Loan 2013, 8.6.3). So rank rules, budgets
and caches work on the core, and no matrix [m, n] is ever formed.
"""

import math
from dataclasses import dataclass, replace

import torch

from worker.lowrank.blas import limit_blas_threads, product, self_product
from worker.lowrank.candidate import smallest_rank
from worker.lowrank.decomposition import Decomposition, SolverCache
from worker.lowrank.factor import factor
from worker.lowrank.lapack import thin_qr, triangle
from worker.lowrank.scale import exponent_of, times_power
from worker.lowrank.svd import SVDMethod
from worker.lowrank.truncation import cast_factors, fit_to, without_subnormal_rows
from worker.lowrank.types import ErrorRank, Factored, FactorRequest, Kept, Reason


@dataclass(frozen=True, eq=False)
class ThinProduct:
    """W = B·A [m, n] of a pair, all in float64.

    Attributes
    ----------
    down : Tensor [r, n]
        A.
    up : Tensor [m, r]
        B.
    core : Tensor [p, q]
        Has the singular values of W; p = min(m, r), q = min(n, r). NaN where the pair is not finite.
    basis : Tensor [n, q]
        Orthonormal columns; W = U·core·basisᵀ for some U with orthonormal columns too.
    """

    down: torch.Tensor
    up: torch.Tensor
    core: torch.Tensor
    basis: torch.Tensor


@limit_blas_threads()
def thin_product(down: torch.Tensor, up: torch.Tensor) -> ThinProduct:
    """Find the core of a product, in O((m + n) r²).

    Parameters
    ----------
    down : Tensor [r, n]
        A, real and floating.
    up : Tensor [m, r]
        B, likewise.

    Returns
    -------
    ThinProduct
        In float64, on the device of the pair.
    """
    down, up = down.detach().to(torch.float64), up.detach().to(torch.float64)
    if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())):
        sides = min(up.shape), min(down.shape)
        return ThinProduct(down, up, up.new_full(sides, math.nan), up.new_zeros(down.shape[1], sides[1]))
    basis, turned = thin_qr(down.mT.contiguous())  # [n, q], [q, r]
    return ThinProduct(down, up, product(_reduced(up), turned.mT), basis)


@limit_blas_threads()
def resize(
    pair: ThinProduct, request: FactorRequest, dtype: torch.dtype, *, cache: SolverCache | None = None
) -> Factored | Kept:
    """Return the pair of lower rank whose product is nearest to that of a pair (Eckart and Young 1936).

    The rank follows from the core in float64. The factor that holds singular vectors is rounded first; the
    other is the least-squares fit to it as it is stored. The error is measured on both as they are stored; an
    `ErrorRank` holds for that.

    Parameters
    ----------
    pair : ThinProduct
        W = B·A.
    request : FactorRequest
        The rank or its rule, for a weight of W's spectrum; its method and dtype do not count.
    dtype : torch.dtype
        Of the stored factors.
    cache : SolverCache or None
        Decompositions of the core, as for :func:`worker.lowrank.factor`.

    Returns
    -------
    Factored or Kept
        Factors [k, n] and [m, k], the singular values split evenly.

    Examples
    --------
    >>> from worker.lowrank import SVDMethod
    >>> pair = thin_product(torch.ones(2, 5), torch.ones(4, 2))
    >>> request = FactorRequest(method=SVDMethod(), rank=1, max_rank=1, dtype=None)
    >>> resize(pair, request, torch.float32).relative_error < 1e-6
    True
    """
    rule = request.rank
    found = factor(pair.core, replace(request, method=SVDMethod(), dtype=torch.float64), cache=cache)
    if isinstance(found, Kept):
        return found
    assert found.decomposition is not None
    ceiling = request.ceiling(pair.core)
    align = 1 if isinstance(rule, int) else request.align

    def attempt(multiple: int) -> Factored | None:
        return _at(pair, found, multiple * align, dtype)

    def accept(result: Factored | None) -> bool:
        return not isinstance(rule, ErrorRank) or (result is not None and rule.allows(result.relative_error))

    most = min(ceiling, len(found.decomposition.basis)) // align
    result = smallest_rank(found.rank // align, most, attempt, accept)
    if result is None:
        return Kept(reason=Reason.OUT_OF_RANGE, singular_values=found.singular_values)
    return result if accept(result) else Kept(reason=Reason.NO_SAVING, singular_values=found.singular_values)


def _at(pair: ThinProduct, found: Factored, rank: int, dtype: torch.dtype) -> Factored | None:
    """Return the stored factors of a rank, and their error; None where the dtype cannot hold them."""
    assert found.decomposition is not None
    assert found.singular_values is not None
    vectors = _right_vectors(pair.core, found.decomposition, rank)  # [q, k]
    lengths = found.singular_values[:rank].to(vectors).sqrt()  # [k]
    cast = cast_factors((product(vectors.mT, pair.basis.mT) * lengths[:, None],), dtype)
    if cast is None:
        return None
    right = without_subnormal_rows(cast[0])  # R [k, n]
    stored = right.to(torch.float64)
    projected = product(pair.up, product(pair.down, stored.mT))  # WRᵀ [m, k]
    cast = cast_factors((fit_to(projected, self_product(stored.mT, torch.float64)),), dtype)
    if cast is None:
        return None
    error, norm = _residual(pair, stored, cast[0].to(torch.float64)), _norm(pair.core)
    if not (math.isfinite(error**2) and math.isfinite(norm**2)):
        return None
    relative = error / norm if norm > 0 else 0.0
    return replace(
        found,
        factors=(right, cast[0]),
        rank=rank,
        relative_error=relative,
        squared_error=error**2,
        squared_norm=norm**2,
        # Any factors of this rank bound the best possible error from above.
        optimal_error=min(found.decomposition.optimal_error(rank), relative),
    )


def _right_vectors(core: torch.Tensor, decomposition: Decomposition, rank: int) -> torch.Tensor:
    exponent = exponent_of(core)
    assert exponent is not None  # or there were no decomposition
    return decomposition.vectors(times_power(core, -exponent), rank, axis="columns").to(torch.float64)


def _residual(pair: ThinProduct, right: torch.Tensor, left: torch.Tensor) -> float:
    """Return ‖BA - LR‖_F, to the digits of float64: that of [B, -L]·[A; R], both reduced to triangles."""
    ups = _reduced(torch.cat((pair.up, -left), dim=1))
    downs = _reduced(torch.cat((pair.down, right)).mT.contiguous())
    return _norm(product(ups, downs.mT))


def _reduced(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix with the same products with itself, and no more rows than columns."""
    return triangle(matrix) if matrix.shape[0] > matrix.shape[1] else matrix


def _norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix))
