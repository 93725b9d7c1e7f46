"""Files go in whole, are checked on the way, and leave nothing when they are refused."""

import base64
import hashlib
import json
import os
import secrets
import socket
import subprocess
import time

import pytest

from service.uploads import DiskSpace
from state.cache import DecompositionCache
from state.errors import OutOfSpace
from tests.service.files import big_checkpoint, checkpoint_bytes, sharded_set
from tests.service.running import assert_problem

MODEL = checkpoint_bytes()


def fresh_id():
    return "u" + secrets.token_hex(8)


def repr_digest(content):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def test_a_file_is_stored_once_and_its_digest_returned(service):
    name = fresh_id()

    first = service.put(name, "model.safetensors", MODEL)
    again = service.put(name, "model.safetensors", MODEL)

    assert first.status_code == 201
    assert again.status_code == 200
    for answer in (first, again):
        assert answer.json() == {
            "name": "model.safetensors",
            "size_bytes": len(MODEL),
            "sha256": hashlib.sha256(MODEL).hexdigest(),
        }
        assert answer.headers["repr-digest"] == repr_digest(MODEL)
        assert answer.headers["etag"] == f'"{hashlib.sha256(MODEL).hexdigest()}"'


def test_other_bytes_under_the_same_name_are_a_conflict(service):
    name = service.stored(MODEL)

    refused = service.put(name, "model.safetensors", checkpoint_bytes(fill=2))

    assert_problem(refused, 409, "content-conflict")
    assert service.put(name, "model.safetensors", MODEL).status_code == 200


def test_a_matching_digest_is_accepted_and_another_is_refused(service):
    name = fresh_id()

    wrong = service.put(name, "model.safetensors", MODEL, **{"Repr-Digest": repr_digest(b"else")})
    assert_problem(wrong, 422, "digest-mismatch")
    assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404
    right = service.put(name, "model.safetensors", MODEL, **{"Repr-Digest": repr_digest(MODEL)})

    assert right.status_code == 201


@pytest.mark.parametrize(
    "header", ["sha-256=abc", "sha-256=:abc", "sha-256=:!!!!:", "sha-256=:YWJj:", "sha-256="]
)
def test_a_malformed_digest_is_refused(service, header):
    refused = service.put(fresh_id(), "model.safetensors", MODEL, **{"Repr-Digest": header})

    assert_problem(refused, 422, "invalid-request")


def test_a_digest_of_another_kind_is_ignored(service):
    headers = {"Repr-Digest": "sha-512=:YWJj:, " + repr_digest(MODEL)}
    assert service.put(fresh_id(), "model.safetensors", MODEL, **headers).status_code == 201
    headers = {"Repr-Digest": "sha-512=:YWJj:"}
    assert service.put(fresh_id(), "model.safetensors", MODEL, **headers).status_code == 201


