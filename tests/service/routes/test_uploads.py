"""`service.routes.uploads`: tus 1.0.0 by hand and with its own client, broken lines, and a killed API."""

import base64
import fcntl
import hashlib
import io
import secrets
import socket
import threading
import time

import httpx
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from state.data_dir import DataDir
from tests.service.files import MODEL, big_checkpoint, checkpoint_bytes
from tests.service.process import ApiProcess
from tests.service.running import assert_problem, until

TYPE = "application/offset+octet-stream"
MIB = 1 << 20
HEADER_BYTES = 8 + int.from_bytes(MODEL[:8], "little")


def big_model(nbytes):
    """Make a file whose bytes differ everywhere."""
    return big_checkpoint(nbytes) + secrets.token_bytes(nbytes)


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def metadata(checkpoint, filename="model.safetensors", **more):
    pairs = {"checkpoint": checkpoint, "filename": filename, **more}
    return ",".join(f"{key} {encoded(value)}" for key, value in pairs.items())


def fresh_id():
    return "r" + secrets.token_hex(8)


def begin(service, content, checkpoint=None, filename="model.safetensors", body=None, more=None, **headers):
    """Begin an upload of these bytes."""
    given = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(content)),
        "Upload-Metadata": metadata(checkpoint or fresh_id(), filename, **(more or {})),
        **({} if body is None else {"Content-Type": TYPE}),
    }
    return service.http.post("/v1/uploads", headers={**given, **headers}, content=body or b"")


def append(service, location, offset, body, **headers):
    given = {"Tus-Resumable": "1.0.0", "Upload-Offset": str(offset), "Content-Type": TYPE}
    return service.http.patch(location, headers={**given, **headers}, content=body)


def offset_of(service, location):
    answer = service.http.head(location)
    assert answer.status_code == 200
    return int(answer.headers["Upload-Offset"])


def checksum(algorithm, content):
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def stored_files(service, checkpoint):
    answer = service.http.get(f"/v1/checkpoints/{checkpoint}")
    if answer.status_code == 404:
        return {}
    return {file["name"]: file["sha256"] for file in answer.json()["files"]}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def assert_stored(service, checkpoint, content, filename="model.safetensors"):
    assert stored_files(service, checkpoint) == {filename: sha256(content)}
    path = DataDir(service.data_dir).checkpoint(checkpoint) / filename
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o444


def upload_folders(service):
    return sorted(DataDir(service.data_dir).uploads.glob("*"))


# By hand.


def test_a_file_is_stored_with_its_last_byte_and_its_digest_is_told(service):
    checkpoint = fresh_id()
    created = begin(service, MODEL, checkpoint)
    location = created.headers["Location"]
    assert created.status_code == 201
    assert created.headers["Upload-Offset"] == "0"

    first = append(service, location, 0, MODEL[:-1])
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, str(len(MODEL) - 1))
    assert stored_files(service, checkpoint) == {}
    last = append(service, location, len(MODEL) - 1, MODEL[-1:])

    assert (last.status_code, last.headers["Upload-Offset"]) == (204, str(len(MODEL)))
    put = service.put(checkpoint, "model.safetensors", MODEL)
    assert put.status_code == 200
    for answer in (last, service.http.head(location)):
        assert answer.headers["ETag"] == put.headers["ETag"]
        assert answer.headers["Repr-Digest"] == put.headers["Repr-Digest"]
    assert_stored(service, checkpoint, MODEL)


@pytest.mark.parametrize("at_once", [1, 7, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1])
def test_a_file_may_come_in_pieces_of_any_size(service, at_once):
    content = MODEL[: HEADER_BYTES + 30] if at_once < 8 else MODEL
    content = MODEL if at_once > 8 else checkpoint_bytes({"a": (1,)})
    checkpoint = fresh_id()
    location = begin(service, content, checkpoint).headers["Location"]

    for at in range(0, len(content), at_once):
        piece = content[at : at + at_once]
        kind = {"Upload-Checksum": checksum("sha256", piece)} if at // at_once % 3 == 1 else {}
        assert append(service, location, at, piece, **kind).status_code == 204

    assert_stored(service, checkpoint, content)


def test_the_offset_tells_how_far_an_upload_is(service):
    created = begin(service, MODEL, "far", more={"note": "mine"})
    location = created.headers["Location"]
    append(service, location, 0, MODEL[:100])
    told = service.http.head(location)

    assert told.status_code == 200
    assert told.headers["Upload-Offset"] == "100"
    assert told.headers["Upload-Length"] == str(len(MODEL))
    assert told.headers["Upload-Metadata"] == metadata("far", note="mine")
    assert told.headers["Cache-Control"] == "no-store"
    assert told.headers["Upload-Expires"].endswith("GMT")
    assert "ETag" not in told.headers


