"""Line charts as SVG, by matplotlib."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

# Most people with colour blindness can distinguish these (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#b8a800", "#8b4513")
GREY = "#888888"


@dataclass(frozen=True)
class Axis:
    """One axis: its label, its range and its ticks."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def clip(self, value: float) -> float:
        """Move a value outside the range to its edge."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Line:
    """One line of the chart, with a mark at every point."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Draw the lines and a legend; points outside the range are drawn at its edge."""
    # Text stays text, and the same numbers give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "eckart", "font.size": 9}):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontweight="bold")
        for line in lines:
            across = [x.clip(point[0]) for point in line.points]
            up = [y.clip(point[1]) for point in line.points]
            style = "--" if line.dashed else "-"
            axes.plot(across, up, style, color=line.colour, label=line.name, marker="o", markersize=3)
        for axis, name in ((x, "x"), (y, "y")):
            scale = "log" if axis.logarithmic else "linear"
            axes.set(
                **{f"{name}label": axis.label, f"{name}scale": scale, f"{name}lim": (axis.low, axis.high)}
            )
            labels = [f"{tick:g}" for tick in axis.ticks]
            axes.set(**{f"{name}ticks": list(axis.ticks), f"{name}ticklabels": labels})
        axes.minorticks_off()
        axes.grid(color="#dddddd")
        figure.legend(loc="outside right upper", frameon=False)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    # matplotlib leaves spaces at the ends of some lines.
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"
