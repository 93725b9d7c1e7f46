"""How many parameters a rank costs, and the largest rank a number of parameters allows."""

import math
from fractions import Fraction


def factor_parameters(rows: int, columns: int, rank: int, *, factors: int) -> int:
    """Parameters of a rows x columns weight stored as two factors, or as three with a rank x rank core."""
    return rank * (rows + columns) + (rank * rank if factors == 3 else 0)


def largest_rank(rows: int, columns: int, parameters: int, *, factors: int) -> int:
    """Return the largest rank whose factors hold at most that many parameters, or 0."""
    side = rows + columns
    if parameters < 1 or side < 1:
        return 0
    if factors == 2:
        return parameters // side
    # k^2 + k*side <= parameters; the integer root is exact where a float would be one off.
    return (math.isqrt(side * side + 4 * parameters) - side) // 2


def break_even_rank(rows: int, columns: int, *, factors: int) -> int:
    """Return the largest rank that still saves a parameter over the dense weight."""
    return largest_rank(rows, columns, rows * columns - 1, factors=factors)


def ratio_rank(rows: int, columns: int, ratio: float, *, factors: int) -> int:
    """Return the largest rank whose factors hold at most ratio x rows x columns parameters.

    The ratio is taken as the decimal it was written as: 0.1 of 1000 is 100, not 100.00000000000000555.
    """
    return largest_rank(rows, columns, math.floor(Fraction(repr(ratio)) * rows * columns), factors=factors)


def allowed_ranks(rows: int, columns: int, *, factors: int, align: int = 1, least: int = 1) -> range:
    """Return the multiples of `align` from `least` on that still save a parameter, ascending."""
    first = -(-least // align) * align
    return range(first, break_even_rank(rows, columns, factors=factors) + 1, align)