def test_creation_may_carry_the_first_bytes_or_all(service):
    part, whole = fresh_id(), fresh_id()
    some = begin(service, MODEL, part, body=MODEL[:100])
    every = begin(service, MODEL, whole, body=MODEL, **{"Upload-Checksum": checksum("sha1", MODEL)})

    assert (some.status_code, some.headers["Upload-Offset"]) == (201, "100")
    assert every.headers["Upload-Offset"] == str(len(MODEL))
    assert every.headers["Repr-Digest"]
    assert_stored(service, whole, MODEL)
    assert append(service, some.headers["Location"], 100, MODEL[100:]).status_code == 204
    assert_stored(service, part, MODEL)


def test_a_companion_without_bytes_is_stored_at_once(service):
    checkpoint = fresh_id()
    created = begin(service, b"", checkpoint, "merges.txt")

    assert (created.status_code, created.headers["Upload-Offset"]) == (201, "0")
    assert_stored(service, checkpoint, b"", "merges.txt")


def test_options_name_what_the_service_can_do(service):
    answer = service.http.options("/v1/uploads")

    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Checksum-Algorithm"] == "sha256,sha1"
    assert answer.headers["Tus-Max-Size"] == str(100 << 30)
    extensions = set(answer.headers["Tus-Extension"].split(","))
    assert extensions == {"creation", "creation-with-upload", "checksum", "termination", "expiration"}


def test_every_answer_names_the_version(service, start):
    location = begin(service, MODEL).headers["Location"]
    with_keys = start(api_keys="alice:of-alice")
    answers = [
        service.http.options("/v1/uploads"),
        begin(service, MODEL),
        begin(service, MODEL, **{"Upload-Length": "x"}),
        service.http.head(location),
        service.http.head("/v1/uploads/none"),
        service.http.put("/v1/uploads"),
        append(service, location, 5, b""),
        service.http.delete(location),
        with_keys.http.post("/v1/uploads"),
    ]
    assert {answer.headers["Tus-Resumable"] for answer in answers} == {"1.0.0"}
    assert "Tus-Resumable" not in service.http.get("/livez").headers


def test_the_method_may_stand_in_a_header(service):
    location = begin(service, MODEL).headers["Location"]
    override = "X-HTTP-Method-Override"
    headers = {"Upload-Offset": "0", "Content-Type": TYPE, override: "PATCH"}

    assert service.http.post(location, headers=headers, content=MODEL[:9]).status_code == 204
    assert service.http.post(location, headers={override: "HEAD"}).headers["Upload-Offset"] == "9"
    assert service.http.post(location, headers={override: "DELETE"}).status_code == 204
    assert_problem(service.http.post(location), 405, "method-not-allowed")
    assert service.http.head(location).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status", "slug"),
    [
        ({"Tus-Resumable": "0.2.2"}, 412, "tus-version"),
        ({"Upload-Length": "-1"}, 422, "invalid-request"),
        ({"Upload-Length": "1e3"}, 422, "invalid-request"),
        ({"Upload-Length": "1_0"}, 422, "invalid-request"),
        ({"Upload-Length": "+5"}, 422, "invalid-request"),
        ({"Upload-Length": "5.0"}, 422, "invalid-request"),
        ({"Upload-Length": str(1 << 50)}, 413, "too-large"),
        ({"Upload-Metadata": ""}, 422, "invalid-request"),
        ({"Upload-Metadata": "checkpoint bQ=="}, 422, "invalid-request"),
        ({"Upload-Metadata": "filename bQ=="}, 422, "invalid-request"),
        ({"Upload-Metadata": "checkpoint,filename"}, 422, "invalid-request"),
        ({"Upload-Metadata": "checkpoint *,filename bQ=="}, 422, "invalid-request"),
        ({"Upload-Metadata": "checkpoint /w==,filename bQ=="}, 422, "invalid-request"),
        ({"Upload-Metadata": metadata("../x")}, 422, "invalid-checkpoint:bad-name"),
        ({"Upload-Metadata": metadata("x", "../model.safetensors")}, 422, "invalid-request"),
        ({"Upload-Metadata": metadata("x", "model.bin")}, 422, "invalid-request"),
        ({"Upload-Metadata": metadata("x", "report.json")}, 422, "invalid-request"),
        ({"Upload-Metadata": metadata("x", sha256="00")}, 422, "invalid-request"),
        ({"Upload-Metadata": metadata("x") + "," + "k," * 5000}, 422, "invalid-request"),
        ({"Upload-Metadata": metadata("x", "config.json"), "Upload-Length": str(9 << 20)}, 413, "too-large"),
        ({"Upload-Checksum": "crc32 AAAA"}, 400, "unsupported-checksum"),
        ({"Upload-Checksum": "sha256 AAAA"}, 422, "invalid-request"),
        ({"Upload-Checksum": "sha1 *"}, 422, "invalid-request"),
    ],
)
def test_a_bad_beginning_is_refused_and_leaves_nothing(service, headers, status, slug):
    before = upload_folders(service)
    refused = begin(service, MODEL, **headers)

    assert_problem(refused, status, slug)
    assert refused.headers.get("Tus-Version") == ("1.0.0" if status == 412 else None)
    assert upload_folders(service) == before


