"""`eckart.resumable`: large files go on after a broken line, and nothing that has arrived is sent again."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time

import pytest

from eckart import Client, InputError, ProblemError, resumable
from eckart.errors import AnswerError, ServiceError

MIB = 1 << 20
SIZE = 5 * MIB + 123


class Receiver:
    """The answers of a service with resumable uploads, which cuts connections and refuses as it is told."""

    def __init__(self, problem, *, cuts=(), refusals=()):
        self.problem = problem
        self.cuts = list(cuts)  # after how many bytes of each request the line breaks
        self.refusals = list(refusals)  # what the next requests are answered with instead
        self.uploads = []
        self.told, self.metadata = "", {}
        self.requests = []

    def __call__(self, exchange):
        self.requests.append(exchange.method)
        if exchange.method == "GET":
            exchange.answer(404)
        elif exchange.method == "POST":
            self.begin(exchange)
        elif exchange.method == "HEAD":
            self.tell(exchange)
        else:
            self.append(exchange)

    def tell(self, exchange):
        gone = exchange.path.rpartition("/")[2] != f"U{len(self.uploads)}"
        told = {"Upload-Offset": str(len(self.uploads[-1])) if self.uploads else "0"}
        told |= {"Upload-Length": str(SIZE), "Upload-Metadata": self.told}
        exchange.answer(404 if gone else 200, b"", told)

    def begin(self, exchange):
        self.told = exchange.headers["Upload-Metadata"]
        pairs = (pair.split(" ") for pair in self.told.split(","))
        self.metadata = {key: base64.b64decode(value).decode() for key, value in pairs}
        self.uploads.append(bytearray())
        exchange.answer(201, b"", {"Location": f"/behind/a/proxy/v1/uploads/U{len(self.uploads)}"})

    def append(self, exchange):
        assert exchange.path == f"/v1/uploads/U{len(self.uploads)}"
        assert exchange.headers["Content-Type"] == "application/offset+octet-stream"
        content = self.uploads[-1]
        if self.refusals:
            status, slug = self.refusals.pop(0)
            if status == 404:
                self.uploads.append(bytearray())
            document = self.problem(status, "No") | {"type": f"urn:eckart:problem:{slug}"}
            exchange.answer(status, document, {"Retry-After": "0"})
            return
        assert int(exchange.headers["Upload-Offset"]) == len(content)
        length = int(exchange.headers["Content-Length"])
        if self.cuts:
            content += exchange.handler.rfile.read(min(self.cuts.pop(0), length))
            exchange.drop()
            return
        content += exchange.body
        exchange.answer(204, b"", {"Upload-Offset": str(len(content))})


@pytest.fixture
def big(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(resumable, "RESUMABLE_ABOVE_BYTES", MIB)
    monkeypatch.setattr(resumable, "REQUEST_BYTES", 2 * MIB)
    path = tmp_path / "big.safetensors"
    path.write_bytes(secrets.token_bytes(SIZE))
    return path


@pytest.fixture
def send(serve, big, problem):
    """Upload the big file to a receiver; return it and the calls of progress."""

    def upload(**options):
        receiver, said = Receiver(problem, **options), []
        receiver.said = said
        with Client(serve(receiver), patience_s=5) as client:
            client.upload(big, id="m", progress=lambda done, total, what: said.append((done, total, what)))
        return receiver

    return upload


def test_a_large_file_is_announced_with_its_digest_and_sent_in_several_requests(send, big):
    receiver = send()

    assert receiver.uploads == [big.read_bytes()]
    assert receiver.requests == ["GET", "POST", "PATCH", "PATCH", "PATCH"]
    digest = hashlib.sha256(big.read_bytes()).hexdigest()
    assert receiver.metadata == {"checkpoint": "m", "filename": big.name, "sha256": digest}


@pytest.mark.parametrize("cuts", [[0], [MIB, 1, 100_000], [2 * MIB, 2 * MIB, 2 * MIB]], ids=str)
def test_what_has_arrived_on_a_broken_line_is_not_sent_again(send, big, cuts):
    """The receiver asserts that each request begins where the last one was cut."""
    receiver = send(cuts=cuts)

    assert receiver.uploads == [big.read_bytes()]
    assert receiver.requests.count("HEAD") == len(cuts)


def test_progress_goes_back_to_what_has_arrived_and_ends_at_the_total(send):
    receiver = send(cuts=[MIB + 7])
    sent = [done for done, _, what in receiver.said if what.startswith("upload ")]
    back = sent.index(MIB + 7)

    assert sent[back:] == sorted(sent[back:])
    assert sent[-1] == SIZE
    assert {total for _, total, _ in receiver.said} == {SIZE}


@pytest.mark.parametrize(
    "refusal",
    [
        (408, "request-timeout"),
        (409, "offset-mismatch"),
        (423, "upload-locked"),
        (503, "files-locked"),
    ],
)
def test_it_asks_for_the_offset_after_a_refusal_that_passes(send, big, refusal):
    receiver = send(refusals=[refusal, refusal])

    assert receiver.uploads == [big.read_bytes()]
    assert receiver.requests.count("HEAD") == 2


@pytest.mark.parametrize("status", [409, 422, 507])
def test_a_refusal_that_stays_is_told(send, status):
    with pytest.raises(ProblemError, match="No"):
        send(refusals=[(status, "content-conflict")])


def test_an_upload_that_is_gone_is_begun_again_once(send, big):
    receiver = send(refusals=[(404, "upload-not-found")])
    assert receiver.uploads[-1] == big.read_bytes()

    with pytest.raises(ProblemError) as told:
        send(refusals=[(404, "upload-not-found")] * 2)
    assert told.value.status == 404


@pytest.mark.parametrize("status", [404, 405])
def test_a_service_without_resumable_uploads_gets_the_file_by_put(serve, big, problem, status):
    received = []

    def respond(exchange):
        if exchange.method == "PUT":
            received.append(exchange.body)
        answered = {"PUT": 201, "GET": 404}.get(exchange.method, status)
        exchange.answer(answered, problem(answered))

    with Client(serve(respond), patience_s=1) as client:
        client.upload(big)
    assert received == [big.read_bytes()]


def test_a_service_that_refuses_the_announcement_is_heard(serve, big, problem):
    def respond(exchange):
        exchange.answer(404 if exchange.method == "GET" else 413, problem(413, "Too large"))

    with Client(serve(respond), patience_s=1) as client, pytest.raises(ProblemError, match="Too large"):
        client.upload(big)


@pytest.mark.parametrize("offset", ["", "7"])
def test_an_answer_with_another_offset_than_that_of_the_end_is_no_success(serve, big, offset):
    def respond(exchange):
        told = {"Upload-Offset": offset, "Location": "/v1/uploads/U1"}
        exchange.answer({"GET": 404, "POST": 201}.get(exchange.method, 204), b"", told)

    with Client(serve(respond), patience_s=1) as client, pytest.raises(AnswerError, match="Upload-Offset"):
        client.upload(big)


def test_a_file_that_changes_underway_is_noticed(serve, big, problem):
    receiver = Receiver(problem)

    def respond(exchange):
        receiver(exchange)
        if exchange.method == "POST":
            big.write_bytes(big.read_bytes() + b"x")

    with Client(serve(respond), patience_s=1) as client, pytest.raises(InputError, match="changed while"):
        client.upload(big)


class Killed(BaseException):
    """What ends a client in the middle, and nothing catches."""


@pytest.fixture
def killed(serve, big, problem):
    """Return a receiver at which a client was killed after three MiB, and its address."""
    receiver = Receiver(problem)
    url = serve(receiver)
    progress = kill_after(3 * MIB)
    with Client(url, patience_s=5) as client, pytest.raises(Killed):
        client.upload(big, id="m", progress=progress)
    end = time.monotonic() + 30
    while len(receiver.uploads[0]) < 3 * MIB:  # what was on its way
        assert time.monotonic() < end
        time.sleep(0.01)
    receiver.requests.clear()
    return receiver, url


def kill_after(nbytes):
    def progress(done, _total, what):
        if what.startswith("upload") and done >= nbytes:
            raise Killed

    return progress


def test_a_client_that_was_killed_goes_on_at_its_next_start(killed, big):
    receiver, url = killed
    with Client(url, patience_s=5) as client:
        client.upload(big, id="m")

    assert receiver.uploads == [big.read_bytes()]
    assert receiver.requests[:3] == ["GET", "HEAD", "PATCH"]
    assert "POST" not in receiver.requests


def test_nothing_is_left_of_an_upload_that_has_ended(killed, big, tmp_path):
    with Client(killed[1], patience_s=5) as client:
        client.upload(big, id="m")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def expired(receiver):
    receiver.uploads.append(bytearray())


def of_another_file(receiver):
    receiver.told = receiver.told.replace("checkpoint ", "checkpoint bm8=,was ")


@pytest.mark.parametrize("change", [expired, of_another_file])
def test_an_upload_that_is_not_this_one_any_more_is_begun_anew(killed, big, change):
    receiver, url = killed
    change(receiver)
    with Client(url, patience_s=5) as client:
        client.upload(big, id="m")
    assert receiver.uploads[-1] == big.read_bytes()
    assert receiver.requests[:4] == ["GET", "HEAD", "POST", "PATCH"]


def test_another_target_or_other_bytes_are_another_upload(killed, big):
    receiver, url = killed
    with Client(url, patience_s=5) as client:
        client.upload(big, id="other")
        assert receiver.requests[:2] == ["GET", "POST"]
        receiver.requests.clear()
        big.write_bytes(secrets.token_bytes(SIZE))
        client.upload(big, id="m")
    assert receiver.requests[:2] == ["GET", "POST"]


@pytest.mark.parametrize("folder", ["/proc/none", "relative"])
def test_it_does_without_a_cache_directory(send, big, monkeypatch, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    monkeypatch.setenv("HOME", "/proc/none")
    assert send().uploads == [big.read_bytes()]


def test_a_line_that_stays_broken_is_told_in_the_end(serve, big, problem, monkeypatch):
    monkeypatch.setattr(resumable, "LOCKED_S", 0.0)
    receiver = Receiver(problem, refusals=[(423, "upload-locked")] * 100)
    with Client(serve(receiver), patience_s=0.3) as client, pytest.raises(ServiceError) as told:
        client.upload(big)
    assert told.value.status == 423
