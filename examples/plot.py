"""Line charts as plain SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 176, 36, 48
# Most people with colour blindness can distinguish these (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
GREY = "#888888"
FONT = 'font-family="sans-serif" font-size="12" fill="#222222"'


@dataclass(frozen=True)
class Axis:
    """One axis: its label, its range and its ticks."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Return the position of a value on the axis: 0 at its low end, 1 at its high end."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    """One line of the chart, with a mark at every point."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Draw the lines and a legend; points outside the range are drawn at its edge."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, TOP - 14, title, weight="bold"),
        *_frame(x, y),
    ]
    for place, line in enumerate(lines):
        parts += [*_drawn(x, y, line), *_named(line, place)]
    return "\n".join([*parts, "</svg>", ""])


def _across(x: Axis, value: float) -> float:
    return LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)


def _down(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)


def _frame(x: Axis, y: Axis) -> list[str]:
    floor, wall = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in x.ticks:
        at = _across(x, tick)
        parts += [_stroke(at, TOP, at, floor), _text(at, floor + 18, f"{tick:g}", anchor="middle")]
    for tick in y.ticks:
        at = _down(y, tick)
        parts += [_stroke(LEFT, at, wall, at), _text(LEFT - 8, at + 4, f"{tick:g}", anchor="end")]
    middle = (TOP + floor) / 2
    return [
        *parts,
        _text((LEFT + wall) / 2, HEIGHT - 10, x.label, anchor="middle"),
        _text(16, middle, y.label, anchor="middle", turned=True),
    ]


def _drawn(x: Axis, y: Axis, line: Line) -> list[str]:
    places = [(_across(x, across), _down(y, down)) for across, down in line.points]
    path = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
    marks = [f'<circle cx="{a:.1f}" cy="{d:.1f}" r="2.5" fill="{line.colour}"/>' for a, d in places]
    return [
        f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.8"{_dash(line)}/>',
        *marks,
    ]


def _named(line: Line, place: int) -> list[str]:
    left, down = WIDTH - RIGHT + 14, TOP + 10 + 20 * place
    ends = f'x1="{left}" y1="{down}" x2="{left + 26}" y2="{down}"'
    return [
        f'<line {ends} stroke="{line.colour}" stroke-width="1.8"{_dash(line)}/>',
        _text(left + 32, down + 4, line.name),
    ]


def _dash(line: Line) -> str:
    return ' stroke-dasharray="5 4"' if line.dashed else ""


def _stroke(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"{turn}>'
        f"{escape(text)}</text>"
    )