@pytest.mark.parametrize(
    ("content", "slug"),
    [
        (b"", "invalid-checkpoint:too-short"),
        (MODEL[:-1], "invalid-checkpoint:past-end"),
        (MODEL + b"x", "invalid-checkpoint:trailing-data"),
        (b"PK\x03\x04" + bytes(100), "invalid-checkpoint:other-format"),
        (b"<html>\n<body>" + bytes(100), "invalid-checkpoint:other-format"),
        (b"\xff" * 100, "invalid-checkpoint:header-length-overflow"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_leaves_nothing(service, content, slug):
    name = fresh_id()

    assert_problem(service.put(name, "model.safetensors", content), 422, slug)
    assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404
    assert service.leftovers() == []


def test_a_file_of_unknown_length_is_checked_as_well(service):
    whole = service.put(fresh_id(), "model.safetensors", iter([MODEL[:10], MODEL[10:]]))
    cut = service.put(fresh_id(), "model.safetensors", iter([MODEL[:10], MODEL[10:-1]]))

    assert whole.status_code == 201
    assert_problem(cut, 422, "invalid-checkpoint:truncated")
    assert service.leftovers() == []


def test_a_broken_index_is_refused(service):
    refused = service.put(fresh_id(), "model.safetensors.index.json", b'{"weight_map": 7}')

    body = assert_problem(refused, 422, "invalid-checkpoint:weight-map-not-strings")
    assert body["errors"][0]["pointer"] == "/weight_map"


def test_a_sharded_set_becomes_complete_in_any_order(service):
    name, files = fresh_id(), sharded_set(2)

    for done, filename in enumerate(reversed(files)):
        assert service.put(name, filename, files[filename]).status_code == 201
        document = service.http.get(f"/v1/checkpoints/{name}").json()
        assert document["complete"] is (done == 2)
    assert document["missing"] == []
    assert [tensor["name"] for tensor in document["tensors"]] == ["layer.0.weight", "layer.1.weight"]


def test_a_set_that_does_not_fit_refuses_the_file_that_completes_it(service):
    name, files = fresh_id(), sharded_set(2)
    first, second, index = files
    assert service.put(name, index, files[index]).status_code == 201
    assert service.put(name, first, files[first]).status_code == 201

    refused = service.put(name, second, checkpoint_bytes({"other.weight": (8, 8)}))

    assert refused.status_code == 422
    assert service.put(name, second, files[second]).status_code == 201


def test_a_checkpoint_tells_its_files_and_tensors(service):
    content = checkpoint_bytes({"a.weight": (8, 4), "embed.weight": (8, 4), "a.bias": (8,)})
    name = service.stored(content)

    document = service.http.get(f"/v1/checkpoints/{name}").json()

    assert document == {
        "id": name,
        "files": [
            {
                "name": "model.safetensors",
                "size_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        ],
        "complete": True,
        "missing": [],
        "parameters": 72,
        "bytes": len(content),
        "tensors": [
            {
                "name": "a.weight",
                "dtype": "F32",
                "shape": [8, 4],
                "parameters": 32,
                "selected": True,
                "break_even_rank": 2,
            },
            {
                "name": "embed.weight",
                "dtype": "F32",
                "shape": [8, 4],
                "parameters": 32,
                "selected": False,
                "break_even_rank": 2,
            },
            {
                "name": "a.bias",
                "dtype": "F32",
                "shape": [8],
                "parameters": 8,
                "selected": False,
                "break_even_rank": None,
            },
        ],
    }


def test_deleting_removes_a_checkpoint_unless_a_job_needs_it(service):
    name = service.stored(MODEL)
    job = service.submit(name).json()["id"]

    assert_problem(service.http.delete(f"/v1/checkpoints/{name}"), 409, "checkpoint-in-use")
    service.http.post(f"/v1/jobs/{job}/cancel")
    deleted = service.http.delete(f"/v1/checkpoints/{name}")

    assert deleted.status_code == 204
    assert deleted.content == b""
    assert_problem(service.http.delete(f"/v1/checkpoints/{name}"), 404, "checkpoint-not-found")


@pytest.mark.parametrize("name", ["nobody", "-", "a" * 200, "%00", "caf%C3%A9", "..%5C..%5Cx"])
def test_an_unknown_or_impossible_id_is_not_found(service, name):
    assert_problem(service.http.get(f"/v1/checkpoints/{name}"), 404, "checkpoint-not-found")
    assert_problem(service.http.delete(f"/v1/checkpoints/{name}"), 404, "checkpoint-not-found")


@pytest.mark.parametrize(
    "path", ["..%2f..%2fetc/x.safetensors", "a/b/c.safetensors", "a%2fb/c.safetensors", "a/"]
)
def test_a_path_that_climbs_is_no_address(service, path):
    assert_problem(service.http.put(f"/v1/checkpoints/{path}", content=MODEL), 404, "not-found")


@pytest.mark.parametrize("name", [".hidden", "-a", "a" * 129, "caf%C3%A9", "a%00", "a%0A", "%2e%2e"])
def test_an_id_that_cannot_be_is_refused_on_upload(service, name):
    answer = service.raw(
        b"PUT /v1/checkpoints/%s/model.safetensors HTTP/1.1\r\n"
        b"Host: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % name.encode()
    )
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"urn:eckart:problem:invalid-request" in answer


@pytest.mark.parametrize(
    "filename",
    ["model.bin", "model.pt", ".safetensors", "model.safetensors.index.jsonx", "m%C3%B6del.safetensors"],
)
def test_a_file_name_that_cannot_be_is_refused(service, filename):
    refused = service.put(fresh_id(), filename, MODEL)

    assert_problem(refused, 422, "invalid-request")


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

    assert_problem(service.put("full", "model.safetensors", MODEL), 507, "out-of-space")
    assert_problem(service.put("full", "model.safetensors", iter([MODEL])), 507, "out-of-space")
    assert_problem(service.one_shot({"model.safetensors": MODEL}), 507, "out-of-space")


def test_an_upload_takes_the_room_of_the_cache(tmp_path):
    kept = tmp_path / "decompositions" / "ab" / "a.safetensors"
    kept.parent.mkdir(parents=True)
    with kept.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 512 << 20)
    space = DiskSpace(tmp_path, 0, DecompositionCache.shared(tmp_path, limit_bytes=1 << 40))
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
    ],
)
def test_a_client_that_asks_first_is_refused_before_it_sends(service, headers, status):
    answer = service.raw(
        b"PUT /v1/checkpoints/early/model.safetensors HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n%s\r\n"
        % headers,
    )

    assert answer.startswith(b"HTTP/1.1 %s " % status)
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("form", [False, True])
def test_a_bad_header_is_refused_long_before_the_end_of_the_body(service, form):
    sent = 0

    def endless():
        nonlocal sent
        yield (
            b'--x\r\nContent-Disposition: form-data; name="checkpoint"; filename="m.safetensors"\r\n\r\n'
            * form
        )
        yield b"GGUF" + bytes(60_000)
        while sent < 10**9:
            sent += 65_536
            yield bytes(65_536)

    headers = {"Content-Type": "multipart/form-data; boundary=x"} if form else {}
    path = f"/v1/checkpoints/{fresh_id()}" + ("" if form else "/model.safetensors")
    refused = service.http.request("POST" if form else "PUT", path, content=endless(), headers=headers)

    assert_problem(refused, 422, "invalid-checkpoint:other-format")
    assert sent < 10**8


def test_a_client_that_leaves_leaves_nothing(service):
    name = fresh_id()
    nbytes = 50_000_000
    head = big_checkpoint(nbytes)
    request = (
        f"PUT /v1/checkpoints/{name}/model.safetensors HTTP/1.1\r\n"
        f"Host: x\r\nContent-Length: {nbytes + len(head)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(request.encode() + head + bytes(nbytes // 2))
        _until(lambda: service.leftovers() != [])
    _until(lambda: service.leftovers() == [])

    assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404


def test_a_client_that_falls_silent_is_dropped(start):
    service = start(idle_timeout_s=0.2)

    answer = service.raw(
        b"PUT /v1/checkpoints/slow/model.safetensors HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        + MODEL[:50],
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


def test_curl_uploads_a_file_by_the_printed_line(service, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(MODEL)
    name = fresh_id()

    done = subprocess.run(
        ["curl", "-sS", "-T", "model.safetensors", f"127.0.0.1:{service.port}/v1/checkpoints/{name}/"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    assert json.loads(done.stdout)["size_bytes"] == len(MODEL)
    assert service.http.get(f"/v1/checkpoints/{name}").json()["complete"] is True


def _until(holds, limit_s=10):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
