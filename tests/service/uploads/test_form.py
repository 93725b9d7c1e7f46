"""`uploads.form`, `uploads.multipart`: several files or a whole job; all are stored or none."""

import json
import secrets
import struct
import subprocess
from urllib.parse import unquote

import httpx
import pytest

from tests.service.files import checkpoint_bytes, sharded_set
from tests.service.running import SPEC, assert_problem, until

MODEL = checkpoint_bytes()


SPEC_TEXT = json.dumps(SPEC)


def fresh_id():
    return "m" + secrets.token_hex(8)


def part(name, content, *, filename=None, extended=None, extra=""):
    named = f'; filename="{filename}"' if filename is not None else ""
    named += f"; filename*={extended}" if extended is not None else ""
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{named}\r\n{extra}\r\n'
    return head.encode() + content + b"\r\n"


END = b"--xyz--\r\n"


MULTIPART = {"Content-Type": "multipart/form-data; boundary=xyz"}


FILE = part("checkpoint", MODEL, filename="model.safetensors")


SPEC_PART = part("spec", SPEC_TEXT.encode())


def stored_ids(service):
    folder = service.data_dir / "checkpoints"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_several_files_are_stored_under_one_id(service):
    name, files = fresh_id(), sharded_set(3)
    parts = [("checkpoint", (filename, content)) for filename, content in files.items()]

    first = service.http.post(f"/v1/checkpoints/{name}", files=parts)
    again = service.http.post(f"/v1/checkpoints/{name}", files=parts)

    assert first.status_code == 201
    assert again.status_code == 200
    assert first.json() == again.json() == service.http.get(f"/v1/checkpoints/{name}").json()
    assert first.json()["complete"] is True
    assert [file["name"] for file in first.json()["files"]] == sorted(files)


def test_if_one_file_of_a_multipart_body_is_refused_none_is_stored(service):
    name, files = fresh_id(), sharded_set(2)
    parts = [("checkpoint", (filename, content)) for filename, content in files.items()]

    bad = [*parts, ("checkpoint", ("model-00003-of-00002.safetensors", MODEL[:-1]))]
    refused = service.http.post(f"/v1/checkpoints/{name}", files=bad)

    assert refused.status_code == 422
    assert_problem(service.http.get(f"/v1/checkpoints/{name}"), 404, "checkpoint-not-found")
    until(lambda: service.leftovers() == [])
    assert service.http.post(f"/v1/checkpoints/{name}", files=parts).status_code == 201


def test_a_refused_multipart_body_leaves_what_was_stored_before_it(service):
    name, files = fresh_id(), sharded_set(2)
    first, second, index = files
    assert service.put(name, first, files[first]).status_code == 201
    parts = [("checkpoint", (filename, files[filename])) for filename in (first, second)]

    refused = service.http.post(f"/v1/checkpoints/{name}", files=[*parts, ("checkpoint", (index, b"{}"))])

    assert refused.status_code == 422
    document = service.http.get(f"/v1/checkpoints/{name}").json()
    assert [file["name"] for file in document["files"]] == [first]


@pytest.mark.parametrize("order", [FILE + SPEC_PART, SPEC_PART + FILE])
def test_a_multipart_body_makes_a_job_in_any_order_of_its_parts(service, order):
    accepted = service.http.post("/v1/jobs", content=order + END, headers=MULTIPART)

    job = accepted.json()
    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(accepted.headers["retry-after"]) > 0
    assert job["state"] == "queued"
    stored = service.http.get(f"/v1/checkpoints/{job['checkpoint']}").json()
    assert stored["complete"] is True


def test_a_sharded_set_and_its_index_make_a_job(service):
    accepted = service.submit_files(sharded_set(2))

    assert accepted.status_code == 202


def test_the_spec_may_be_a_file(service):
    body = FILE + part("spec", SPEC_TEXT.encode(), filename="spec.json") + END

    assert service.http.post("/v1/jobs", content=body, headers=MULTIPART).status_code == 202


