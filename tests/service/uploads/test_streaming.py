"""`uploads.streaming`: bodies are streamed, limited and checked on arrival; refused ones leave nothing."""

import asyncio
import os
import re
import secrets
import socket
import time

import pytest
from starlette.requests import Request

from schemas.problem import ProblemKind
from service.errors import ProblemError
from service.uploads.streaming import BodyStream, DiskSpace
from state.cache.store import DecompositionCache
from state.data_dir import DataDir
from state.errors import OutOfSpace
from state.jobs.store import JobStore
from tests.service.files import big_checkpoint, checkpoint_bytes
from tests.service.running import assert_problem, until
from tests.stopped import stopped_holder

MODEL = checkpoint_bytes()


def fresh_id():
    return "u" + secrets.token_hex(8)


def test_a_file_of_unknown_length_is_checked_as_well(service):
    whole = service.put(fresh_id(), "model.safetensors", iter([MODEL[:10], MODEL[10:]]))
    cut = service.put(fresh_id(), "model.safetensors", iter([MODEL[:10], MODEL[10:-1]]))

    assert whole.status_code == 201
    assert_problem(cut, 422, "invalid-checkpoint:truncated")
    assert service.leftovers() == []


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "gzip, identity"])
def test_a_compressed_body_is_refused(service, encoding):
    refused = service.put(fresh_id(), "model.safetensors", MODEL, **{"Content-Encoding": encoding})

    assert_problem(refused, 415, "encoded-body")
    assert refused.headers["accept-encoding"] == "identity"


def test_a_part_of_a_file_is_refused(service):
    refused = service.put(
        fresh_id(),
        "model.safetensors",
        MODEL,
        **{"Content-Range": f"bytes 10-{len(MODEL) + 9}/{len(MODEL) + 10}"},
    )

    assert_problem(refused, 422, "partial-body")


def test_a_body_over_the_limit_is_refused_announced_or_not(start):
    service = start(max_upload_bytes=len(MODEL) - 1)
    name = fresh_id()

    assert_problem(service.put(name, "model.safetensors", MODEL), 413, "too-large")
    assert_problem(service.put(name, "model.safetensors", iter([MODEL])), 413, "too-large")
    assert service.leftovers() == []
    assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404


def test_an_upload_that_would_fill_the_disk_is_refused(start):
    service = start(min_free_bytes=2**60)

    refused = assert_problem(service.put("full", "model.safetensors", MODEL), 507, "out-of-space")
    found = re.search(r"(\d+) bytes are needed, and (\d+) are free, of which (\d+) must", refused["detail"])
    assert found, refused["detail"]
    needed, free, least = map(int, found.groups())
    assert needed == len(MODEL)
    assert needed + least > free
    assert "ECKART_MIN_FREE_BYTES" in refused["detail"]
    assert_problem(service.put("full", "model.safetensors", iter([MODEL])), 507, "out-of-space")
    assert_problem(service.submit_files({"model.safetensors": MODEL}), 507, "out-of-space")


def test_an_upload_takes_the_room_of_the_cache(tmp_path, redis_server):
    kept = tmp_path / "decompositions" / "ab" / "a.safetensors"
    kept.parent.mkdir(parents=True)
    with kept.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 512 << 20)
    cache = DecompositionCache.shared(tmp_path, limit_bytes=1 << 40)
    space = DiskSpace(tmp_path, 0, cache, JobStore(redis_server.client(), tmp_path))
    with pytest.raises(OutOfSpace):
        space.require(space.free_bytes() + (1 << 40))
    assert kept.exists()
    space.require(space.free_bytes() + (256 << 20))
    assert not kept.exists()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 999999999999999999\r\n", b"413"),
        (b"Content-Length: 5\r\nContent-Encoding: gzip\r\n", b"415"),
        (b"Content-Length: 5\r\nContent-Range: bytes 0-4/9\r\n", b"422"),
        (b"Content-Length: 5\r\nRepr-Digest: sha-256=1\r\n", b"422"),
        (b"Content-Length: 5\r\nDigest: SHA-256=1\r\n", b"422"),
        (b'Content-Length: 999\r\nIf-Match: "else"\r\n', b"412"),
    ],
)
def test_a_client_that_asks_first_is_refused_before_it_sends(service, headers, status):
    answer = service.raw(
        b"PUT /v1/checkpoints/early/model.safetensors HTTP/1.1\r\nHost: localhost\r\n"
        b"Expect: 100-continue\r\n%s\r\n" % headers,
    )

    assert answer.startswith(b"HTTP/1.1 %s " % status)
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("multipart", [False, True])
def test_a_bad_header_is_refused_long_before_the_end_of_the_body(service, multipart):
    sent = 0

    def endless():
        nonlocal sent
        yield (
            b'--x\r\nContent-Disposition: form-data; name="checkpoint"; filename="m.safetensors"\r\n\r\n'
            * multipart
        )
        yield b"GGUF" + bytes(60_000)
        while sent < 10**9:
            sent += 65_536
            yield bytes(65_536)

    headers = {"Content-Type": "multipart/form-data; boundary=x"} if multipart else {}
    path = f"/v1/checkpoints/{fresh_id()}" + ("" if multipart else "/model.safetensors")
    refused = service.http.request("POST" if multipart else "PUT", path, content=endless(), headers=headers)

    assert_problem(refused, 422, "invalid-checkpoint:other-format")
    assert sent < 10**8


