"""`service.routes.checkpoints`: files are stored once, shown, and deleted unless a job needs them."""

import base64
import hashlib
import json
import secrets
import subprocess

import pytest

from tests.service.files import checkpoint_bytes, sharded_set
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


DIGEST_FIELDS = {
    "Repr-Digest": repr_digest,
    "Content-Digest": repr_digest,
    "Digest": lambda content: "SHA-256=" + repr_digest(content)[9:-1],
}


@pytest.mark.parametrize("field", DIGEST_FIELDS)
def test_a_matching_digest_is_accepted_and_another_is_refused(service, field):
    name, write = fresh_id(), DIGEST_FIELDS[field]

    wrong = service.put(name, "model.safetensors", MODEL, **{field: write(b"else")})
    assert hashlib.sha256(MODEL).hexdigest() in assert_problem(wrong, 422, "digest-mismatch")["detail"]
    assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404
    right = service.put(name, "model.safetensors", MODEL, **{field: write(MODEL)})

    assert right.status_code == 201


@pytest.mark.parametrize("field", DIGEST_FIELDS)
def test_a_malformed_digest_is_refused_by_the_name_of_its_field(service, field):
    refused = service.put(fresh_id(), "model.safetensors", MODEL, **{field: "sha-256=abc"})

    assert f"{field} must look like" in assert_problem(refused, 422, "invalid-request")["detail"]


def test_digests_that_contradict_each_other_are_refused(service):
    headers = {"Repr-Digest": repr_digest(MODEL), "Content-Digest": repr_digest(b"else")}

    refused = service.put(fresh_id(), "model.safetensors", MODEL, **headers)

    assert "different digests" in assert_problem(refused, 422, "invalid-request")["detail"]


ETAG = f'"{hashlib.sha256(MODEL).hexdigest()}"'


@pytest.mark.parametrize(
    ("headers", "new", "same"),
    [
        ({}, 201, 200),
        ({"If-Match": '"nothing"'}, 412, 412),
        ({"If-Match": "*"}, 412, 200),
        ({"If-Match": ETAG}, 412, 200),
        ({"If-Match": f'"else", {ETAG}'}, 412, 200),
        ({"If-Match": f"W/{ETAG}"}, 412, 412),
        ({"If-None-Match": "*"}, 201, 412),
        ({"If-None-Match": ETAG}, 201, 412),
        ({"If-None-Match": f"W/{ETAG}"}, 201, 412),
        ({"If-None-Match": '"else"'}, 201, 200),
        ({"If-Match": ETAG, "If-None-Match": "*"}, 412, 412),
    ],
)
def test_a_file_is_stored_only_if_the_precondition_holds(service, headers, new, same):
    """RFC 9110, 13.1: for a new file, and for one that is stored with the same bytes."""
    fresh, stored = fresh_id(), service.stored(MODEL)

    answers = [service.put(name, "model.safetensors", MODEL, **headers) for name in (fresh, stored)]

    assert [answer.status_code for answer in answers] == [new, same]
    for answer in answers:
        if answer.status_code == 412:
            assert_problem(answer, 412, "precondition-failed")
    assert answers[1].headers["etag"] == ETAG
    assert service.http.get(f"/v1/checkpoints/{fresh}").status_code == (200 if new == 201 else 404)


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


def test_a_checkpoint_lists_its_files_and_tensors(service):
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
        "warnings": [],
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
        "next_cursor": None,
    }


def test_tensors_come_in_pages(service):
    names = [f"layer.{i}.weight" for i in range(25)]
    here = f"/v1/checkpoints/{service.stored(checkpoint_bytes(dict.fromkeys(names, (2, 2))))}"
    whole = service.http.get(here).json()

    pages = [service.http.get(here, params={"limit": 10}).json()]
    while pages[-1]["next_cursor"]:
        pages.append(service.http.get(here, params={"limit": 10, "cursor": pages[-1]["next_cursor"]}).json())

    assert [len(page["tensors"]) for page in pages] == [10, 10, 5]
    assert [tensor["name"] for page in pages for tensor in page["tensors"]] == names
    assert [tensor for page in pages for tensor in page["tensors"]] == whole["tensors"]
    assert {page["parameters"] for page in pages} == {100}
    assert service.http.get(here, params={"cursor": "25"}).json()["tensors"] == []