def test_ids_of_jobs_and_of_their_checkpoints_are_long_and_never_the_same(service):
    made = [service.submit_files({"model.safetensors": MODEL}).json() for _ in range(3)]

    ids = {name for job in made for name in (job["id"], job["checkpoint"])}
    assert len(ids) == 6
    assert min(map(len, ids)) >= 32


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (b"", "invalid-multipart"),
        (b"no boundary at all", "invalid-multipart"),
        (END, "invalid-multipart"),
        (FILE + SPEC_PART, "invalid-multipart"),
        (FILE + SPEC_PART[:-10], "invalid-multipart"),
        (FILE[:-100], "invalid-multipart"),
        (FILE + END, "invalid-multipart"),
        (SPEC_PART + END, "invalid-multipart"),
        (SPEC_PART + SPEC_PART + FILE + END, "invalid-multipart"),
        (FILE + SPEC_PART + part("budget", b"1") + END, "invalid-multipart"),
        (part("checkpoint", MODEL) + SPEC_PART + END, "invalid-multipart"),
        (b"--xyz\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END, "invalid-multipart"),
        (b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, "invalid-multipart"),
        (b'--xyz\r\nContent-Disposition: attachment; name="spec"\r\n\r\nx\r\n' + END, "invalid-multipart"),
        (b"--xyz\r\nBad Header\x00: 1\r\n\r\nx\r\n" + END, "invalid-multipart"),
        (b"--xyz\r\n" + b"A: b\r\n" * 100 + b"\r\nx\r\n" + END, "invalid-multipart"),
        (b"--xyz\r\nA: " + b"b" * 10_000 + b"\r\n\r\nx\r\n" + END, "invalid-multipart"),
        (
            part("spec", SPEC_TEXT.encode(), extra="Content-Transfer-Encoding: base64\r\n") + FILE + END,
            "invalid-multipart",
        ),
        (part("checkpoint", MODEL, filename="") + SPEC_PART + END, "invalid-multipart"),
        (
            part("checkpoint", MODEL, extended="UTF-8''%FF.safetensors") + SPEC_PART + END,
            "invalid-multipart",
        ),
        (
            part("checkpoint", MODEL, extended="EBCDIC''model.safetensors") + SPEC_PART + END,
            "invalid-multipart",
        ),
        (part("checkpoint", MODEL, filename="..") + SPEC_PART + END, "invalid-request"),
        (part("checkpoint", MODEL, filename="x.safetensors/") + SPEC_PART + END, "invalid-request"),
        (part("checkpoint", MODEL, filename="model.bin") + SPEC_PART + END, "invalid-request"),
        (part("spec", b"{") + FILE + END, "invalid-json"),
        (FILE + part("spec", b"\xff") + END, "invalid-json"),
        (FILE + part("spec", b"{}") + END, "invalid-spec"),
        (FILE + part("spec", b'{"rank": 4, "calibration": "../x"}') + END, "invalid-spec"),
        (
            part("checkpoint", MODEL[:-1], filename="model.safetensors") + SPEC_PART + END,
            "invalid-checkpoint:truncated",
        ),
        (
            part("checkpoint", b"", filename="model.safetensors") + SPEC_PART + END,
            "invalid-checkpoint:too-short",
        ),
        (
            part("checkpoint", MODEL, filename="m-00001-of-00002.safetensors") + SPEC_PART + END,
            "invalid-checkpoint:missing-files",
        ),
    ],
)
def test_a_multipart_body_that_cannot_be_a_job_is_refused_and_leaves_nothing(service, body, slug):
    before = stored_ids(service)

    refused = service.http.post("/v1/jobs", content=body, headers=MULTIPART)

    assert_problem(refused, 422, slug)
    assert stored_ids(service) == before
    until(lambda: service.leftovers() == [])


