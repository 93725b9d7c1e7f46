"""Downloading over a real connection that drops, lies and stalls."""

from __future__ import annotations

import random
import re

import pytest

from eckart import AnswerError, Client, DigestError, InputError, ProblemError, TransferError
from eckart.http import repr_digest

NAME = "model.safetensors"
CONTENT = random.Random(0).randbytes(500_000)


@pytest.fixture
def fetch(serve, report, tmp_path):
    """Download into a directory from a service whose files routes are answered by the given function."""

    def run(respond_file, *, files=None, patience_s=5.0, progress=None):
        document = report(files={NAME: CONTENT} if files is None else files)

        def respond(exchange):
            if exchange.path.endswith("/report"):
                exchange.answer(200, document)
            else:
                respond_file(exchange)

        with Client(serve(respond), patience_s=patience_s) as client:
            return client.download("J1", tmp_path / "out", **({"progress": progress} if progress else {}))

    return run


def first_byte(exchange):
    return int(re.fullmatch(r"bytes=(\d+)-", exchange.headers.get("Range", "bytes=0-"))[1])


def ranged(exchange, content=CONTENT, *, cut=None):
    """Answer as a service that knows ranges."""
    begin = first_byte(exchange)
    headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
    exchange.answer(206 if begin else 200, content[begin:], headers, cut=cut)


def left(directory):
    return sorted(path.name for path in directory.iterdir())


def test_every_file_and_the_report_arrive(fetch, tmp_path):
    files = {"a-1.safetensors": b"one", "a-2.safetensors": b"twoo", "a.safetensors.index.json": b"{}"}
    said = []
    paths = fetch(
        lambda exchange: ranged(exchange, files[exchange.path.rsplit("/", 1)[1]]),
        files=files,
        progress=lambda *what: said.append(what),
    )

    assert [path.name for path in paths] == [*files, "report.json"]
    assert left(tmp_path / "out") == sorted([*files, "report.json"])
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in files.items())
    assert said[-1][:2] == (9, 9)


def test_a_dropped_line_is_taken_up_where_it_broke(fetch, tmp_path):
    begins = []

    def respond(exchange):
        begins.append(first_byte(exchange))
        ranged(exchange, cut=200_000 if len(begins) < 3 else None)

    fetch(respond)

    assert (tmp_path / "out" / NAME).read_bytes() == CONTENT
    assert begins == [0, 200_000, 400_000]


def test_a_line_that_drops_again_and_again_is_borne_as_long_as_something_arrives(fetch, tmp_path):
    """The pauses would use up the patience if what arrives did not renew it."""
    drops = iter(range(8))
    fetch(
        lambda exchange: ranged(exchange, cut=None if next(drops, None) is None else 50_000), patience_s=0.35
    )

    assert (tmp_path / "out" / NAME).read_bytes() == CONTENT


def test_a_service_without_ranges_is_asked_from_the_start(fetch, tmp_path):
    tries = []

    def respond(exchange):
        tries.append(exchange.headers.get("Range"))
        exchange.answer(200, CONTENT, cut=300_000 if len(tries) == 1 else None)

    fetch(respond)

    assert (tmp_path / "out" / NAME).read_bytes() == CONTENT
    assert tries == [None, "bytes=300000-"]


def test_a_busy_service_is_waited_for(fetch, tmp_path, problem):
    tries = []

    def respond(exchange):
        tries.append(exchange.path)
        if len(tries) == 1:
            exchange.answer(503, problem(503, "Busy"), {"Retry-After": "0"})
        else:
            ranged(exchange)

    fetch(respond)

    assert (tmp_path / "out" / NAME).read_bytes() == CONTENT
    assert len(tries) == 2


def test_what_broke_off_for_good_is_kept_for_the_next_call(fetch, tmp_path):
    def cut(exchange):
        if first_byte(exchange):
            exchange.drop()
        else:
            ranged(exchange, cut=123_456)

    with pytest.raises(TransferError):
        fetch(cut, patience_s=0.2)

    (part,) = (tmp_path / "out").iterdir()
    assert part.name.endswith(".part")
    begins = []

    def respond(exchange):
        begins.append(first_byte(exchange))
        ranged(exchange)

    fetch(respond)

    assert begins == [123_456]
    assert (tmp_path / "out" / NAME).read_bytes() == CONTENT
    assert left(tmp_path / "out") == [NAME, "report.json"]


def test_a_beginning_that_is_not_this_files_is_fetched_anew(fetch, tmp_path):
    with pytest.raises(TransferError):
        fetch(lambda exchange: ranged(exchange, cut=1000), patience_s=0)
    (part,) = (tmp_path / "out").iterdir()
    part.write_bytes(b"\0" * 1000)
    begins = []

    def respond(exchange):
        begins.append(first_byte(exchange))
        ranged(exchange)

    fetch(respond)

    assert begins == [1000, 0]
    assert (tmp_path / "out" / NAME).read_bytes() == CONTENT


def test_a_beginning_that_is_too_long_is_fetched_anew(fetch, tmp_path):
    with pytest.raises(TransferError):
        fetch(lambda exchange: ranged(exchange, cut=1000), patience_s=0)
    (part,) = (tmp_path / "out").iterdir()
    part.write_bytes(CONTENT + b"more")

    fetch(ranged)

    assert (tmp_path / "out" / NAME).read_bytes() == CONTENT


def other_bytes(exchange):
    ranged(exchange, bytes(len(CONTENT)))


def longer(exchange):
    ranged(exchange, CONTENT + b"x")


def shorter(exchange):
    ranged(exchange, CONTENT[:-1])


def empty(exchange):
    exchange.answer(200)


def other_promise(exchange):
    exchange.answer(200, CONTENT, {"Repr-Digest": repr_digest("0" * 64)})


def other_range(exchange):
    exchange.answer(206, CONTENT[5:], {"Content-Range": f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"})


@pytest.mark.parametrize("respond", [other_bytes, longer, shorter, empty, other_promise, other_range])
def test_bytes_that_are_not_the_reports_are_never_published(fetch, tmp_path, respond):
    said = []

    with pytest.raises(DigestError, match=NAME):
        fetch(respond, progress=lambda *what: said.append(what))

    assert all(done <= total for done, total, _ in said)
    assert [name for name in left(tmp_path / "out") if not name.endswith(".part")] == []


@pytest.mark.parametrize("status", [404, 409, 416, 500])
def test_a_refusal_is_told_and_publishes_nothing(fetch, tmp_path, problem, status):
    with pytest.raises(ProblemError, match="Gone"):
        fetch(lambda exchange: exchange.answer(status, problem(status, "Gone")))

    assert [name for name in left(tmp_path / "out") if not name.endswith(".part")] == []


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        ".x.safetensors",
        "report.json",
        "x.sh",
        "",
    ],
)
def test_a_file_name_that_leads_elsewhere_is_refused(fetch, tmp_path, name):
    with pytest.raises(AnswerError, match="cannot be the name of a result's file"):
        fetch(ranged, files={name: CONTENT})

    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == []


def test_a_second_call_fetches_nothing_again(fetch):
    fetch(ranged)
    asked = []
    paths = fetch(lambda exchange: asked.append(exchange.path))

    assert asked == []
    assert len(paths) == 2


@pytest.mark.parametrize("name", [NAME, "report.json"])
def test_a_file_with_other_bytes_is_not_overwritten(fetch, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")

    with pytest.raises(InputError, match="with other bytes"):
        fetch(ranged)

    assert left(tmp_path / "out") == [name]
    assert (tmp_path / "out" / name).read_bytes() == b"mine"
