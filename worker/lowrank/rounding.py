"""Round a weight to integers of a few bits, each row or group of a row with a scale of its own."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from worker.lowrank.blas import limit_blas_threads, product
from worker.lowrank.scale import finite_exponent, scaled_copy, times_power, working_dtype
from worker.lowrank.statistics import Statistics

# Columns whose errors are carried on to all others together, and within such a block. Every size of a group
# is a multiple of the latter and divides the former.
BLOCK_COLUMNS = 128
INNER_COLUMNS = 32
# Shares of the largest entry that the largest integer may stand for; what is above is clipped. The first of
# equal ones is taken.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
# Of the mean of G's diagonal: what is added to the diagonal before the error is carried on.
RIDGE = 0.01
# Elements that the search for scales takes at a time, so that they stay in the processor's cache.
SEARCH_ELEMENTS = 1 << 18


@dataclass(frozen=True, eq=False)
class RoundedMatrix:
    """Integers and their scales: entry (i, j) is values[i, j] · scale[i, j // group].

    Attributes
    ----------
    values : Tensor [m, n], int8
        From -2^(b-1) to 2^(b-1) - 1 for b bits.
    scale : Tensor [m, n / group]
        One for each group of neighbours in a row, or one for each row [m, 1]; the dtype of the result.
    """

    values: torch.Tensor
    scale: torch.Tensor

    def dense(self) -> torch.Tensor:
        """Return the matrix [m, n] in the dtype of the scales, as readers of the file compute it."""
        rows, columns = self.values.shape
        groups = self.scale.shape[1]
        grouped = self.values.view(rows, groups, columns // groups).to(self.scale.dtype)
        return (grouped * self.scale[:, :, None]).view(rows, columns)


@dataclass(frozen=True)
class Grid:
    """The numbers that a matrix may be rounded to: integers of `bits` bits, times a scale per `group`.

    `group` is a divisor of n, or None for one scale for each row. `scale_dtype` is that of the scales.
    """

    bits: int
    group: int | None
    scale_dtype: torch.dtype

    @property
    def levels(self) -> int:
        """The largest integer; the least is -levels - 1. There is no zero point, so 0 rounds to 0."""
        return (1 << (self.bits - 1)) - 1


def round_nearest(matrix: torch.Tensor, grid: Grid) -> RoundedMatrix:
    """Round each entry to the nearest multiple of its scale, which takes the largest entry in.

    Parameters
    ----------
    matrix : Tensor [m, n]
        Real and floating.
    grid : Grid
        What to round to.

    Returns
    -------
    RoundedMatrix
        Not finite where the scales are not. Rounding -W gives the negative of rounding W.
    """
    rows, columns = matrix.shape
    width = grid.group or columns
    grouped = matrix.to(working_dtype(matrix)).reshape(rows, columns // width, width)
    scale = (grouped.abs().amax(2) / grid.levels).to(grid.scale_dtype)  # [m, groups]
    values = _to_integers(grouped, scale.to(grouped.dtype)[:, :, None], grid.levels)
    return RoundedMatrix(values.view(rows, columns).to(torch.int8), scale)


@limit_blas_threads()
def round_weight(
    weight: torch.Tensor, grid: Grid, statistics: Statistics | None = None
) -> RoundedMatrix | None:
    """Round a weight so that its outputs change least.

    Scales are found by search: among shares from 0.6 to 1 of a row's or a group's largest entry, the one with
    the least squared error. With a Gram matrix the columns are rounded one after another, and the errors of
    those before are carried on to each: with H = G + 0.01·mean(diag G)·I = U D Uᵀ, U unit upper triangular,
    column j of Ŵ is that of T = W + (W - Ŵ)(U - I), rounded. Then tr((W - Ŵ)H(W - Ŵ)ᵀ) = ‖(T - Ŵ)D^½‖², so
    the search weighs columns by D. A group's scale is found from T when its turn comes. This is the rounding
    of OBQ and GPTQ (Frantar et al. 2022) without the inverse of H, as in LDLQ (Chee et al. 2023, whose
    theorem 6 says that both are the same). Columns are taken in blocks, so that most of the work is products
    of matrices.

    Parameters
    ----------
    weight : Tensor [m, n]
        W, finite: float64, float32, float16 or bfloat16. The work is done on its device, in float32 but for
        H and its factors.
    grid : Grid
        What to round to.
    statistics : Statistics or None
        Of the layer; only those of the inputs matter, since rows are rounded by themselves. A mean μ says
        that the bias takes up the mean of the error, so that G - Nμμᵀ takes the place of G.

    Returns
    -------
    RoundedMatrix or None
        None where `grid.scale_dtype` cannot hold the scales. The same input gives the same integers.

    Raises
    ------
    ValueError
        If the weight is not a matrix of finite numbers.
    """
    exponent = finite_exponent(weight)
    scaled = scaled_copy(weight, exponent, working_dtype(weight))
    columns = scaled.to(torch.float32).mT.contiguous()  # [n, m]
    gram = None if statistics is None else _input_gram(statistics, weight.device)
    if gram is None:
        feedback, importance = None, torch.ones(len(columns), device=weight.device)
    else:
        feedback, importance = _feedback(gram)
    del gram
    rounded = _Rounding(grid, exponent, importance, feedback).run(columns)
    return rounded if _fits(rounded.scale, columns) else None


def _fits(scale: torch.Tensor, columns: torch.Tensor) -> bool:
    """Whether the largest scale is a normal number; smaller ones matter less."""
    largest = float(scale.max())
    return not bool(columns.any()) or torch.finfo(scale.dtype).tiny <= largest < math.inf


def _input_gram(statistics: Statistics, device: torch.device) -> torch.Tensor | None:
    """Return G [n, n], or G - Nμμᵀ, in float64, with a diagonal of mean 1; None where it says nothing."""
    if statistics.gram is None:
        return None
    gram = statistics.gram.to(device, torch.float64, copy=True)
    if statistics.mean is not None and statistics.count is not None:
        mean = statistics.mean.to(gram)
        gram.addr_(mean, mean, alpha=-statistics.count)
    gram.diagonal().clamp_min_(0)
    size = float(gram.diagonal().mean())
    return gram.div_(size) if size > 0 else None


def _feedback(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return U [n, n] and D [n] in float32, for G + δI = U D Uᵀ with a unit upper triangular U.

    δ is raised tenfold as often as rounding in G needs it.
    """
    ridged = gram.flip(0, 1)  # Reversed, the upper factor is the lower one of Cholesky's method.
    total = 0.0
    for ridge in itertools.accumulate(itertools.repeat(RIDGE), lambda last, _: 10 * last):
        ridged.diagonal().add_(ridge - total)
        total = ridge
        lower, failed = torch.linalg.cholesky_ex(ridged)
        if not int(failed):
            break
    roots = lower.diagonal().clone()
    unit = lower.div_(roots).flip(0, 1).to(torch.float32)
    return unit, roots.flip(0).square_().to(torch.float32)


@dataclass(frozen=True, eq=False)
class _Rounding:
    """Rounds a matrix that is scaled by 2^-exponent, given as its columns; all numbers are in float32."""

    grid: Grid
    exponent: int
    importance: torch.Tensor  # [n]
    feedback: torch.Tensor | None  # [n, n]

    def run(self, columns: torch.Tensor) -> RoundedMatrix:
        """Round Wᵀ [n, m], contiguous."""
        width = self.grid.group
        values = torch.empty(columns.shape, dtype=torch.int8, device=columns.device)
        errors = torch.empty_like(columns) if self.feedback is not None else None
        scales = [self._search(columns, self.importance)] if width is None else []
        for block in _slices(0, len(columns), BLOCK_COLUMNS):
            target = columns[block].clone()
            if self.feedback is not None and errors is not None:
                target += product(self.feedback[: block.start, block].mT, errors[: block.start])
            for inner in _slices(block.start, block.stop, INNER_COLUMNS):
                here = slice(inner.start - block.start, inner.stop - block.start)
                if width is not None and inner.start % width == 0:
                    group = slice(here.start, here.start + width)
                    scales.append(self._search(target[group], self.importance[inner.start :][:width]))
                step = times_power(scales[-1].to(torch.float32), -self.exponent)
                values[inner] = self._round(target[here], step, inner, columns, errors)
                if self.feedback is not None and errors is not None:
                    after = slice(inner.stop, block.stop)
                    target[here.stop :] += product(self.feedback[inner, after].mT, errors[inner])
        return RoundedMatrix(values.mT.contiguous(), torch.stack(scales, 1))

    def _round(
        self,
        target: torch.Tensor,
        step: torch.Tensor,
        inner: slice,
        columns: torch.Tensor,
        errors: torch.Tensor | None,
    ) -> torch.Tensor:
        """Round some columns [k, m] one after another, and note their errors."""
        if self.feedback is None or errors is None:
            return _to_integers(target, step, self.grid.levels)
        values = torch.empty_like(target)
        for at, number in enumerate(range(inner.start, inner.stop)):
            values[at] = _to_integers(target[at], step, self.grid.levels)
            torch.sub(columns[number], values[at] * step, out=errors[number])
            target[at + 1 :].addr_(self.feedback[number, number + 1 : inner.stop], errors[number])
        return values

    def _search(self, group: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """Return the scale [m] of each row of a group, given as columns [k, m], in the dtype of scales."""
        step = max(1, SEARCH_ELEMENTS // len(group))
        return torch.cat([self._best(part, importance[:, None]) for part in torch.split(group, step, dim=1)])

    def _best(self, group: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        largest = group.abs().amax(0) / self.grid.levels  # [m]
        best = torch.full_like(largest, math.inf)
        found = torch.zeros(largest.shape, dtype=self.grid.scale_dtype, device=group.device)
        for share in SHARES:
            scale = times_power(largest * share, self.exponent).to(self.grid.scale_dtype)
            step = times_power(scale.to(torch.float32), -self.exponent)
            values = _to_integers(group, step, self.grid.levels)
            loss = values.mul_(step).sub_(group).square_().mul_(importance).sum(0)  # [m]
            better = loss < best
            best, found = best.where(~better, loss), found.where(~better, scale)
        return found


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def _to_integers(matrix: torch.Tensor, step: torch.Tensor, levels: int) -> torch.Tensor:
    """Return the integers nearest to a matrix in units of its steps; 0 where a step is 0."""
    return (matrix / step.where(step > 0, math.inf)).round_().clamp_(-levels - 1, levels)