@pytest.mark.parametrize(
    ("named", "stored"),
    [
        ({"filename": "my model (1).safetensors"}, "my-model-1.safetensors"),
        ({"filename": "modèle.safetensors"}, "modele.safetensors"),
        ({"filename": "model.SAFETENSORS"}, "model.safetensors"),
        ({"filename": "unet/model.safetensors"}, "model.safetensors"),
        ({"filename": "../../x.safetensors"}, "x.safetensors"),
        ({"filename": "/etc/x.safetensors"}, "x.safetensors"),
        ({"extended": "UTF-8''model.safetensors"}, "model.safetensors"),
        ({"extended": "utf-8'en'mod%C3%A8le%20(1).safetensors"}, "modele-1.safetensors"),
        ({"extended": "ISO-8859-1''mod%E8le.safetensors"}, "modele.safetensors"),
        ({"filename": "a.safetensors", "extended": "UTF-8''b.safetensors"}, "a.safetensors"),
    ],
)
def test_a_file_in_a_form_is_stored_under_a_legal_name_and_the_answer_tells_it(service, named, stored):
    body = part("checkpoint", MODEL, **named)

    job = service.http.post("/v1/jobs", content=body + SPEC_PART + END, headers=MULTIPART).json()
    document = service.http.post(
        f"/v1/checkpoints/{fresh_id()}", content=body + END, headers=MULTIPART
    ).json()
    header = part("header", MODEL[: -4 * 72], **named)
    plan = service.http.post("/v1/plans", content=header + SPEC_PART + END, headers=MULTIPART).json()

    files = service.http.get(f"/v1/checkpoints/{job['checkpoint']}").json()["files"]
    assert [file["name"] for file in files] == [stored]
    assert [file["name"] for file in document["files"]] == [stored]
    told = [warning for warning in job["warnings"] if f" is stored as {stored}." in warning]
    given = named.get("filename") or unquote(named["extended"].rpartition("'")[2], "latin-1")
    assert len(told) == (given != stored)
    assert document["warnings"] == told
    assert [warning for warning in plan["warnings"] if "is stored as" in warning] == told


def test_two_files_in_a_form_never_get_one_name(service):
    body = part("checkpoint", MODEL, filename="a (1).safetensors")
    body += part("checkpoint", MODEL, filename="a [1].safetensors")

    for path, content in ((f"/v1/checkpoints/{fresh_id()}", body), ("/v1/jobs", SPEC_PART + body)):
        refused = service.http.post(path, content=content + END, headers=MULTIPART)
        detail = assert_problem(refused, 422, "invalid-multipart")["detail"]
        assert '"a (1).safetensors" and "a [1].safetensors" would both be stored as a-1.safetensors' in detail
    until(lambda: service.leftovers() == [])


def test_curl_sends_a_file_whatever_its_name(service, tmp_path):
    (tmp_path / "modèle (1).SAFETENSORS").write_bytes(MODEL)
    form = ["-F", "checkpoint=@modèle (1).SAFETENSORS", "-F", f"spec={SPEC_TEXT}"]

    done = subprocess.run(
        ["curl", "-sS", *form, f"127.0.0.1:{service.port}/v1/jobs"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    assert (
        'The file "modèle (1).SAFETENSORS" is stored as modele-1.safetensors.'
        in json.loads(done.stdout)["warnings"]
    )


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "b" * 300,
    ],
)
def test_a_multipart_body_without_a_boundary_is_refused(service, kind):
    for path in ("/v1/jobs", "/v1/checkpoints/bound"):
        refused = service.http.post(path, content=FILE + SPEC_PART + END, headers={"Content-Type": kind})
        assert_problem(refused, 422, "invalid-multipart")


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "text/plain", "", "multipart/mixed; boundary=xyz"]
)
def test_what_is_no_multipart_body_is_refused_by_its_type(service, kind):
    refused = service.http.post("/v1/jobs", content=FILE + SPEC_PART + END, headers={"Content-Type": kind})
    assert_problem(refused, 415, "unsupported-media-type")
    refused = service.http.post("/v1/checkpoints/kind", content=FILE + END, headers={"Content-Type": kind})
    assert_problem(refused, 415, "unsupported-media-type")


def test_a_multipart_body_over_the_limit_is_refused(start):
    service = start(max_upload_bytes=len(MODEL))
    parts = {"checkpoint": ("model.safetensors", MODEL)}

    assert_problem(service.http.post("/v1/checkpoints/big", files=parts), 413, "too-large")
    until(lambda: service.leftovers() == [])
    assert stored_ids(service) == set()


