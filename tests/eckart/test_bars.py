"""Progress as bars."""

from __future__ import annotations

import io
import sys

import pytest

from eckart.bars import Bars, amounts, progress_for
from eckart.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def bars(monkeypatch):
    """Make bars on a terminal, and what it shows."""
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    progress = progress_for(stream)
    assert isinstance(progress, Bars)
    yield progress, stream
    progress.close()


def test_lines_are_shown_where_bars_cannot_be(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress_for(io.StringIO()), ProgressLine)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_for(Terminal()), ProgressLine)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(progress_for(Terminal()), ProgressLine)


def test_each_kind_of_work_has_a_bar_with_its_unit(bars):
    progress, stream = bars
    progress(0, 0, "queued, 2 before it")
    progress(0, 4_000_000, "upload x")
    progress(2_000_000, 4_000_000, "already there: y")
    progress(4_000_000, 4_000_000, "upload z")
    progress(3, 12, "compress h.0")
    progress.note("job J1")
    progress(12, 12, "succeeded")
    progress.close()

    last = stream.getvalue().rpartition("job J1")[2]
    assert "4.0/4.0 MB" in last
    assert "12/12" in last
    assert last.count("upload z") >= last.count("succeeded") > 0
    assert "queued" not in last


def test_a_name_is_shown_as_it_is_and_cannot_steer_the_terminal(bars):
    progress, stream = bars
    progress(1, 2, "compress [red]a\x1b[2Jb")
    progress.close()

    assert r"compress [red]a\x1b[2Jb" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_after_a_close_new_bars_begin(bars):
    progress, stream = bars
    progress(1, 2, "upload x")
    progress.close()
    before = len(stream.getvalue())
    progress(1, 2, "download y")
    progress.close()

    assert "upload" not in stream.getvalue()[before:]
    assert "download y" in stream.getvalue()[before:]


@pytest.mark.parametrize(
    ("verb", "done", "total", "rate", "said"),
    [
        ("upload", 1_500_000, 3_000_000, 250_000, "1.5/3.0 MB 0.2 MB/s"),
        ("hash", 0, 3_000_000, None, "0.0/3.0 MB"),
        ("compress", 3, 12, 0.5, "3/12 0.50/s"),
        ("queued", 0, None, None, ""),
    ],
)
def test_amounts_have_the_unit_of_the_work(verb, done, total, rate, said):
    assert amounts(verb, done, total, rate) == said
