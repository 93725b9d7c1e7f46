"""The tables and the chart of the VGG-11 study."""

from collections.abc import Sequence

from examples.page import table
from examples.plot import COLOURS, GREY, Axis, Line, chart
from examples.vgg11.study import Measured
from examples.vgg11.sweep import FACTORS, METHODS, NEIGHBOURS

HEADER = (
    "factor asked",
    "method",
    "ranks",
    "classifier's parameters",
    "factor of the classifier",
    "of the whole network",
    "relative error",
    "accuracy %",
    "fine-tuned %",
)
FACTORS_SHOWN = (2, 5, 10, 20, 50, 100, 200, 300)


def accuracy_table(dense: float, parameters: int, measured: Sequence[Measured]) -> str:
    """Return one line for the trained network and one for each job."""
    first = ("1", "as trained", "", f"{parameters:,}", "1.00", "1.00", "0", _percent(dense), "")
    return table(HEADER, [first, *(_line(one) for one in measured)])


def _line(one: Measured) -> tuple[str, ...]:
    return (
        str(one.point.factor),
        one.point.method,
        ", ".join(str(rank) for rank in one.ranks),
        f"{one.parameters:,}",
        f"{one.classifier_factor:.2f}",
        f"{one.whole_factor:.2f}",
        f"{one.relative_error:.4f}",
        _percent(one.accuracy),
        _percent(one.tuned),
    )


def neighbour_table(measured: Sequence[Measured]) -> str:
    """Compare neighbouring factors without fine-tuning, one line for each selector and seed."""
    ways: dict[tuple[str, ...], dict[int, float]] = {}
    for one in measured:
        point = one.point
        if point.factor in NEIGHBOURS and point.method != "svd":
            seed = f"seed {point.seed}" if point.selector == "linear_time" else ""
            ways.setdefault((point.method, point.selector, seed), {})[point.factor] = one.accuracy
    header = ["method", "selector", "", *(f"factor {factor}" for factor in NEIGHBOURS), "largest difference"]
    rows = [
        [*way, *(_percent(found[factor]) for factor in NEIGHBOURS), _percent(_spread(found))]
        for way, found in ways.items()
    ]
    return table(header, rows)


def accuracy_chart(dense: float, measured: Sequence[Measured]) -> str:
    """Draw accuracy against the requested factor."""
    x = Axis(
        "compression factor of the classifier", min(FACTORS), max(FACTORS), FACTORS_SHOWN, logarithmic=True
    )
    y = Axis("accuracy on the test pictures, %", 0, 100, range(0, 101, 20))
    lines = [Line("as trained", [(x.low, 100 * dense), (x.high, 100 * dense)], GREY)]
    for method, colour in zip(METHODS, COLOURS, strict=False):
        mine = [one for one in measured if one.point.method == method and one.tuned is not None]
        plain = [(one.point.factor, 100 * one.accuracy) for one in mine]
        tuned = [(one.point.factor, 100 * one.tuned) for one in mine if one.tuned is not None]
        lines += [Line(method, plain, colour), Line(f"{method}, fine-tuned", tuned, colour, dashed=True)]
    return chart("VGG-11 on digits: accuracy after compressing the classifier", x, y, lines)


def _spread(found: dict[int, float]) -> float:
    return max(found.values()) - min(found.values())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