def test_a_checkpoint_of_many_tensors_has_a_bounded_first_page(service):
    content = checkpoint_bytes({f"experts.{i}.weight": (2, 2) for i in range(3000)})
    here = f"/v1/checkpoints/{service.stored(content)}"

    document = service.http.get(here).json()
    last = service.http.get(here, params={"cursor": "2999"}).json()

    assert len(document["tensors"]) == 1000
    assert document["next_cursor"] == "1000"
    assert document["parameters"] == 12_000
    assert [tensor["name"] for tensor in last["tensors"]] == ["experts.2999.weight"]
    assert last["next_cursor"] is None


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"limit": 0}, "/query/limit"),
        ({"limit": 10_001}, "/query/limit"),
        ({"cursor": "-1"}, "/query/cursor"),
        ({"cursor": "x"}, "/query/cursor"),
        ({"cursor": "9" * 20}, "/query/cursor"),
    ],
)
def test_a_page_that_cannot_be_is_refused(service, stored, params, pointer):
    refused = service.http.get(f"/v1/checkpoints/{stored}", params=params)

    assert assert_problem(refused, 422, "invalid-request")["errors"][0]["pointer"] == pointer


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
        b"Host: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % name.encode()
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


@pytest.mark.parametrize(
    ("filename", "proposed"),
    [
        ("my%20model%20(1).safetensors", " as my-model-1.safetensors,"),
        ("mod%C3%A8le.safetensors", " as modele.safetensors,"),
        ("model.SAFETENSORS", " as model.safetensors,"),
        ("model.bin", None),
    ],
)
def test_an_illegal_name_in_an_address_is_refused_with_a_legal_one(service, filename, proposed):
    detail = assert_problem(service.put(fresh_id(), filename, MODEL), 422, "invalid-request")["detail"]

    assert proposed in detail if proposed else "Send this file as" not in detail


def tus(service, checkpoint_id):
    pairs = {"checkpoint": checkpoint_id, "filename": "config.json"}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())
    return service.http.post("/v1/uploads", headers={"Upload-Length": "0", "Upload-Metadata": metadata})


def form(service, checkpoint_id):
    files = [("checkpoint", ("config.json", b"{}"))]
    return service.http.post(f"/v1/checkpoints/{checkpoint_id}", files=files)


@pytest.mark.parametrize("send", [lambda service, name: service.put(name, "config.json", b"{}"), form, tus])
def test_an_id_of_the_kind_that_the_service_gives_is_refused(service, send):
    """Such a checkpoint would be removed after a day, as one whose job was never created."""
    one_shot = service.submit_files({"model.safetensors": MODEL}).json()["checkpoint"]
    for name in (one_shot, "C" + secrets.token_hex(16)):
        refused = assert_problem(send(service, name), 422, "invalid-checkpoint:bad-name")
        assert "Choose another id" in refused["detail"]
    assert service.http.get(f"/v1/checkpoints/{name}").status_code == 404
    assert len(service.http.get(f"/v1/checkpoints/{one_shot}").json()["files"]) == 1


@pytest.mark.parametrize("like", ["C" + 31 * "a", "C" + 33 * "a", "C" + 32 * "A", "c" + 32 * "a"])
def test_an_id_that_only_looks_like_one_of_the_service_is_the_clients(service, like):
    assert service.put(like, "model.safetensors", MODEL).status_code == 201


