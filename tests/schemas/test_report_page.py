"""`schemas.report_page`: what the page of a report needs, and nothing that breaks out of it."""

import json
from math import inf, nan
from pathlib import Path

import pytest

import eckart.report_page
from schemas import report_page
from tests.reports import HOSTILE, blocks, hostile_report, made_layer, made_report

TEMPLATE = f"before {report_page.REPORT_MARK} after"
PAGE = (Path(__file__).parents[2] / "eckart" / "report.html").read_text()


def data_of(report):
    page = report_page.report_page(TEMPLATE, report)
    return json.loads(page.removeprefix("before ").removesuffix(" after"))


@pytest.mark.parametrize("report", [made_report(blocks(3)), hostile_report()], ids=["plain", "hostile"])
def test_service_and_client_fill_the_template_in_the_same_way(report):
    assert eckart.report_page.report_page(PAGE, report) == report_page.report_page(PAGE, report)


def test_no_text_leaves_its_element():
    page = report_page.report_page(TEMPLATE, hostile_report())

    assert "<" not in page
    assert page.isascii()
    assert data_of(hostile_report())["job_id"] == HOSTILE


@pytest.mark.parametrize(("layers", "points"), [(10, 48), (500, 48), (1000, 24), (5000, 8)])
def test_the_points_of_all_spectra_are_bounded(layers, points):
    report = made_report([made_layer(f"a.{index}.b") for index in range(layers)])
    shown = data_of(report)["layers"]

    assert {len(layer["singular_values"]) for layer in shown} == {points}
    for layer in shown[:2]:
        indices = layer["singular_value_indices"]
        assert (indices[0], indices[-1]) == (0, 95)
        assert indices == sorted(set(indices))


def test_figures_of_layers_are_cut_and_those_of_all_together_are_not():
    layer = made_layer("a", error=0.123456789, columns=list(range(96)))
    shown = data_of(made_report([layer], totals={"relative_error": 0.123456789}))

    assert shown["totals"]["relative_error"] == 0.123456789
    assert shown["layers"][0]["relative_error"] == 0.1235
    assert shown["layers"][0]["singular_values"][0] == 10.12
    assert "columns" not in shown["layers"][0]
    assert shown["page"] == {"points": 256, "digits": 4}


@pytest.mark.parametrize("odd", [nan, inf])
def test_what_json_cannot_hold_is_null(odd):
    layer = made_layer("a", error=odd, singular_values=[odd, 1.0], singular_value_indices=None)
    shown = data_of(made_report([layer], totals={"seconds": odd}))

    assert shown["totals"]["seconds"] is None
    assert shown["layers"][0]["relative_error"] is None
    assert shown["layers"][0]["singular_values"] == [None, 1.0]
