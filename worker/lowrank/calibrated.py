"""Decompositions for a weighted error, tr((W - Ŵ)ᵀF(W - Ŵ)G) in place of ‖W - Ŵ‖_F²."""

import math
import sys
from collections.abc import Iterator
from functools import partial

import torch

from worker.lowrank.blas import product, self_product
from worker.lowrank.decomposition import Axis, Decomposition, SolverCache
from worker.lowrank.error import row_blocks
from worker.lowrank.gram import ScaledGram
from worker.lowrank.lapack import fix_signs, full_svd, leading_eigenpairs, thin_qr, triangle
from worker.lowrank.products import WeightedProducts, evenness
from worker.lowrank.scale import ScaledWeight, scaled_copy
from worker.lowrank.solvers import GRAM_ROUNDING, SMALL, Solver, Wanted, run_cascade
from worker.lowrank.weighting import Weighting

EPS = sys.float_info.epsilon
# A product with C in float32 moves up to this many eps of Σσ² where C is even; 0.4 were seen.
CORE_ROUNDING = 2


def solve_calibrated(
    weight: torch.Tensor,
    exponent: int,
    weighting: Weighting,
    *,
    num_vectors: int,
    cache: SolverCache | None = None,
    products: WeightedProducts | None = None,
) -> Iterator[Decomposition]:
    """Yield decompositions of 2^-exponent · F^½ W G^½, each more accurate than the one before.

    With F = T Tᵀ and G = S Sᵀ, ‖Tᵀ(W - Ŵ)S‖_F is least for Ŵ = T⁻ᵀ U_k U_kᵀ TᵀW with the leading left
    singular vectors U_k of TᵀWS, and its square is Σ_{i>k} σᵢ² (Eckart and Young 1936 for TᵀWS; with F = I as
    in SVD-LLM V2, Wang et al. 2025; F ⊗ G is the Fisher matrix as Martens and Grosse 2015 approximate it). No
    inverse of S is needed, so G may be of any rank. F and G are equilibrated and ridged first: see
    :class:`worker.lowrank.gram.ScaledGram`.

    The first solver takes the eigenvalues of the smaller Gram matrix of TᵀWS in float32, the second in
    float64, and where the rounding of both is visible an SVD of TᵀWS follows. The first is left out up to a
    short side of 128.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; float64, float32, float16 or bfloat16. The work is done on its device.
    exponent : int
        Its scale (see :func:`worker.lowrank.scale.exponent_of`).
    weighting : Weighting
        F, G or both.
    num_vectors : int
        The number of singular vectors, 1 ≤ r ≤ min(m, n).
    cache : SolverCache or None
        As for :func:`worker.lowrank.solvers.solve`.
    products : WeightedProducts or None
        Those of the weight, where they are needed later too.

    Yields
    ------
    Decomposition
        At most four; none where nothing converged. Its basis is U, of axis "rows"; that of the first, in
        float32, is V, of axis "columns", where m > n. Its spectrum is without the ridge of G, but with that
        of F.
    """
    fast = 0
    if min(weight.shape) > SMALL:
        fast = 1
        products = products or WeightedProducts(ScaledWeight(weight, exponent), weighting)
        in_float32: Solver = partial(_in_float32, products=products)
        yield from run_cascade(
            products.matrix, [in_float32], num_vectors=num_vectors, all_values=True, cache=cache
        )
        products.forget()
    taken = weighting.scaled(scaled_copy(weight, exponent, torch.float64))  # [m, n]
    solvers: list[Solver] = [
        partial(_by_eigenvalues, weighting=weighting),
        partial(_by_svd, weighting=weighting, iterate=False),
        partial(_by_svd, weighting=weighting, iterate=True),
    ]
    yield from run_cascade(taken, solvers, num_vectors=num_vectors, all_values=True, cache=cache, first=fast)


def _in_float32(_: torch.Tensor, wanted: Wanted, *, products: WeightedProducts) -> Decomposition:
    """Decompose without the ridge of the longer side, which float32 cannot tell from zero."""
    near, far = products.near, products.far
    gram = products.near_gram
    if near is not None:
        lower = near.root[0].to(torch.float32)
        gram = product(product(lower.mT, gram), lower)
    values, rows = leading_eigenpairs(gram, len(gram), all_values=True)
    total = float(values.clamp_min(0).sum())
    reach = wanted.energy / total if total > 0 else 0.0
    ridge = sum(side.ridge for side in (near, far) if side is not None)
    eps = torch.finfo(torch.float32).eps
    # The root of the shorter side adds no rounding to that of the product with C of the longer one, which is
    # spread over all directions: their mean size is 1.
    roundoff = eps * max(GRAM_ROUNDING, CORE_ROUNDING * evenness(far) * reach) + ridge * reach
    return _decomposition(
        values * products.size**2,
        rows[: wanted.num_vectors],
        roundoff=roundoff,
        axis="columns" if products.is_tall else "rows",
    )