def test_a_client_that_stops_after_a_bad_header_is_told_of_the_header(service):
    """It need not send another byte to hear of it, nor wait until it is dropped as too slow."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(
            f"PUT /v1/checkpoints/{fresh_id()}/model.safetensors HTTP/1.1\r\nHost: localhost\r\n".encode()
            + b"Content-Length: 1000000000\r\n\r\nGGUF"
            + bytes(10_000)
        )
        answer = connection.recv(65_536)

    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"other-format" in answer


def test_a_client_that_leaves_leaves_nothing(service):
    name = fresh_id()
    nbytes = 50_000_000
    head = big_checkpoint(nbytes)
    request = (
        f"PUT /v1/checkpoints/{name}/model.safetensors HTTP/1.1\r\n"
        f"Host: localhost\r\nContent-Length: {nbytes + len(head)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(request.encode() + head + bytes(nbytes // 2))
        _until(lambda: service.leftovers() != [])
    _until(lambda: service.leftovers() == [])

    assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404


def test_a_client_that_falls_silent_is_dropped(start):
    service = start(idle_timeout_s=0.2)

    answer = service.raw(
        b"PUT /v1/checkpoints/slow/model.safetensors HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: %d\r\n\r\n" % len(MODEL) + MODEL[:50],
    )

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert service.leftovers() == []


def test_a_client_that_is_only_slow_is_not_dropped(start):
    service = start(idle_timeout_s=1)

    def dripping():
        for i in range(0, len(MODEL), 64):
            time.sleep(0.2)
            yield MODEL[i : i + 64]

    assert service.put("drip", "model.safetensors", dripping()).status_code == 201


def _until(holds, limit_s=10):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_files_that_a_stopped_process_locks_are_503_and_nothing_is_left(start, monkeypatch):
    service = start()
    monkeypatch.setattr("state.files.LOCK_WAIT_S", 0.1)
    with stopped_holder(DataDir(service.data_dir).lock("checkpoint", "c")):
        refused = service.put("c", "model.safetensors", MODEL)

        assert_problem(refused, 503, "files-locked")
        assert refused.headers["Retry-After"] == "30"
        assert service.leftovers() == []
    assert service.put("c", "model.safetensors", MODEL).status_code == 201


def test_more_uploads_than_may_be_under_way_are_told_to_come_again(start):
    service = start(max_uploads=1)
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as first:
        first.sendall(
            b"PUT /v1/checkpoints/first/model.safetensors HTTP/1.1\r\nHost: localhost\r\n"
            + f"Content-Length: {len(MODEL)}\r\n\r\n".encode()
            + MODEL[:1]
        )
        until(service.leftovers)
        refused = service.put("second", "model.safetensors", MODEL)
        assert_problem(refused, 429, "busy")
        assert refused.headers["retry-after"] == "2"
        first.sendall(MODEL[1:])
        assert first.recv(65_536).startswith(b"HTTP/1.1 201 ")
    assert service.put("second", "model.safetensors", MODEL).status_code == 201


def arrives(chunks, *, rate_after_s):
    """Receive a body in these chunks, a millisecond apart, where ten million bytes a second are asked for."""
    left = list(chunks)

    async def receive():
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    scope = {
        "type": "http",
        "method": "PUT",
        "path": "/",
        "headers": [],
        "query_string": b"",
        "server": ("", 0),
    }
    limits = {
        "limit_bytes": 1000,
        "idle_timeout_s": 9,
        "least_bytes_per_s": 10**7,
        "rate_after_s": rate_after_s,
    }
    return asyncio.run(BodyStream(Request(scope, receive), space=None, **limits).whole())


def test_an_upload_slower_than_the_least_rate_is_dropped_after_its_first_minute():
    with pytest.raises(ProblemError, match="Less than 10000000 bytes a second arrived") as refused:
        arrives([b"x"] * 5, rate_after_s=0)
    assert refused.value.kind is ProblemKind.REQUEST_TIMEOUT

    assert arrives([b"x"] * 5, rate_after_s=60) == b"xxxxx"
