"""The charts: every point lies where its numbers say."""

from xml.etree import ElementTree as ET

import pytest

from examples.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Line, chart

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("axis", "value", "share"),
    [
        (Axis("a", 0, 10, ()), 0, 0),
        (Axis("a", 0, 10, ()), 2.5, 0.25),
        (Axis("a", -1, 1, ()), 1, 1),
        (Axis("a", 2, 200, (), logarithmic=True), 2, 0),
        (Axis("a", 2, 200, (), logarithmic=True), 20, 0.5),
        (Axis("a", 0, 10, ()), 11, 1),
        (Axis("a", 0, 10, ()), -1, 0),
    ],
)
def test_a_value_lies_at_its_share_of_the_axis_and_at_the_rim_if_outside(axis, value, share):
    assert axis.share(value) == pytest.approx(share)


def test_a_line_goes_through_its_points_and_is_named_safely():
    x, y = Axis("x & y", 1, 100, (1, 10, 100), logarithmic=True), Axis("up", 0, 1, (0, 1))
    line = Line("a < b", [(1, 0), (10, 0.5), (100, 1)], "#0072b2", dashed=True)
    root = ET.fromstring(chart("title", x, y, [line]))
    (path,) = root.iter(f"{SVG}polyline")
    points = [tuple(map(float, pair.split(","))) for pair in path.attrib["points"].split()]
    middle = ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2)

    assert points == [(LEFT, HEIGHT - BOTTOM), pytest.approx(middle, abs=0.1), (WIDTH - RIGHT, TOP)]
    assert path.attrib["stroke-dasharray"]
    assert {"title", "x & y", "up", "a < b", "1", "10", "100"} <= {
        text.text for text in root.iter(f"{SVG}text")
    }