def _sandwich(matrix: torch.Tensor, inputs: ScaledGram | None) -> torch.Tensor:
    """Return M C Mᵀ [m, m], or M Mᵀ without inputs, in the dtype of M [m, n]; symmetric."""
    if inputs is None:
        return self_product(matrix.mT, matrix.dtype)
    core = inputs.core.to(matrix.dtype)
    found = matrix.new_empty(len(matrix), len(matrix))
    for rows in row_blocks(*matrix.shape):
        found[rows] = product(product(matrix[rows], core), matrix.mT)
    return found.add_(found.mT.clone()).mul_(0.5)


def _spread(side: ScaledGram | None) -> float:
    """Return how far C may spread rounding: ‖C‖_F, of the identity that is not there 1."""
    return 1.0 if side is None else side.norm


def _by_eigenvalues(taken: torch.Tensor, wanted: Wanted, *, weighting: Weighting) -> Decomposition:
    matrix = _times_output_root(taken, weighting)
    wide = matrix.shape[0] <= matrix.shape[1]
    energies, basis = (_left_of_wide if wide else _left_of_tall)(matrix, weighting.inputs, wanted.num_vectors)
    total = float(energies.clamp_min(0).sum())
    spread = _spread(weighting.inputs) * _spread(weighting.outputs)
    reach = wanted.energy * spread / total if total > 0 else 0.0
    roundoff = EPS * math.sqrt(max(taken.shape)) * reach
    # If a Gram matrix was stored in float32, its own rounding is larger than that of any solver, so a better
    # solver would not help.
    return _decomposition(energies, basis, roundoff=0.0 if weighting.in_float32 else roundoff)


def _left_of_wide(
    matrix: torch.Tensor, inputs: ScaledGram | None, num_vectors: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decompose M (C + δI) Mᵀ [m, m]; no root of the larger C is needed."""
    plain = self_product(matrix.mT, torch.float64)  # [m, m]
    if inputs is None:
        values, rows_of = leading_eigenpairs(plain, len(plain), all_values=True)
        return values, rows_of[:num_vectors]
    ridged = _sandwich(matrix, inputs).add_(plain, alpha=inputs.ridge)
    values, rows_of = leading_eigenpairs(ridged, len(ridged), all_values=True)  # [m], [m, m]
    del ridged
    energies = values - inputs.ridge * (product(rows_of, plain) * rows_of).sum(1).cpu()
    return energies, rows_of[:num_vectors]


def _left_of_tall(
    matrix: torch.Tensor, inputs: ScaledGram | None, num_vectors: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decompose (M S)ᵀ M S [n, n], and compute the left vectors from the right ones."""
    rooted = _times_input_root(matrix, inputs)
    values, right = leading_eigenpairs(
        self_product(rooted, torch.float64), rooted.shape[1], all_values=True
    )  # [n], [n, n]
    left, _ = thin_qr(product(rooted, right[:num_vectors].mT))  # [m, num_vectors]
    if inputs is None:
        return values, left.mT
    # σᵢ²‖S⁻ᵀvᵢ‖² is what the ridge adds, in units of δ.
    lower, ridge = inputs.root
    solved = torch.linalg.solve_triangular(lower.mT, right.mT, upper=True)  # [n, n]
    energies = values * (1 - ridge * solved.square().sum(0)).clamp_min(0).cpu()
    return energies, left.mT


def _by_svd(taken: torch.Tensor, wanted: Wanted, *, weighting: Weighting, iterate: bool) -> Decomposition:
    """Decompose M S by QR and an SVD of the small factor: no squares are taken."""
    plain = _times_output_root(taken, weighting)
    matrix = _times_input_root(plain, weighting.inputs)
    if matrix.shape[0] <= matrix.shape[1]:
        core = triangle(matrix.mT).mT  # [m, m]
        left = full_svd(core, iterate=iterate)[0]  # [m, m]
    else:
        orthonormal, core = thin_qr(matrix)  # [m, n], [n, n]
        left = product(orthonormal, full_svd(core, iterate=iterate)[0])  # [m, n]
        del orthonormal
    energies = product(left.mT, matrix).square_().sum(1)  # [p]
    if weighting.inputs is not None:
        energies -= weighting.inputs.root[1] * product(left.mT, plain).square_().sum(1)
    return _decomposition(energies.cpu(), left[:, : wanted.num_vectors].mT, roundoff=0.0)


def _decomposition(
    energies: torch.Tensor, basis: torch.Tensor, *, roundoff: float, axis: Axis = "rows"
) -> Decomposition:
    """Build the result; energies that rounding took below 0 are 0."""
    return Decomposition(
        singular_values=energies.clamp_min(0).sqrt().sort(descending=True).values,
        basis=fix_signs(basis.contiguous()),
        axis=axis,
        roundoff=roundoff,
        calibrated=True,
    )


def _times_output_root(taken: torch.Tensor, weighting: Weighting) -> torch.Tensor:
    """Return Tᵀ A [m, n]; A itself without F."""
    return taken if weighting.outputs is None else product(weighting.outputs.root[0].mT, taken)


def _times_input_root(matrix: torch.Tensor, inputs: ScaledGram | None) -> torch.Tensor:
    """Return M S [m, n]; M itself without G."""
    return matrix if inputs is None else product(matrix, inputs.root[0])