def test_a_length_that_is_to_follow_is_refused(service):
    answer = service.http.post(
        "/v1/uploads", headers={"Upload-Defer-Length": "1", "Upload-Metadata": metadata("x")}
    )
    assert_problem(answer, 422, "invalid-request")


@pytest.mark.parametrize(
    ("headers", "body", "status", "slug"),
    [
        ({"Tus-Resumable": "2.0.0"}, b"x", 412, "tus-version"),
        ({"Upload-Offset": "9"}, b"x", 409, "offset-mismatch"),
        ({"Upload-Offset": "11"}, b"x", 409, "offset-mismatch"),
        ({"Upload-Offset": "ten"}, b"x", 422, "invalid-request"),
        ({"Content-Type": "application/octet-stream"}, b"x", 415, "unsupported-media-type"),
        ({"Content-Encoding": "gzip"}, b"x", 415, "encoded-body"),
        ({}, MODEL, 413, "too-large"),
        ({}, [MODEL], 413, "too-large"),
        ({"Upload-Checksum": "md5 AAAA"}, b"x", 400, "unsupported-checksum"),
        ({"Upload-Checksum": checksum("sha256", b"y")}, b"x", 460, "checksum-mismatch"),
        ({"Upload-Checksum": checksum("sha1", b"y")}, b"x", 460, "checksum-mismatch"),
    ],
)
def test_bytes_that_do_not_fit_are_refused_and_change_nothing(service, headers, body, status, slug):
    checkpoint = fresh_id()
    location = begin(service, MODEL, checkpoint, body=MODEL[:10]).headers["Location"]
    body = iter(body) if isinstance(body, list) else body

    assert_problem(append(service, location, 10, body, **headers), status, slug)
    assert offset_of(service, location) == 10
    assert append(service, location, 10, MODEL[10:]).status_code == 204
    assert_stored(service, checkpoint, MODEL)


