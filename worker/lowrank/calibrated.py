"""The error of outputs, ‖(W - Ŵ)X‖_F in place of ‖W - Ŵ‖_F: its minimum, and its measurement from G = XXᵀ."""

import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from worker.lowrank.blas import product, self_product
from worker.lowrank.decomposition import Decomposition, SolverCache
from worker.lowrank.error import Residual, as_pair, check_chain, product_rows, row_blocks
from worker.lowrank.gram import RIDGES, ScaledGram
from worker.lowrank.lapack import fix_signs, full_svd, leading_eigenpairs, thin_qr, triangle
from worker.lowrank.scale import ScaledWeight, finite_exponent, scaled_copy, times_power
from worker.lowrank.solvers import Solver, Wanted, run_cascade

EPS = sys.float_info.epsilon


def solve_calibrated(
    weight: torch.Tensor,
    exponent: int,
    gram: torch.Tensor,
    *,
    num_vectors: int,
    cache: SolverCache | None = None,
) -> Iterator[Decomposition]:
    """Yield decompositions of 2^-exponent · W G^½, each more accurate than the one before.

    Ŵ = U_k U_kᵀ W with the leading left singular vectors U_k of W S, for any S with S Sᵀ = G, minimizes
    ‖(W - Ŵ)X‖_F over all Ŵ of rank k, and its square is Σ_{i>k} σᵢ² (Eckart and Young 1936 for W S; as in
    SVD-LLM V2, Wang et al. 2025). No inverse of S is needed, so G may be of any rank. G is equilibrated and
    ridged first: see :class:`worker.lowrank.gram.ScaledGram`. All is done in float64: first by eigenvalues of
    the smaller Gram matrix of W S, and where its rounding is visible by QR and an SVD of W S itself.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; float64, float32, float16 or bfloat16. The work is done on its device.
    exponent : int
        Its scale (see :func:`worker.lowrank.scale.exponent_of`).
    gram : Tensor [n, n]
        G, in which :func:`worker.lowrank.gram.gram_fault` finds no fault; float64 or float32.
    num_vectors : int
        The number of singular vectors, 1 ≤ r ≤ min(m, n).
    cache : SolverCache or None
        As for :func:`worker.lowrank.solvers.solve`.

    Yields
    ------
    Decomposition
        Of axis "rows", at most three; none where nothing converged. Its spectrum is without the ridge.
    """
    inputs = ScaledGram.of(gram.to(weight.device))
    taken = scaled_copy(weight, exponent, torch.float64).mul_(inputs.scale)  # [m, n]
    solvers: list[Solver] = [
        partial(_by_eigenvalues, inputs=inputs),
        partial(_by_svd, inputs=inputs, iterate=False),
        partial(_by_svd, inputs=inputs, iterate=True),
    ]
    yield from run_cascade(taken, solvers, num_vectors=num_vectors, all_values=True, cache=cache)


def measure_output_error(
    weight: torch.Tensor, factors: Sequence[torch.Tensor], exponent: int, gram: torch.Tensor
) -> Residual:
    """Return ‖(W - Ŵ)X‖_F² = tr((W - Ŵ)G(W - Ŵ)ᵀ) and ‖WX‖_F² of 2^-exponent · W, measured in float64.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; finite, any real floating dtype.
    factors : sequence of Tensor
        As for :func:`worker.lowrank.relative_error`.
    exponent : int
        The scale of the weight.
    gram : Tensor [n, n]
        G = XXᵀ; float64 or float32, on any device.

    Returns
    -------
    Residual
        Summed over blocks of rows. Neither is below 0, though rounding in G could make them so.
    """
    inputs = ScaledGram.of(gram.to(weight.device))
    pair = as_pair([factor.to(torch.float64) for factor in factors])  # [j, n], [m, j]
    error = norm = 0.0
    for rows in row_blocks(*weight.shape):
        block = times_power(weight[rows].to(torch.float64), -exponent) * inputs.scale  # [rows, n]
        norm += _energy(block, inputs.core)
        block -= product_rows(pair, rows, exponent) * inputs.scale
        error += _energy(block, inputs.core)
    return Residual(max(error, 0.0), max(norm, 0.0), exponent)


def output_error(weight: torch.Tensor, factors: Sequence[torch.Tensor], gram: torch.Tensor) -> float:
    """Return ‖(W - Ŵ)X‖_F/‖WX‖_F for factors exactly as stored; see :func:`measure_output_error`.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or the weight is not finite.
    """
    check_chain(weight, factors)
    exponent = finite_exponent(weight.detach())
    if tuple(gram.shape) != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no inputs of {tuple(gram.shape)}")
    return measure_output_error(weight.detach(), factors, exponent, gram).relative


def output_error_floor(
    scaled: ScaledWeight, gram: torch.Tensor, measured: Residual, *, rounding: float
) -> float:
    """Return the least relative error of the outputs that can be told from zero.

    Below it, an error may come from the rounding of G or of the stored factors.

    Parameters
    ----------
    scaled : ScaledWeight
        The weight.
    gram : Tensor [n, n]
        G.
    measured : Residual
        Of the outputs.
    rounding : float
        Relative to ‖W‖_F, of the stored factors.
    """
    if measured.scaled_norm == 0:
        return math.inf
    # ‖E X‖ ≤ ‖E‖ ‖X‖_F for any error E of the factors.
    spread = math.sqrt(scaled.energy * float(gram.diagonal().double().sum()) / measured.scaled_norm)
    return max(math.sqrt(RIDGES[gram.dtype]), rounding * spread)


