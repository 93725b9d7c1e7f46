"""The relative Frobenius error of stored factors, measured from W - Ŵ in blocks of rows.

Where the error of each method is measured: `cx` and `cur` here (:func:`measure`), and so is `svd` where the
error is small or a limit must be met. Else the error of `svd` follows from products that
:mod:`worker.lowrank.truncation` has at hand. With statistics, the weighted errors of all methods are
measured in :mod:`worker.lowrank.weighting` (`measure_weighted`). After the dense layout or a codec that
rounds, ``worker/layer.py`` measures again, by :func:`relative_error`, on the matrices that are stored.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from worker.lowrank.blas import product
from worker.lowrank.scale import exponent_of, squared_norm, times_power

# Elements of one block that is taken to float64, so that no whole matrix is in memory in float64.
BLOCK_ELEMENTS = 1 << 21
# Rounding in a float32 product is at most about eps times the product of the factors' norms. An error this
# many times larger is not affected by it.
FLOAT32_MARGIN = 1e4
# Norms up to this, or down to its inverse, keep a chain's partial products within float32's range.
FLOAT32_NORM = 2.0**60


@dataclass(frozen=True)
class Residual:
    """‖W - Ŵ‖_F² and ‖W‖_F² of 2^-exponent · W, so that both are in range at any scale of W."""

    scaled_error: float
    scaled_norm: float
    exponent: int

    @property
    def relative(self) -> float:
        """‖W - Ŵ‖_F/‖W‖_F; 0/0 is 0."""
        if self.scaled_norm > 0:
            return math.sqrt(self.scaled_error / self.scaled_norm)
        return 0.0 if self.scaled_error == 0 else math.inf

    @property
    def squared_error(self) -> float:
        """‖W - Ŵ‖_F², inf where float64 cannot hold it."""
        return _ldexp(self.scaled_error, 2 * self.exponent)

    @property
    def squared_norm(self) -> float:
        """‖W‖_F², inf where float64 cannot hold it."""
        return _ldexp(self.scaled_norm, 2 * self.exponent)


def relative_error(weight: torch.Tensor, factors: Sequence[torch.Tensor]) -> float:
    """Return ‖W - Ŵ‖_F/‖W‖_F for the factors exactly as they are stored.

    The product is formed in blocks of rows, the small side multiplied first. Sums of squares are in float64,
    and so are the products wherever the rounding of float32 could be seen in the result.

    Parameters
    ----------
    weight : Tensor [m, n]
        Finite, any real floating dtype.
    factors : sequence of Tensor
        In the order of a ``torch.nn.Sequential``, input side first: ``(right [k, n], left [m, k])`` or
        ``(r [k, n], u [k, k], c [m, k])``; or ``(product [m, n],)``. Any real floating dtype, each its own.

    Returns
    -------
    float
        0 where both W and Ŵ are zero, inf where only W is.

    Raises
    ------
    ValueError
        If the shapes do not chain to that of the weight, or the weight is not finite.
    """
    check_chain(weight, factors)
    exponent = exponent_of(weight.detach())
    if exponent is None:
        raise ValueError("the weight holds NaN or infinite values; its relative error is not defined")
    return measure(weight.detach(), factors, exponent).relative


def measure(
    weight: torch.Tensor, factors: Sequence[torch.Tensor], exponent: int, *, in_float64: bool = False
) -> Residual:
    """Return the error of factors; the body of :func:`relative_error`.

    Parameters
    ----------
    weight : Tensor [m, n]
        W, finite.
    factors : sequence of Tensor
        As for :func:`relative_error`, of shapes that fit.
    exponent : int
        The scale of the weight (see :func:`worker.lowrank.scale.exponent_of`).
    in_float64 : bool
        Whether to compute in float64 at once, without a try in float32.

    Returns
    -------
    Residual
        ‖W - Ŵ‖_F² and ‖W‖_F².
    """
    if not (in_float64 or any(tensor.dtype == torch.float64 for tensor in (weight, *factors))):
        norms = [float(torch.linalg.vector_norm(factor, dtype=torch.float64)) for factor in factors]
        norms.append(math.ldexp(1.0, -exponent))
        if all(1 / FLOAT32_NORM <= norm <= FLOAT32_NORM for norm in norms):
            rounding = torch.finfo(torch.float32).eps * math.prod(norms)
            residual = _measure_in(torch.float32, weight, factors, exponent)
            if math.sqrt(residual.scaled_error) > FLOAT32_MARGIN * rounding:
                return residual
    return _measure_in(torch.float64, weight, factors, exponent)


def _measure_in(
    dtype: torch.dtype, weight: torch.Tensor, factors: Sequence[torch.Tensor], exponent: int
) -> Residual:
    pair = as_pair([factor.to(dtype) for factor in factors])  # [j, n], [m, j]
    scaled_error = scaled_norm = 0.0
    for rows in row_blocks(*weight.shape):
        block = times_power(weight[rows].to(dtype), -exponent)  # [rows, n]
        scaled_norm += squared_norm(block)
        block -= product_rows(pair, rows, exponent)
        scaled_error += squared_norm(block)
    return Residual(scaled_error, scaled_norm, exponent)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices that cut so many rows of so many columns into blocks of about `BLOCK_ELEMENTS`."""
    step = max(1, BLOCK_ELEMENTS // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def product_rows(pair: tuple[torch.Tensor, torch.Tensor | None], rows: slice, exponent: int) -> torch.Tensor:
    """Return some rows of 2^-exponent · Ŵ, Ŵ the product of the result of :func:`as_pair`."""
    right, left = pair
    if left is None:
        return times_power(right[rows], -exponent)  # [rows, n]
    return product(times_power(left[rows], -exponent), right)  # [rows, n]


def as_pair(factors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Multiply three factors to two, input side first, the small sides first; None stands for no second."""
    if len(factors) == 1:
        return factors[0], None
    if len(factors) == 2:
        return factors[0], factors[1]
    right, middle, left = factors  # [k, n], [k, k], [m, k]
    if left.shape[0] < right.shape[1]:
        return right, product(left, middle)
    return product(middle, right), left


def _ldexp(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def check_chain(weight: torch.Tensor, factors: Sequence[torch.Tensor]) -> None:
    """Raise ValueError for factors whose shapes do not multiply to that of the weight."""
    shapes = [tuple(factor.shape) for factor in factors]
    chained = (
        len(shapes) in (1, 2, 3)
        and all(len(shape) == 2 for shape in shapes)
        and all(after[1] == before[0] for before, after in pairwise(shapes))
        and (shapes[-1][0], shapes[0][1]) == tuple(weight.shape)
    )
    if not chained:
        raise ValueError(
            f"factors of shapes {shapes} do not multiply to a weight of shape {tuple(weight.shape)}; "
            "give two or three, input side first, as in a torch.nn.Sequential, or their product"
        )
