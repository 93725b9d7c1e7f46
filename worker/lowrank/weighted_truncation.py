"""Truncated factors for a weighted error from a decomposition in float32, and that error, in float32 too."""

import math
from dataclasses import dataclass

import torch

from worker.lowrank.blas import product
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.error import Residual, as_pair, measure, row_blocks
from worker.lowrank.gram import ScaledGram
from worker.lowrank.products import WeightedProducts, evenness, times_core
from worker.lowrank.truncation import (
    Factors,
    Truncation,
    cast_factors,
    fit_to,
    positive,
    without_subnormal_rows,
)
from worker.lowrank.weighting import WeightedError

# The share of a measured square that rounding in float32 may make up by its bound; where it is more, float64
# measures. The rounding that was seen is at most a hundredth of the bound.
ROUNDING_SHARE = 2e-4
EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class _Scaled:
    """Stored factors in the scale of X: L [m, k], C L [m, k] with outputs, and R [k, n]; float32."""

    left: torch.Tensor
    weighted_left: torch.Tensor
    right: torch.Tensor


def truncate_in_float32(
    products: WeightedProducts,
    decomposition: Decomposition,
    rank: int,
    *,
    dtype: torch.dtype,
    needs_exact_error: bool,
) -> Truncation | None:
    """Return the best approximation of rank k for an error that is weighted by F, by G or by both.

    Where the vectors are right ones V, the left factor is ASV = T⁻ᵀUΣ, so that no root of F is needed. Where
    they are left ones U, it is AGAᵀTU = T⁻ᵀUΣ², or U without F: T⁻ᵀ would blow up the rounding of U in
    outputs of small gradients. It is rounded first; the right factor is the best fit to it as it is stored,
    in the norm of F, which is the best one for any G.

    Parameters
    ----------
    products : WeightedProducts
        Of the weight [m, n] and its statistics.
    decomposition : Decomposition
        Of TᵀAS, of at least k vectors of the shorter side, in float32.
    rank : int
        k ≥ 1.
    dtype : torch.dtype
        Of the stored factors.
    needs_exact_error : bool
        Whether the weighted error must be measured in float64: it is then left out.

    Returns
    -------
    Truncation or None
        Without the weighted error where float32 is not enough to measure it. None where `dtype` cannot hold
        the factors.

    Raises
    ------
    LinAlgError
        Torch's or numpy's, if the Gram matrix of the shorter side has no root.
    """
    scaled, weighting = products.scaled, products.weighting
    outputs, inputs = weighting.outputs, weighting.inputs
    root = math.ldexp(1.0, scaled.exponent // 2)
    columns, rows = _columns_and_rows(products, decomposition, rank)
    columns, rows = _unscaled(columns, outputs), _unscaled(rows.mT, inputs).mT * products.size
    balance = torch.linalg.vector_norm(rows, dim=1) / positive(torch.linalg.vector_norm(columns, dim=0))
    cast = cast_factors((columns.mT * (balance.sqrt() * root)[:, None],), dtype)
    if cast is None:
        return None
    stored_columns = without_subnormal_rows(cast[0])  # [k, m]
    left = stored_columns.mT.to(torch.float64) / root
    if outputs is not None:
        left = left * outputs.scale[:, None]
    # Both factors are in the range of float32 once the size of the left one is taken out.
    left_size = float(left.abs().amax()) or 1.0
    left = (left / left_size).to(torch.float32)  # [m, k]
    weighted_left = times_core(outputs, left)
    projected = product(products.matrix.mT, weighted_left)  # [n, k]
    gram = product(left.mT, weighted_left)
    fitted = fit_to(projected, gram.add_(gram.mT.clone()).mul_(0.5)).to(torch.float64)
    fitted = _unscaled(fitted, inputs) * (products.size / left_size)
    cast = cast_factors((fitted * root,), dtype)
    if cast is None:
        return None
    factors = (cast[0].mT.contiguous(), stored_columns.mT.contiguous())
    residual = measure(scaled.weight, factors, scaled.exponent)
    if needs_exact_error or scaled.matrix.dtype == torch.float64:
        return Truncation(factors, residual)
    right = factors[0].to(torch.float64) / root * (left_size / products.size)
    if inputs is not None:
        right = right * inputs.scale
    pair = _Scaled(left, weighted_left, right.to(torch.float32))
    return Truncation(factors, residual, _measured(products, pair, factors))


def _unscaled(rows: torch.Tensor, side: ScaledGram | None) -> torch.Tensor:
    """Return rows over the size of each, in float64."""
    rows = rows.to(torch.float64)
    return rows if side is None else rows / side.scale[:, None]


def _columns_and_rows(
    products: WeightedProducts, decomposition: Decomposition, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the left factor T⁻ᵀU [m, k] and the right one UᵀTᵀA [k, n], both in the scale of X."""
    basis = decomposition.basis[:rank].to(products.matrix.device)  # [k, p]
    values = decomposition.singular_values[:rank].to(basis) / products.size
    turned = products.times_near_root(basis.mT)  # SV or TU [p, k]
    if products.is_tall:
        rows = product(turned.mT, products.near_gram)
        return product(products.matrix, turned) / positive(values), rows / positive(values)[:, None]
    rows = product(turned.mT, products.matrix)
    if products.near is None:
        return turned, rows
    return product(products.near_gram, turned) / positive(values.square()), rows


def _measured(products: WeightedProducts, pair: _Scaled, factors: Factors) -> WeightedError | None:
    """Return the weighted error of stored factors; None where rounding could be seen in it."""
    weighting, exponent = products.weighting, products.scaled.exponent
    inputs, outputs = weighting.inputs, weighting.outputs
    matrix, by_outputs, by_inputs = products.matrix, products.by_outputs, products.by_inputs
    error = matrix - product(pair.left, pair.right)  # E [m, n]
    left = error if outputs is None else by_outputs - product(pair.weighted_left, pair.right)  # C E
    right = error
    if inputs is not None:
        right = by_inputs - product(pair.left, times_core(inputs, pair.right.mT).mT)  # E C'
    noise = EPS * evenness(inputs) * evenness(outputs) / ROUNDING_SHARE

    def residual(
        of_error: torch.Tensor, of_weight: torch.Tensor, sizes: torch.Tensor | None
    ) -> Residual | None:
        found, whole, energy, whole_energy = (
            float((rows if sizes is None else rows / sizes).sum())
            for rows in (of_error, of_weight, _dots(error, error), _dots(matrix, matrix))
        )
        if not found > noise * math.sqrt(energy * whole_energy):
            return None
        return Residual(found * products.size**2, whole * products.size**2, exponent)

    objective = residual(_dots(left, right), _dots(by_outputs, by_inputs), None)
    of_outputs = objective if outputs is None else None
    if inputs is not None and outputs is not None:
        of_outputs = residual(_dots(error, right), _dots(matrix, by_inputs), outputs.scale.square())
    if objective is None or (of_outputs is None and inputs is not None):
        return None
    known = inputs is not None and outputs is not None and weighting.count is not None
    return WeightedError(
        objective=objective,
        outputs=of_outputs,
        loss=objective.squared_error if known else None,
        shift=None if weighting.mean is None else _shift(products, factors, weighting.mean),
    )


def _dots(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the inner product of each row of one matrix with that of the other, in float64 [m]."""
    rows: torch.Tensor = torch.linalg.vecdot(left, right)
    return rows.to(torch.float64)


def _shift(products: WeightedProducts, factors: Factors, mean: torch.Tensor) -> torch.Tensor:
    """Return (W - Ŵ)μ [m] in float64."""
    weight = products.scaled.weight
    right, left = as_pair([factor.to(torch.float64) for factor in factors])
    assert left is not None
    blocks = [weight[rows].to(torch.float64) @ mean for rows in row_blocks(*weight.shape)]
    return torch.cat(blocks) - left @ (right @ mean)