def input_root(gram: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return R = D C^½ [n, n] in float64, G = D C D ridged: R Rᵀ = G, so ‖E X‖_F = ‖E R‖_F for any E.

    Parameters
    ----------
    gram : Tensor [n, n]
        As for :func:`solve_calibrated`.
    device : torch.device
        The device to compute on.

    Raises
    ------
    LinAlgError
        torch's or numpy's, if the eigenvalues of G were not found.
    """
    inputs = ScaledGram.of(gram.to(device))
    vectors, values = _root(inputs)
    core = product(vectors * (values + inputs.ridge).sqrt(), vectors.mT.contiguous())
    return core.mul_(inputs.scale[:, None])


def _by_eigenvalues(taken: torch.Tensor, wanted: Wanted, *, inputs: ScaledGram) -> Decomposition:
    wide = taken.shape[0] <= taken.shape[1]
    energies, basis = (_left_of_wide if wide else _left_of_tall)(taken, inputs, wanted.num_vectors)
    total = float(energies.clamp_min(0).sum())
    reach = wanted.energy * float(torch.linalg.matrix_norm(inputs.core)) / total if total > 0 else 0.0
    roundoff = EPS * math.sqrt(max(taken.shape)) * reach
    # If G was stored in float32, its own rounding is larger than that of any solver, so a better solver
    # would not help.
    return _decomposition(
        energies, basis, roundoff=roundoff if inputs.ridge == RIDGES[torch.float64] else 0.0
    )


def _left_of_wide(
    taken: torch.Tensor, inputs: ScaledGram, num_vectors: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decompose A (C + δI) Aᵀ [m, m]; no eigenvalues of the larger C are needed."""
    plain = self_product(taken.mT, torch.float64)  # [m, m]
    ridged = torch.empty_like(plain)
    for rows in row_blocks(*taken.shape):
        ridged[rows] = product(product(taken[rows], inputs.core), taken.mT)
    ridged.add_(plain, alpha=inputs.ridge)
    ridged = ridged.add_(ridged.mT.clone()).mul_(0.5)
    values, rows_of = leading_eigenpairs(ridged, len(ridged), all_values=True)  # [m], [m, m]
    del ridged
    energies = values - inputs.ridge * (product(rows_of, plain) * rows_of).sum(1).cpu()
    return energies, rows_of[:num_vectors]


def _left_of_tall(
    taken: torch.Tensor, inputs: ScaledGram, num_vectors: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decompose (A S)ᵀ A S [n, n], and compute the left vectors from the right ones."""
    matrix, share = _rooted(taken, inputs)
    values, right = leading_eigenpairs(
        self_product(matrix, torch.float64), matrix.shape[1], all_values=True
    )  # [n], [n, n]
    energies = values * (right.square() @ share).cpu()
    left, _ = thin_qr(product(matrix, right[:num_vectors].mT))  # [m, num_vectors]
    return energies, left.mT


def _by_svd(taken: torch.Tensor, wanted: Wanted, *, inputs: ScaledGram, iterate: bool) -> Decomposition:
    """Decompose A S by QR and an SVD of the small factor: no squares are taken."""
    matrix, share = _rooted(taken, inputs)
    if matrix.shape[0] <= matrix.shape[1]:
        core = triangle(matrix.mT).mT  # [m, m]
        left = full_svd(core, iterate=iterate)[0]  # [m, m]
    else:
        orthonormal, core = thin_qr(matrix)  # [m, n], [n, n]
        left = product(orthonormal, full_svd(core, iterate=iterate)[0])  # [m, n]
        del orthonormal
    energies = (product(left.mT, matrix).square_() @ share).cpu()  # [p]
    return _decomposition(energies, left[:, : wanted.num_vectors].mT, roundoff=0.0)


def _decomposition(energies: torch.Tensor, basis: torch.Tensor, *, roundoff: float) -> Decomposition:
    """Build the result; energies that rounding took below 0 are 0."""
    return Decomposition(
        singular_values=energies.clamp_min(0).sqrt().sort(descending=True).values,
        basis=fix_signs(basis.contiguous()),
        axis="rows",
        roundoff=roundoff,
        calibrated=True,
    )


def _root(inputs: ScaledGram) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvectors of C [n, n] and its eigenvalues [n], those that rounding took below 0 as 0."""
    values, rows = leading_eigenpairs(inputs.core, len(inputs.scale), all_values=True)
    return rows.mT, values.clamp_min(0).to(rows.device)


def _rooted(taken: torch.Tensor, inputs: ScaledGram) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A S [m, n] with S Sᵀ = C + δI, and the share [n] of each column's energy without δ."""
    vectors, values = _root(inputs)
    ridged = values + inputs.ridge
    return product(taken, vectors).mul_(ridged.sqrt()), values / ridged


def _energy(block: torch.Tensor, core: torch.Tensor) -> float:
    return float((product(block, core) * block).sum())
