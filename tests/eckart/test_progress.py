"""Progress for people."""

from __future__ import annotations

import io

import pytest

from eckart.progress import LINE_COLUMNS, ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    """Make a clock that stands still until its hand is moved."""
    hand = [0.0]
    return hand, lambda: hand[0]


def test_a_terminal_sees_one_line_rewritten(clock):
    hand, now = clock
    stream = Terminal()
    line = ProgressLine(stream, clock=now)
    for done in range(5):
        hand[0] += 1
        line(done, 4, "upload x")
    line.close()

    shown = stream.getvalue().split("\r")
    assert [text.strip() for text in shown[1:]] == [f"{share}% upload x" for share in (0, 25, 50, 75, 100)]
    assert {len(text.rstrip("\n")) for text in shown[1:]} == {LINE_COLUMNS}
    assert stream.getvalue().endswith("\n")


def test_a_terminal_is_not_flooded_but_sees_the_end(clock):
    stream = Terminal()
    line = ProgressLine(stream, clock=clock[1])
    for done in range(1001):
        line(done, 1000, "upload x")

    assert stream.getvalue().count("\r") == 2
    assert "100% upload x" in stream.getvalue()


def test_a_log_gets_a_line_for_each_kind_of_work_and_then_now_and_then(clock):
    hand, now = clock
    stream = io.StringIO()
    line = ProgressLine(stream, clock=now)
    for second in range(25):
        hand[0] = second
        line(second, 100, "upload x")
    line(0, 0, "queued, 2 before it")
    line.close()

    assert stream.getvalue().splitlines() == [
        "  0% upload x",
        " 10% upload x",
        " 20% upload x",
        "     queued, 2 before it",
    ]


def test_a_note_stands_on_its_own_line(clock):
    stream = Terminal()
    line = ProgressLine(stream, clock=clock[1])
    line(1, 2, "upload x")
    line.note("job J1")
    line.close()

    assert stream.getvalue().endswith("\njob J1\n")