@pytest.mark.parametrize(
    "index", ["model.safetensors.index.fp16.json", "model.safetensors.index.non_ema.json"]
)
def test_the_index_of_a_variant_makes_a_set_complete(service, index):
    name, files = fresh_id(), sharded_set(2)
    *shards, usual = files

    for filename, content in {index: files[usual], **{shard: files[shard] for shard in shards}}.items():
        assert service.put(name, filename, content).status_code == 201

    assert service.http.get(f"/v1/checkpoints/{name}").json()["complete"] is True
    assert service.submit(name).status_code == 202


def test_shards_of_a_variant_ask_for_the_index_of_a_variant(service):
    name, files = fresh_id(), sharded_set(2)
    shard = "model.fp16-00001-of-00002.safetensors"
    assert service.put(name, shard, next(iter(files.values()))).status_code == 201

    missing = service.http.get(f"/v1/checkpoints/{name}").json()["missing"]

    assert missing == ["model.safetensors.index.fp16.json", "model.fp16-00002-of-00002.safetensors"]


def test_what_means_nothing_in_an_index_is_stored_with_a_warning(service):
    """Of the index's own sum, a further key and null metadata only the sum can be wrong."""
    name, files = fresh_id(), sharded_set(2)
    index = json.loads(files["model.safetensors.index.json"])
    index |= {"metadata": {"total_size": 2}, "format": "pt"}
    files["model.safetensors.index.json"] = json.dumps(index).encode()

    for filename, content in files.items():
        assert service.put(name, filename, content).status_code == 201

    (warning,) = service.http.get(f"/v1/checkpoints/{name}").json()["warnings"]
    assert "total_size" in warning
    assert warning in service.submit(name).json()["warnings"]
    assert warning in service.submit_files(files).json()["warnings"]


def test_curl_without_the_slash_is_told_of_the_slash(service, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(MODEL)
    address = f"127.0.0.1:{service.port}/v1/checkpoints/{fresh_id()}"

    done = subprocess.run(
        ["curl", "-sS", "-T", "model.safetensors", address],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    refused = json.loads(done.stdout)
    assert refused["status"] == 405
    assert "End it with a slash" in refused["detail"]
    assert "Allow" in service.http.put("/v1/jobs/J0").json()["detail"]


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


def test_stored_checkpoints_are_listed_in_pages(start):
    service = start()
    assert service.http.get("/v1/checkpoints").json() == {"checkpoints": [], "next_cursor": None}
    ids = [service.stored(MODEL) for _ in range(3)]

    first = service.http.get("/v1/checkpoints", params={"limit": 2}).json()
    rest = service.http.get("/v1/checkpoints", params={"cursor": first["next_cursor"]}).json()

    assert [each["id"] for each in first["checkpoints"] + rest["checkpoints"]] == ids[::-1]
    assert rest["next_cursor"] is None
    assert first["checkpoints"][0]["complete"] is True
    assert first["checkpoints"][0]["bytes"] == len(MODEL)
    assert_problem(service.http.get("/v1/checkpoints?limit=0"), 422, "invalid-request")


@pytest.mark.parametrize("cursor", ["", "12", "x", "-a", "12-", "12-../x", "x-a", "1" * 17 + "-a", "1-a\n"])
def test_a_cursor_that_is_not_from_a_list_of_checkpoints_is_refused(service, cursor):
    assert_problem(service.http.get("/v1/checkpoints", params={"cursor": cursor}), 422, "invalid-request")


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        (f"x/{'a' * 300}.safetensors", "/path/filename"),
        ("%2e%2e/y.safetensors", "/path/checkpoint_id"),
    ],
)
def test_a_bad_part_of_an_address_is_listed_once(service, path, pointer):
    # Sent as it is: a client would take the dots off.
    head = f"PUT /v1/checkpoints/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    answer = service.raw(head.encode() + b"Content-Length: 0\r\n\r\n")
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert problem["detail"].startswith("1 field of the request is not valid")
