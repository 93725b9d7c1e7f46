"""What a notebook shows of a report and a plan: a static table, whatever the names are."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from eckart.types import PlanDocument, Report
from tests.reports import HOSTILE, blocks, hostile_report, kept_layer, made_layer, made_report

HARMLESS = {"div", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}


class Reader(HTMLParser):
    """The elements, attributes and cells of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.rows, self.texts = set(), set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_data(self, data):
        self.texts.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def planned(layers, **fields):
    totals = made_report(layers)["totals"] | {"exact": False}
    return PlanDocument.model_validate(
        {"checkpoint": HOSTILE, "warnings": [HOSTILE], "layers": layers, "totals": totals} | fields
    )


HOSTILE_PLAN = planned([made_layer(HOSTILE, method=HOSTILE), kept_layer(HOSTILE, HOSTILE)])


@pytest.mark.parametrize(
    "document", [Report.model_validate(hostile_report()), HOSTILE_PLAN], ids=["report", "plan"]
)
def test_hostile_names_are_text(document):
    page = Reader(document._repr_html_())

    assert page.elements <= HARMLESS
    assert page.attributes <= {"style"}
    assert HOSTILE in "".join(page.texts)


def test_a_report_has_a_row_for_each_kind_of_layer():
    report = made_report(
        [*blocks(3, ["up"], error=0.3), made_layer("model.layers.3.up", error=0.5), kept_layer("head")]
    )
    _, up, head = Reader(Report.model_validate(report)._repr_html_()).rows

    assert up == ["model.layers.*.up", "4", "384x384", "svd", "50.0%", "96", "0.5", "0.5"]
    assert head == ["head", "1", "384x384", "kept: no_saving", "100.0%", "", "", ""]


def test_a_calibrated_report_shows_the_errors_of_the_outputs():
    layer = made_layer("a", error=0.5, weighted_error=0.2, optimal_weighted_error=0.1)
    document = made_report([layer], totals={"weighted_error": 0.25})
    page = Report.model_validate(document)._repr_html_()

    assert "with an error of 0.25" in page
    assert Reader(page).rows[1][-2:] == ["0.2", "0.1"]


def test_a_plan_shows_the_bounds_of_ranks():
    page = planned([made_layer("a", rank=None, rank_bounds={"least": 1, "most": 191})])._repr_html_()

    assert Reader(page).rows[1][-1] == "1-191"
    assert "upper bounds" in page


def test_a_long_report_stays_short():
    report = made_report([made_layer(f"layer{index:c}") for index in range(0x4E00, 0x4E00 + 500)])
    page = Report.model_validate(report)._repr_html_()

    assert "and 470 more rows" in page
    assert len(page) < 20_000


def test_nothing_selected_is_no_error():
    assert "0 layers factored" in Report.model_validate(made_report())._repr_html_()
