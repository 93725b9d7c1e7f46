"""Two reports side by side."""

from __future__ import annotations

import re

import pytest

from eckart.comparison import ORDERS, compare, comparison_table
from eckart.plain_text import WIDTH
from eckart.types import Report


@pytest.fixture
def pair(report, layer):
    """Make two reports that differ in three of five layers and in three fields of the spec."""
    same = layer("same")
    a = report(
        [same, layer("wide", rank=8, error=0.4), layer("near", rank=90, error=0.1), layer("only-a", rank=4)],
        spec={"method": "svd", "rank": {"ratio": 0.5}, "seed": 0},
    )
    b = report(
        [same, layer("wide", rank=64, error=0.3), layer("near", rank=96, error=0.9), layer("x\x1b", rank=4)],
        job_id="J2",
        spec={"method": "cx", "rank": {"budget": 0.5}, "seed": 0},
    )
    return Report.model_validate(a), Report.model_validate(b)


def test_a_report_differs_from_itself_in_nothing(pair):
    itself = compare(pair[0], pair[0])

    assert (itself.spec, itself.layers, itself.layers_alike, itself.same_input) == ((), (), 4, True)


@pytest.mark.parametrize("by", ORDERS)
def test_the_sides_are_mirrored(pair, by):
    a, b = pair
    one, other = compare(a, b, by=by), compare(b, a, by=by)

    assert {(x.tensor, x.a, x.b) for x in one.layers} == {(x.tensor, x.b, x.a) for x in other.layers}
    assert {(x.field, str(x.a), str(x.b)) for x in one.spec} == {
        (x.field, str(x.b), str(x.a)) for x in other.spec
    }
    assert (one.a, one.b) == (other.b, other.a)


@pytest.mark.parametrize(
    ("by", "first"), [("bytes", "wide.weight"), ("rank", "wide.weight"), ("error", "near.weight")]
)
def test_the_layers_that_differ_most_come_first(pair, by, first):
    found = compare(*pair, by=by, top=2)

    assert found.layers[0].tensor == first
    assert (len(found.layers), found.layers_different, found.layers_alike) == (2, 4, 1)


def test_the_differences_of_the_specs_are_fields(pair):
    fields = {x.field: (x.a, x.b) for x in compare(*pair).spec}

    assert fields == {
        "/method": ("svd", "cx"),
        "/rank/ratio": (0.5, None),
        "/rank/budget": (None, 0.5),
    }


def test_the_table_shows_both_sides_and_no_control_characters(pair):
    text = comparison_table(compare(*pair), "J1", "out/report.json")

    assert text.startswith("A: J1, 2026-01-02T03:04:05Z\nB: out/report.json (job J2), 2026-")
    assert r"x\x1b.weight" in text
    assert re.search(r"^wide.weight +svd 8 +svd 64 ", text, re.MULTILINE)
    assert "4 of 4 layers that differ, by bytes; 1 are alike" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_other_inputs_are_told(report, layer):
    files = [{"name": "m.safetensors", "size_bytes": 1, "sha256": "0" * 64}]
    a = Report.model_validate(report([layer("a")]))
    b = Report.model_validate(report([layer("a")], input={"files": files, "parameters": 1, "bytes": 4}))

    assert "warning: the two jobs had different inputs" in comparison_table(compare(a, b), "A", "B")
