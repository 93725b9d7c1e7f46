"""`report.plot()`: a figure with each layer's error and spectrum, and a clear error without matplotlib."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from eckart.types import Report
from tests.reports import HOSTILE, blocks, kept_layer, made_layer, made_report

WITHOUT = """
import sys
sys.modules["matplotlib"] = None
from eckart.types import Report
Report.model_validate_json(sys.stdin.read()).plot()
"""


def drawn(report):
    pytest.importorskip("matplotlib")
    figure = Report.model_validate(report).plot()
    figure.savefig(io.BytesIO(), format="png")
    return figure


def test_the_figure_has_the_layers():
    layers = [*blocks(2, error=0.3), kept_layer("head")]
    errors, spectra = drawn(made_report(layers)).axes

    measured, best = (line.get_ydata() for line in errors.get_lines())
    assert len(measured) == len(best) == len(layers)
    assert list(measured[:-1]) == [0.3] * 10
    assert [text.get_text() for text in errors.get_xticklabels()] == [layer["name"] for layer in layers]
    lines = [line for line in spectra.get_lines() if len(line.get_xdata()) > 1]
    assert [len(line.get_xdata()) for line in lines] == [48] * 10
    assert spectra.get_yscale() == "log"


def test_the_rank_is_marked():
    _, spectra = drawn(made_report([made_layer("a")])).axes
    (_, mark) = spectra.get_lines()

    assert list(mark.get_xdata()) == [96]


@pytest.mark.parametrize("layers", [[], [kept_layer("a")], [made_layer(f"$\\frac{{{HOSTILE}")]])
def test_no_report_breaks_it(layers):
    assert len(drawn(made_report(layers)).axes) == 2


def test_the_figure_is_the_callers_alone():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn(made_report(blocks(1)))

    assert pyplot.get_fignums() == []


def test_without_matplotlib_the_error_names_the_extra():
    text = Report.model_validate(made_report()).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=text, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "pip install 'eckart[plot]'" in done.stderr
