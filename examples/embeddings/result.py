"""The table and the chart of the MiniLM study."""

from collections.abc import Sequence

from examples.embeddings.study import KEPT, Measured
from examples.page import table
from examples.plot import COLOURS, Axis, Line, chart

HEADER = (
    "share asked",
    "rule",
    "share kept",
    "relative error of the weights",
    "mean cosine",
    "least cosine",
    "same nearest sentence %",
)


def similarity_table(measured: Sequence[Measured]) -> str:
    """Return a table with one line for each job."""
    return table(HEADER, [_line(one) for one in measured])


def _line(one: Measured) -> tuple[str, ...]:
    return (
        f"{one.asked:g}",
        one.rule,
        f"{one.kept:.3f}",
        f"{one.relative_error:.4f}",
        f"{one.mean:.4f}",
        f"{one.least:.4f}",
        f"{100 * one.same_nearest:.0f}",
    )


def similarity_chart(measured: Sequence[Measured]) -> str:
    """Draw the mean cosine against the share of parameters kept."""
    x = Axis("share of the encoder's parameters kept", min(KEPT), max(KEPT), KEPT)
    y = Axis("mean cosine to the original vector", 0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1))
    names = list(dict.fromkeys(one.rule for one in measured))
    lines = [
        Line(name, [(one.kept, one.mean) for one in measured if one.rule == name], colour)
        for name, colour in zip(names, COLOURS, strict=False)
    ]
    return chart("MiniLM: sentence vectors after compressing the encoder", x, y, lines)