def test_a_spec_over_its_limit_is_refused(start):
    service = start(max_spec_bytes=100)
    body = FILE + part("spec", SPEC_TEXT.encode() + b" " * 100) + END

    assert_problem(service.http.post("/v1/jobs", content=body, headers=MULTIPART), 413, "too-large")
    assert stored_ids(service) == set()


def test_a_multipart_body_of_too_many_parts_is_refused(start):
    service = start(max_files=2)
    files = [("checkpoint", (f"m{i}.safetensors", checkpoint_bytes(fill=i))) for i in range(3)]

    assert_problem(service.http.post("/v1/checkpoints/many", files=files), 422, "invalid-multipart")
    assert stored_ids(service) == set()


def test_a_boundary_inside_the_data_is_data_unless_it_stands_alone(service):
    content = checkpoint_bytes({"a.weight": (64, 64)})
    decoy = b"\r\n--xy\r\n--xyq\r\n-\r\n--x"
    content = content[: -len(decoy)] + decoy
    body = part("checkpoint", content, filename="model.safetensors") + END

    assert (
        service.http.post(f"/v1/checkpoints/{fresh_id()}", content=body, headers=MULTIPART).status_code == 201
    )


def test_a_multipart_body_that_trickles_in_byte_by_byte_is_read_as_well(service):
    body = FILE + SPEC_PART + END
    pieces = (body[i : i + 1] for i in range(len(body)))

    assert service.http.post("/v1/jobs", content=pieces, headers=MULTIPART).status_code == 202


