"""Round a weight to integers of a few bits, each row or group of a row with a scale of its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from worker.lowrank.blas import limit_blas_threads, subtract_product
from worker.lowrank.feedback import Feedback
from worker.lowrank.scale import finite_exponent, scaled_copy, times_power, working_dtype
from worker.lowrank.statistics import Statistics

# Columns whose errors are carried on together: to all others, within such a block, and within a smaller one.
# Products of fewer than 256 columns run at half the speed.
BLOCKS = (512, 128, 32)
# Shares of the largest entry that the largest integer may stand for; what is above is clipped. The first of
# equal ones is taken.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
# Elements that the search for scales takes at a time, so that they stay in the processor's cache. A GPU
# needs many at a time to be busy.
SEARCH_ELEMENTS, SEARCH_ELEMENTS_OF_GPU = 1 << 18, 1 << 24


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
    step = scale.to(grouped.dtype)[:, :, None]
    values = _to_integers(grouped, step.where(step > 0, math.inf), grid.levels)
    return RoundedMatrix(values.view(rows, columns).to(torch.int8), scale)


@limit_blas_threads()
def round_weight(
    weight: torch.Tensor, grid: Grid, statistics: Statistics | None = None
) -> RoundedMatrix | None:
    """Round a weight so that its outputs change least.

    Scales are found by search: among shares from 0.6 to 1 of a row's or a group's largest entry, the one with
    the least squared error. With a Gram matrix the columns are rounded one after another, those with the
    largest inputs first, and the errors of those before are carried on to each: see
    :class:`worker.lowrank.feedback.Feedback`. The search then weighs columns by what carrying on leaves of
    their errors. Columns are taken in blocks, so that most of the work is products of matrices.

    Parameters
    ----------
    weight : Tensor [m, n]
        W, finite: float64, float32, float16 or bfloat16. The work is done on its device, in float32.
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
    del scaled
    feedback = None if statistics is None else statistics.to(weight.device).feedback
    importance = columns.new_ones(len(columns)) if feedback is None else feedback.importance
    scale = _search(columns, importance, grid, exponent)  # [groups, m]
    if not _fits(scale, columns):
        return None
    steps = times_power(scale.to(torch.float32), -exponent)  # [groups, m]
    values = _nearest(columns, steps, grid) if feedback is None else _fed_back(columns, steps, grid, feedback)
    return RoundedMatrix(values.mT.contiguous(), scale.mT.contiguous())


def _fits(scale: torch.Tensor, columns: torch.Tensor) -> bool:
    """Whether the largest scale is a normal number; smaller ones matter less."""
    largest = float(scale.max())
    return not bool(columns.any()) or torch.finfo(scale.dtype).tiny <= largest < math.inf


def _search(columns: torch.Tensor, importance: torch.Tensor, grid: Grid, exponent: int) -> torch.Tensor:
    """Return the scale [groups, m] of each group of the rows of a matrix, given as columns [n, m]."""
    width, rows = grid.group or len(columns), columns.shape[1]
    elements = SEARCH_ELEMENTS if columns.device.type == "cpu" else SEARCH_ELEMENTS_OF_GPU
    count, step = max(1, elements // (width * rows)), max(1, elements // width)
    several = torch.split(columns.view(-1, width, rows), count)  # [count, width, m] each
    weights = torch.split(importance.view(-1, width, 1), count)
    scales = []
    for groups, of_groups in zip(several, weights, strict=True):
        parts = torch.split(groups, step, dim=2)
        scales.append(torch.cat([_best(part, of_groups, grid, exponent) for part in parts], dim=1))
    return torch.cat(scales)


def _best(groups: torch.Tensor, importance: torch.Tensor, grid: Grid, exponent: int) -> torch.Tensor:
    """Return the best scale [g, m] for groups of columns [g, k, m], in the dtype of scales."""
    largest = groups.abs().amax(1) / grid.levels  # [g, m]
    best = torch.full_like(largest, math.inf)
    found = torch.zeros(largest.shape, dtype=grid.scale_dtype, device=groups.device)
    for share in SHARES:
        scale = times_power(largest * share, exponent).to(grid.scale_dtype)
        step = times_power(scale.to(torch.float32), -exponent)[:, None]  # [g, 1, m]
        values = _to_integers(groups, _divisors(step), grid.levels)
        loss = values.mul_(step).sub_(groups).square_().mul_(importance).sum(1)  # [g, m]
        better = loss < best
        best, found = best.where(~better, loss), found.where(~better, scale)
    return found


def _nearest(columns: torch.Tensor, steps: torch.Tensor, grid: Grid) -> torch.Tensor:
    width = grid.group or len(columns)
    values = torch.empty(columns.shape, dtype=torch.int8, device=columns.device)
    divisors = _divisors(steps)
    for rows, group, divisor in zip(
        torch.split(values, width), torch.split(columns, width), divisors, strict=True
    ):
        rows.copy_(_to_integers(group, divisor, grid.levels))
    return values


def _fed_back(columns: torch.Tensor, steps: torch.Tensor, grid: Grid, feedback: Feedback) -> torch.Tensor:
    """Round columns [n, m] one after another, the last of the order first; carry their errors on."""
    order = feedback.order
    of_group = (order // (grid.group or len(order))).tolist()
    # Ŵ - W of the columns that are rounded, T of the others; one matrix holds both.
    errors = columns[order]  # [n, m]
    negative = -errors  # -W
    values = torch.empty(columns.shape, dtype=torch.int8, device=columns.device)
    integers = errors.new_empty(BLOCKS[-1], errors.shape[1])
    # Each row as a view that is made once: on a GPU, the calls from Python take most of the time.
    each_error, each_negative, each_step, each_divisor = (
        matrix.unbind() for matrix in (errors, negative, steps, _divisors(steps))
    )

    def round_columns(span: slice, blocks: tuple[int, ...]) -> None:
        for block in _from_the_end(span.start, span.stop, blocks[0]):
            later = slice(block.stop, span.stop)
            if later.start < later.stop:
                subtract_product(errors[block], feedback.lower[later, block].mT, errors[later])
            if len(blocks) > 1:
                round_columns(block, blocks[1:])
                continue
            for at in reversed(range(block.start, block.stop)):
                error, row, group = each_error[at], integers[at - block.start], of_group[at]
                torch.div(error, each_divisor[group], out=row).round_().clamp_(-grid.levels - 1, grid.levels)
                torch.addcmul(each_negative[at], row, each_step[group], out=error)
                if at > block.start:
                    errors[block.start : at].addr_(feedback.lower[at, block.start : at], error, alpha=-1)
            values[block] = integers[: block.stop - block.start]

    round_columns(slice(0, len(order)), BLOCKS)
    placed = torch.empty_like(values)
    placed[order] = values
    return placed


def _from_the_end(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(max(start, at - size), at) for at in range(stop, start, -size))


def _divisors(steps: torch.Tensor) -> torch.Tensor:
    """Return what to divide by: steps of 0 are of zeros alone, which infinity makes 0."""
    return steps.where(steps > 0, math.inf)


def _to_integers(matrix: torch.Tensor, divisor: torch.Tensor, levels: int) -> torch.Tensor:
    """Return the integers nearest to a matrix in units of its steps; see :func:`_divisors`."""
    return (matrix / divisor).round_().clamp_(-levels - 1, levels)
