"""The charts of the page and the report, drawn by a real browser."""

import pytest

DRAW = """async ([kind, options]) => {
  const charts = await import("/charts.js");
  window.selected = [];
  charts[kind](document.getElementById("chart"), {...options, onSelect: (key) => window.selected.push(key)});
}"""
HOSTILE = '<img src=x onerror="throw 1"></script>'
GRID = {
    "title": "Errors",
    "rows": ["query", HOSTILE],
    "columns": ["0", "1", "2"],
    "cells": [
        {
            "row": row,
            "column": column,
            "value": column / 2,
            "text": f"{row} in {column}",
            "key": [row, column],
        }
        for row in range(2)
        for column in range(3)
    ],
    "legend": {"low": "0 %", "high": "100 %"},
}
LINES = {
    "title": "Spectrum",
    "series": [{"name": HOSTILE, "points": [[0, 10], [1, 1], [2, 0], [3, 0.001]]}],
    "marks": [{"x": 2, "label": "rank 2"}],
    "xLabel": "index",
    "yLabel": "value",
    "log": True,
}
POINTS = {
    "title": "Jobs",
    "points": [{"x": 1, "y": 5, "text": HOSTILE, "key": "a"}, {"x": 3, "y": 2, "text": "b", "key": "b"}],
    "frontier": [[1, 5], [3, 2]],
    "xLabel": "bytes",
    "yLabel": "error",
}
CHARTS = {"heatMap": GRID, "lineChart": LINES, "scatter": POINTS}


@pytest.fixture(params=CHARTS)
def chart(request, modules):
    modules.evaluate(DRAW, [request.param, CHARTS[request.param]])
    return modules


def test_a_chart_has_a_name_and_a_table(chart):
    image = chart.get_by_role("img")

    assert image.get_attribute("aria-label") == image.locator("title").text_content()
    chart.get_by_text("Values as a table").click()
    chart.locator("tbody tr").nth(1).wait_for()  # it is made when it is opened


def test_names_are_text(chart):
    chart.get_by_text("Values as a table").click()

    assert HOSTILE in chart.locator("#chart table").text_content()
    assert chart.locator("#chart img, #chart script").count() == 0


def test_arrow_keys_read_values_and_enter_selects(chart):
    chart.locator(".chart-plot").focus()
    chart.keyboard.press("ArrowRight")
    first = chart.locator(".chart-readout").text_content()
    chart.keyboard.press("ArrowRight")
    second = chart.locator(".chart-readout").text_content()
    chart.keyboard.press("Enter")

    assert first != second
    assert len(chart.evaluate("window.selected")) == (0 if "value" in second else 1)


def test_hovering_reads_the_value_under_the_pointer(modules):
    modules.evaluate(DRAW, ["heatMap", GRID])
    box = modules.locator("svg rect").last.bounding_box()
    modules.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    assert modules.locator(".chart-readout").text_content() == "1 in 2"


@pytest.mark.parametrize(("columns", "canvases"), [(100, 0), (400, 1)])
def test_many_cells_are_drawn_on_a_canvas(modules, columns, canvases):
    cells = [
        {"row": row, "column": column, "value": 0.5, "text": f"{row} {column}"}
        for row in range(8)
        for column in range(columns)
    ]
    names = {"rows": [str(row) for row in range(8)], "columns": [str(column) for column in range(columns)]}
    modules.evaluate(DRAW, ["heatMap", {"title": "Many", "cells": cells, **names}])
    modules.locator(".chart-plot").focus()
    modules.keyboard.press("End")

    assert modules.locator("canvas").count() == canvases
    assert modules.locator(".chart-readout").text_content() == f"7 {columns - 1}"


@pytest.mark.parametrize("points", [[], [[1, 1]], [[0, None]], [[2, 3], [2, 3]]])
def test_few_points_make_no_broken_drawing(modules, points):
    modules.evaluate(
        DRAW, ["lineChart", {"title": "Few", "series": [{"name": "a", "points": points}], "log": True}]
    )

    assert "NaN" not in modules.locator("svg").evaluate("node => node.outerHTML")


def test_a_second_call_replaces_the_first(modules):
    modules.evaluate(DRAW, ["heatMap", GRID])
    modules.evaluate(DRAW, ["heatMap", {**GRID, "title": "Shares"}])

    assert modules.get_by_role("img").count() == 1
    assert modules.get_by_role("img").get_attribute("aria-label") == "Shares"