@pytest.mark.parametrize("name", ["U" + "0" * 32, "U0", "..", "%00", "*", "u" * 300])
@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
def test_an_unknown_upload_is_not_found(service, name, method):
    answer = service.raw(
        f"{method} /v1/uploads/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Upload-Offset: 0\r\nContent-Type: {TYPE}\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_malformed_header_ends_an_upload_as_soon_as_it_is_in(service):
    before = upload_folders(service)
    created = begin(service, bytes(10**9), body=b"GGUF" + bytes(5000))
    assert_problem(created, 422, "invalid-checkpoint:other-format")
    location = begin(service, bytes(10**9)).headers["Location"]
    assert append(service, location, 0, b"GG").status_code == 204
    checked = {"Upload-Checksum": checksum("sha256", b"UF" + bytes(5000))}
    refused = append(service, location, 2, b"UF" + bytes(5000), **checked)

    assert_problem(refused, 422, "invalid-checkpoint:other-format")
    assert service.http.head(location).status_code == 404
    assert upload_folders(service) == before


def test_a_header_that_names_other_bytes_than_were_announced_is_refused(service):
    for length, fault in ((len(MODEL) - 1, "past-end"), (len(MODEL) + 1, "trailing-data")):
        refused = begin(service, bytes(length), body=MODEL[:-1])
        assert_problem(refused, 422, f"invalid-checkpoint:{fault}")


def test_a_config_that_is_none_is_refused_with_its_last_byte(service):
    checkpoint = fresh_id()
    location = begin(service, b"[1]", checkpoint, "config.json", body=b"[1").headers["Location"]

    assert_problem(append(service, location, 2, b"]"), 422, "invalid-checkpoint:bad-config")
    assert stored_files(service, checkpoint) == {}


def test_a_file_with_another_digest_than_promised_is_refused(service):
    checkpoint = fresh_id()
    created = begin(service, MODEL, checkpoint, body=MODEL, more={"sha256": sha256(b"other")})

    assert_problem(created, 422, "digest-mismatch")
    assert stored_files(service, checkpoint) == {}
    good = begin(service, MODEL, checkpoint, body=MODEL, more={"sha256": sha256(MODEL)})
    assert good.status_code == 201


def test_a_stored_file_never_changes(service):
    checkpoint = service.stored(MODEL)
    other = checkpoint_bytes(fill=2)

    assert_problem(begin(service, other[:-1], checkpoint), 409, "content-conflict")
    known = {"sha256": sha256(other)}
    assert_problem(begin(service, other, checkpoint, more=known), 409, "content-conflict")
    assert_problem(begin(service, other, checkpoint, body=other), 409, "content-conflict")
    assert begin(service, MODEL, checkpoint, body=MODEL).status_code == 201
    assert_stored(service, checkpoint, MODEL)


def test_an_upload_that_is_ended_is_gone_but_not_a_file_that_is_stored(service):
    checkpoint = fresh_id()
    begun = begin(service, MODEL, body=MODEL[:100]).headers["Location"]
    done = begin(service, MODEL, checkpoint, body=MODEL).headers["Location"]
    for location in (begun, done):
        assert service.http.delete(location).status_code == 204
        assert_problem(service.http.delete(location), 404, "upload-not-found")
        assert_problem(append(service, location, 0, b"x"), 404, "upload-not-found")

    assert_stored(service, checkpoint, MODEL)


def half_sent(service, location, offset, body, announced):
    """Send the head of a request and some of its bytes, and leave the connection open."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    connection.sendall(
        f"PATCH {location} HTTP/1.1\r\nHost: localhost\r\nUpload-Offset: {offset}\r\n"
        f"Content-Type: {TYPE}\r\nContent-Length: {announced}\r\n\r\n".encode()
        + body
    )
    return connection


def test_what_has_arrived_on_a_broken_line_need_not_be_sent_again(service):
    content, checkpoint = big_model(6 * MIB), fresh_id()
    location = begin(service, content, checkpoint).headers["Location"]
    with half_sent(service, location, 0, content[: 4 * MIB], len(content)):
        until(lambda: service.http.head(location).headers["Upload-Offset"] != "0", 10)
    until(lambda: offset_of(service, location) == 4 * MIB, 10)

    assert append(service, location, 4 * MIB, content[4 * MIB :]).status_code == 204
    assert_stored(service, checkpoint, content)


def is_locked(path):
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_two_requests_never_write_one_upload(service):
    checkpoint = fresh_id()
    location = begin(service, MODEL, checkpoint).headers["Location"]
    lock = upload_folders(service)[-1].with_name(location.rpartition("/")[2]) / "lock"
    with half_sent(service, location, 0, MODEL[:50], len(MODEL)) as first:
        until(lambda: lock.exists() and is_locked(lock))
        assert_problem(service.http.delete(location), 423, "upload-locked")
        refused = append(service, location, 0, MODEL)
        assert_problem(refused, 423, "upload-locked")
        assert refused.headers["Retry-After"] == "2"
        assert service.http.head(location).status_code == 200
        first.sendall(MODEL[50:])
        assert first.recv(65_536).startswith(b"HTTP/1.1 204 ")
    assert_stored(service, checkpoint, MODEL)


def test_a_client_that_falls_silent_is_dropped_and_goes_on(start):
    service = start(idle_timeout_s=0.2)
    location = begin(service, MODEL).headers["Location"]
    with half_sent(service, location, 0, MODEL[:50], len(MODEL)) as slow:
        assert slow.recv(65_536).startswith(b"HTTP/1.1 408 ")

    assert offset_of(service, location) == 50


def test_an_upload_that_nobody_goes_on_with_expires_with_its_space(start):
    service = start(upload_expiry_hours=0.3 / 3600, reaper_s=0.05)
    checkpoint = fresh_id()
    begun = begin(service, MODEL, body=MODEL[:-1]).headers["Location"]
    done = begin(service, MODEL, checkpoint, body=MODEL).headers["Location"]
    until(lambda: service.http.head(begun).status_code == 404)
    until(lambda: service.http.head(done).status_code == 404)
    until(lambda: upload_folders(service) == [])

    assert_problem(append(service, begun, len(MODEL) - 1, MODEL[-1:]), 404, "upload-not-found")
    assert_stored(service, checkpoint, MODEL)


def test_an_owner_has_no_more_uploads_unfinished_than_allowed(start):
    service = start(owner_uploads=2, api_keys="alice:a,bob:b")
    alice, bob = ({"X-API-Key": key} for key in "ab")
    first = begin(service, MODEL, **alice).headers["Location"]
    assert begin(service, MODEL, **alice).status_code == 201
    assert_problem(begin(service, MODEL, **alice), 429, "over-quota")
    assert begin(service, MODEL, **bob).status_code == 201
    assert append(service, first, 0, MODEL, **alice).status_code == 204
    assert begin(service, MODEL, **alice).status_code == 201


def test_what_has_arrived_counts_as_stored(start, monkeypatch):
    monkeypatch.setattr("service.access.quotas.SUM_FOR_S", 0.0)
    service = start(owner_bytes=2 * len(MODEL))
    location = begin(service, MODEL, body=MODEL[:-1]).headers["Location"]
    assert begin(service, MODEL, "second", body=MODEL).status_code == 201
    assert_problem(begin(service, MODEL), 429, "over-quota")
    assert_problem(append(service, location, len(MODEL) - 1, iter([b"\1\1"])), 413, "too-large")
    assert append(service, location, len(MODEL) - 1, MODEL[-1:]).status_code == 204


def test_a_full_disk_takes_no_upload(start):
    service = start(min_free_bytes=2**60)
    assert_problem(begin(service, MODEL), 507, "out-of-space")
    assert upload_folders(service) == []


# With the client of tus.


def uploader(service, content, checkpoint, **options):
    fields = {"checkpoint": checkpoint, "filename": "model.safetensors"}
    client = TusClient(f"{service.url}/v1/uploads")
    return client.uploader(file_stream=io.BytesIO(content), metadata=fields, **options)


@pytest.fixture(scope="module")
def model():
    return big_model(3 * MIB)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 400_000}, {"upload_checksum": True}], ids=str)
def test_the_client_of_tus_stores_a_file(service, model, options):
    checkpoint = fresh_id()
    uploader(service, model, checkpoint, **options).upload()
    assert_stored(service, checkpoint, model)


def test_the_client_of_tus_goes_on_where_it_stopped(service, model):
    checkpoint = fresh_id()
    first = uploader(service, model, checkpoint, chunk_size=MIB, upload_checksum=True)
    first.upload_chunk()
    second = uploader(service, model, checkpoint, chunk_size=MIB, url=first.url)

    assert second.offset == MIB
    second.upload()
    assert_stored(service, checkpoint, model)


def test_two_clients_of_tus_store_two_files(service, model):
    names = [fresh_id(), fresh_id()]
    threads = [
        threading.Thread(target=uploader(service, model, name, chunk_size=300_000).upload) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert_stored(service, name, model)


def test_the_client_of_tus_hears_of_a_refusal(service):
    with pytest.raises(TusCommunicationError):
        uploader(service, b"GGUF" + bytes(1000), fresh_id()).upload()


# With an API that is killed.


@pytest.fixture
def api(tmp_path, redis_server):
    with (
        ApiProcess(tmp_path / "data", redis_server.url) as running,
        httpx.Client(base_url=running.url) as running.http,
    ):
        running.data_dir = tmp_path / "data"
        yield running


def test_an_upload_outlives_an_api_that_is_killed_while_it_receives(api, model):
    """Starting a process takes seconds; tests/state/uploads/test_append.py kills it at every step."""
    first = uploader(api, model, "m", chunk_size=MIB)
    first.upload_chunk()
    with half_sent(api, first.url, MIB, model[MIB : 2 * MIB], 2 * MIB) as line:
        sent = 2 * MIB
        while offset_of(api, first.url) == MIB:
            line.sendall(model[sent : sent + 1000])
            sent += 1000
            time.sleep(0.05)
        kept = offset_of(api, first.url)
        api.restart()

    assert stored_files(api, "m") == {}
    assert MIB < kept <= offset_of(api, first.url) <= sent
    uploader(api, model, "m", chunk_size=MIB, url=first.url).upload()
    assert_stored(api, "m", model)


@pytest.mark.parametrize("method", ["POST", "PATCH", "HEAD"])
@pytest.mark.parametrize("name", ["Upload-Length", "Upload-Offset", "Upload-Metadata", "Tus-Resumable"])
@pytest.mark.parametrize("values", [("0", "0"), ("0", "5")], ids=["same", "other"])
def test_a_header_that_comes_twice_is_refused(service, method, name, values):
    path = "/v1/uploads" if method == "POST" else "/v1/uploads/U0"
    given = [("Content-Type", TYPE), *((name, value) for value in values)]
    refused = service.http.request(method, path, headers=given)
    assert refused.status_code == 400
    assert refused.headers["tus-resumable"] == "1.0.0"
    if method != "HEAD":
        (found,) = assert_problem(refused, 400, "invalid-http")["errors"]
        assert found["pointer"] == f"/header/{name.lower()}"