def test_the_printed_curl_line_makes_a_job(service, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(MODEL)

    done = subprocess.run(
        [
            "curl",
            "-sS",
            "-F",
            "checkpoint=@model.safetensors",
            "-F",
            'spec={"method":"svd","rank":{"ratio":0.5}}',
            f"127.0.0.1:{service.port}/v1/jobs",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    job = json.loads(done.stdout)
    assert job["state"] == "queued"
    assert job["spec"]["rank"] == {"ratio": 0.5}


def test_a_refused_multipart_body_takes_nothing_from_another_client(service):
    """What somebody was told is stored stays, though a body that brought the same bytes is refused."""
    name = fresh_id()
    told = []

    def slowly():
        yield FILE + b"--xyz\r\n"
        until(lambda: service.leftovers() != [])
        assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404
        told.append(service.put(name, "model.safetensors", MODEL))
        told.append(service.submit(name))
        yield part("checkpoint", MODEL[:-1], filename="other.safetensors").removeprefix(b"--xyz\r\n") + END

    refused = httpx.post(f"{service.url}/v1/checkpoints/{name}", content=slowly(), headers=MULTIPART)

    assert_problem(refused, 422, "invalid-checkpoint:truncated")
    assert [answer.status_code for answer in told] == [201, 202]
    assert service.http.get(f"/v1/checkpoints/{name}").json()["complete"] is True
    until(lambda: service.leftovers() == [])


def test_the_files_of_a_multipart_body_appear_together(service):
    name, files = fresh_id(), sharded_set(2)
    first, *others = files

    def slowly():
        yield part("checkpoint", files[first], filename=first) + b"--xyz\r\n"
        until(lambda: service.leftovers() != [])
        assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404
        rest = b"".join(part("checkpoint", files[other], filename=other) for other in others)
        yield rest.removeprefix(b"--xyz\r\n") + END

    stored = httpx.post(f"{service.url}/v1/checkpoints/{name}", content=slowly(), headers=MULTIPART)

    assert stored.status_code == 201
    assert stored.json()["complete"] is True
    until(lambda: service.leftovers() == [])


STRAY = {"stray.safetensors": checkpoint_bytes({"stray.weight": (2, 2)})}


SHARDS = sharded_set(2)


FIRST, SECOND, INDEX = SHARDS


OTHER = {FIRST: checkpoint_bytes({"layer.9.weight": (8, 8)})}


WRONG = {SECOND: checkpoint_bytes({"layer.0.weight": (8, 8)})}


@pytest.mark.parametrize(
    ("before", "sent", "status", "slug"),
    [
        ({}, {**STRAY, **SHARDS}, 422, "invalid-checkpoint:shard-extra"),
        ({}, {**SHARDS, **WRONG}, 422, "invalid-checkpoint:tensor-in-two-shards"),
        ({}, {**SHARDS, **OTHER}, 422, "invalid-checkpoint:tensor-missing"),
        (
            {},
            {**SHARDS, "b.safetensors.index.json": SHARDS[INDEX]},
            422,
            "invalid-checkpoint:second-index",
        ),
        (
            {INDEX: SHARDS[INDEX]},
            {FIRST: SHARDS[FIRST], "b.safetensors.index.json": SHARDS[INDEX]},
            422,
            "invalid-checkpoint:second-index",
        ),
        ({INDEX: SHARDS[INDEX]}, {FIRST: SHARDS[FIRST], **STRAY}, 422, "invalid-checkpoint:shard-extra"),
        (
            {INDEX: SHARDS[INDEX], FIRST: SHARDS[FIRST]},
            WRONG,
            422,
            "invalid-checkpoint:tensor-in-two-shards",
        ),
        (STRAY, {FIRST: SHARDS[FIRST], INDEX: SHARDS[INDEX]}, 422, "invalid-checkpoint:shard-extra"),
        ({SECOND: SHARDS[SECOND]}, {FIRST: SHARDS[FIRST], **WRONG}, 409, "content-conflict"),
    ],
)
def test_a_multipart_body_whose_files_do_not_fit_stores_none_of_them(service, before, sent, status, slug):
    name = fresh_id()
    for filename, content in before.items():
        assert service.put(name, filename, content).status_code == 201

    parts = [("checkpoint", (filename, content)) for filename, content in sent.items()]
    refused = service.http.post(f"/v1/checkpoints/{name}", files=parts)

    assert_problem(refused, status, slug)
    if before:
        document = service.http.get(f"/v1/checkpoints/{name}").json()
        assert [file["name"] for file in document["files"]] == sorted(before)
    else:
        assert_problem(service.http.get(f"/v1/checkpoints/{name}"), 404, "checkpoint-not-found")
    until(lambda: service.leftovers() == [])


def test_a_multipart_body_may_bring_the_rest_of_a_set(service):
    name = fresh_id()
    assert service.put(name, INDEX, SHARDS[INDEX]).status_code == 201
    assert service.put(name, SECOND, SHARDS[SECOND]).status_code == 201

    parts = [("checkpoint", (filename, content)) for filename, content in SHARDS.items()]
    stored = service.http.post(f"/v1/checkpoints/{name}", files=parts)

    assert stored.status_code == 201
    assert stored.json()["complete"] is True


def test_a_file_that_comes_twice_in_a_multipart_body_is_refused(service):
    refused = service.http.post(f"/v1/checkpoints/{fresh_id()}", content=FILE + FILE + END, headers=MULTIPART)

    assert "twice" in assert_problem(refused, 422, "invalid-multipart")["detail"]


def tiny_tensors(count):
    """Make a legal file of so many tensors without data."""
    entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % number for number in range(count)) + "}").encode()
    return struct.pack("<Q", len(header)) + header


def test_files_that_have_too_many_tensors_together_are_refused_while_they_arrive(service, monkeypatch):
    """Neither in one request nor in several; what is stored counts with what is sent."""
    monkeypatch.setattr("state.checkpoints.parsed_header.MAX_TENSORS", 100)
    half, rest = tiny_tensors(60), tiny_tensors(41)
    files = [("checkpoint", ("a.safetensors", half)), ("checkpoint", ("b.safetensors", rest))]
    files.append(("checkpoint", ("c.safetensors", b"never looked at")))
    name, fault = "u" + secrets.token_hex(8), "invalid-checkpoint:too-many-tensors"

    refused = service.http.post(f"/v1/checkpoints/{name}", files=files)
    assert "101 tensors together" in assert_problem(refused, 422, fault)["detail"]
    assert service.put(name, "a.safetensors", half).status_code == 201
    assert_problem(service.put(name, "b.safetensors", rest), 422, fault)
    assert_problem(service.http.post(f"/v1/checkpoints/{name}", files=files[1:2]), 422, fault)
    assert service.leftovers() == []
