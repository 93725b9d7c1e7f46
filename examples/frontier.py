"""Quality against size: the table of all jobs of a study, and the frontier of each family as a chart."""

from collections.abc import Callable, Sequence

from examples.page import table
from examples.plot import COLOURS, Axis, Line, chart
from examples.trial import Measured

FIRST = ("rule", "asked", "share of the parameters", "share of the bytes", "relative error")
SIZES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1)

# From a figure of quality to what the chart shows; less is better.
Loss = Callable[[float], float]


def quality_table(names: Sequence[str], digits: Sequence[int], measured: Sequence[Measured]) -> str:
    """Return a table with one line for each job, rule by rule; `names` are those of the figures."""
    rules = list(dict.fromkeys(one.recipe.rule for one in measured))
    lines = sorted(measured, key=lambda one: (rules.index(one.recipe.rule), one.bytes))
    return table((*FIRST, *names), [_line(one, digits) for one in lines])


def _line(one: Measured, digits: Sequence[int]) -> tuple[str, ...]:
    figures = (f"{figure:.{places}f}" for figure, places in zip(one.quality, digits, strict=True))
    return (
        one.recipe.rule,
        one.recipe.asked,
        f"{one.parameters:.3f}",
        f"{one.bytes:.4f}",
        f"{one.relative_error:.4f}",
        *figures,
    )


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (size, loss), by size, that no other of at most that size equals or beats."""
    kept: list[tuple[float, float]] = []
    for size, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((size, loss))
    return kept


def frontier_chart(title: str, y: Axis, loss: Loss, measured: Sequence[Measured]) -> str:
    """Draw the frontier of each family: the loss of quality against the share of the bytes."""
    x = Axis("share of the weights' bytes", SIZES[0], SIZES[-1], SIZES, logarithmic=True)
    families = list(dict.fromkeys(one.recipe.family for one in measured))
    lines = [
        Line(family, frontier(_points(family, loss, measured)), colour)
        for family, colour in zip(families, COLOURS, strict=False)
    ]
    return chart(title, x, y, lines)


def _points(family: str, loss: Loss, measured: Sequence[Measured]) -> list[tuple[float, float]]:
    return [(one.bytes, loss(one.quality[0])) for one in measured if one.recipe.family == family]
