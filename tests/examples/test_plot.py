"""The charts: examples/plot.py."""

from xml.etree import ElementTree as ET

import pytest

from examples.plot import COLOURS, Axis, Line, chart

SVG = "{http://www.w3.org/2000/svg}"
X = Axis("x & y", 1, 100, (1, 10, 100), logarithmic=True)
Y = Axis("up", 0, 1, (0, 1))


def drawn(*points):
    """Return the pixels of a line's points, and all texts of the chart."""
    root = ET.fromstring(chart("title", X, Y, [Line("a < b", points, COLOURS[0], dashed=True)]))
    (line,) = [
        path
        for path in root.iter(f"{SVG}path")
        if COLOURS[0] in path.get("style", "") and "stroke-dasharray" in path.get("style", "")
    ][:1]
    numbers = [float(word) for word in line.attrib["d"].split() if word not in "MLz"]
    return list(zip(numbers[::2], numbers[1::2], strict=True)), {
        text.text for text in root.iter(f"{SVG}text")
    }


def test_points_lie_where_their_numbers_say():
    (left, floor), (middle, half), (right, top) = drawn((1, 0), (10, 0.5), (100, 1))[0]

    assert middle == pytest.approx((left + right) / 2)
    assert half == pytest.approx((floor + top) / 2)
    assert left < right
    assert top < floor


def test_a_point_outside_the_range_is_drawn_at_its_edge():
    assert drawn((0.5, -1), (200, 2))[0] == drawn((1, 0), (100, 1))[0]


def test_labels_ticks_and_names_are_text():
    texts = drawn((1, 0), (100, 1))[1]

    assert {"title", "x & y", "up", "a < b", "1", "10", "100", "0"} <= texts


def test_the_same_numbers_give_the_same_file():
    lines = [Line("a", [(1, 0.2), (3, 0.5)], COLOURS[1])]

    assert chart("t", X, Y, lines) == chart("t", X, Y, lines)
