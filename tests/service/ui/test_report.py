"""The report as one file, opened from the disk by a real browser."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest

from schemas.report_page import report_page
from service.report_template import report_template
from tests.reports import HOSTILE, blocks, hostile_report, kept_layer, made_layer, made_report
from tests.service.files import checkpoint_bytes

MINILM = made_report(
    [
        *blocks(6, error=0.5),
        made_layer("pooler.dense", error=0.6, optimal_error=0.5),
        kept_layer("head.dense"),
    ],
    not_selected=[
        {
            "rule": "exclude *embedding*",
            "tensors": 3,
            "parameters": 9,
            "share": 0.5,
            "names": ["embeddings.word"],
        }
    ],
)
LARGE = made_report([*blocks(100, points=256)[:499], kept_layer("pooler")], totals={"relative_error": 0.7})
CALIBRATED = made_report(
    [
        layer
        | {"calibrated": True, "weighted_error": 0.2, "optimal_weighted_error": 0.1, "optimal_error": None}
        for layer in blocks(2)
    ],
    calibration=[{"name": "grams.safetensors", "size_bytes": 9, "sha256": "0" * 64}],
    spec={"method": "cx", "rank": 9, "calibration": "grams"},
)
INTEGERS = made_report(
    [
        layer | {"method": "int8", "rank": 0, "optimal_error": None, "singular_values": None}
        for layer in blocks(2, singular_value_indices=None)
    ]
)
GOLDEN = Path(__file__).parents[2] / "golden"
REPORTS = {
    "minilm": MINILM,
    "500 layers": LARGE,
    "calibrated": CALIBRATED,
    "integers": INTEGERS,
    "hostile": hostile_report(),
    "nothing factored": made_report([kept_layer("a")], totals={"relative_error": 0.0}),
    "no layers": made_report(),
    "first release": json.loads((GOLDEN / "0.1.0" / "result" / "report.json").read_text()),
}
MOST_BYTES = 10**6


@pytest.fixture
def opened(tab, tmp_path):
    """Open the page of a report from the disk."""

    def open_one(report):
        path = tmp_path / "report.html"
        path.write_text(report_page(report_template(), report))
        assert path.stat().st_size <= MOST_BYTES
        tab.goto(path.as_uri())
        return tab

    return open_one


@pytest.mark.parametrize("name", REPORTS)
def test_it_opens_from_the_disk_without_an_error_and_prints(opened, name):
    page = opened(REPORTS[name])

    assert page.title().startswith("Eckart report")
    assert page.locator("h2").count() >= 4
    assert "NaN" not in page.locator("main").evaluate("node => node.outerHTML")
    assert "undefined" not in page.locator("main").inner_text()
    assert len(page.pdf()) > 20_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["minilm", "calibrated", "hostile"])
def test_it_has_no_barrier_that_axe_finds(opened, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(REPORTS[name])
    page.emulate_media(color_scheme=scheme)
    found = axe.Axe().run(page)

    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(opened, width):
    page = opened(MINILM)
    page.set_viewport_size({"width": width, "height": 800})

    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_all_rows_are_printed(opened):
    page = opened(LARGE)
    page.emulate_media(media="print")
    box = page.get_by_role("region", name="Layers")

    assert box.evaluate("box => getComputedStyle(box).overflow") == "visible"
    assert box.locator("tbody tr").count() == 500
    assert page.locator(".chart-readout").first.is_hidden()


def test_the_service_sends_a_page_that_its_policy_lets_run(service, tab):
    job = service.submit(service.stored(checkpoint_bytes())).json()["id"]
    service.finish(job, {"model.safetensors": checkpoint_bytes()})
    tab.goto(f"{service.url}/v1/jobs/{job}/report")

    assert tab.title() == f"Eckart report {job}"
    assert f"curl {service.url}/v1/jobs" in tab.locator("pre").first.text_content()


def test_hostile_names_are_text(opened):
    page = opened(hostile_report())

    assert page.locator("img, iframe, main script").count() == 0
    assert HOSTILE in page.locator("main").text_content()
    assert page.locator("select option").first.text_content() == f"{HOSTILE}.0.{HOSTILE}"


def test_reading_a_layer_in_the_map_shows_its_spectrum(opened):
    page = opened(MINILM)
    page.locator(".chart-plot").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    shown = page.locator(".chart-readout").first.text_content()

    name = shown.partition(":")[0]
    assert name in {layer["name"] for layer in MINILM["layers"]}
    assert page.get_by_role("img", name=f"Singular values of {name}", exact=True).count() == 1
    assert page.get_by_text("rank 96", exact=True).count() == 1


def test_layers_sort_by_a_column(opened):
    page = opened(MINILM)
    names = page.get_by_role("region", name="Layers").locator("tbody tr td:first-child")
    page.get_by_role("button", name="error", exact=True).click()
    page.get_by_role("button", name="error", exact=True).click()

    assert names.first.text_content() == "pooler.dense"
    assert names.last.text_content() == "head.dense"


def test_what_was_left_out_is_told_with_its_reason(opened):
    text = opened(MINILM).locator("main").inner_text()

    assert "exclude *embedding*" in text
    assert "the factors would save no parameters" in text
    assert "Spectra are thinned to at most 256 points" in text


@pytest.mark.parametrize("name", ["minilm", "calibrated", "hostile"])
def test_the_lines_that_repeat_the_job_hold_its_spec(opened, name):
    """Both are read as a shell and Python would."""
    report = REPORTS[name]
    shell, python = opened(report).locator("pre").all_text_contents()
    words = shlex.split(shell, comments=True)
    tree = ast.parse(python)
    (assigned,) = [node for node in tree.body if isinstance(node, ast.Assign)]

    (spec,) = [word.removeprefix("spec=") for word in words if word.startswith("spec=")]
    assert json.loads(spec) == report["spec"]
    assert ast.literal_eval(assigned.value) == report["spec"]
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/jobs"]
