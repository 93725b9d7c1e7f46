"""`planning.header_form`: a plan from headers is the plan of the whole files, and is checked like them."""

import json
import struct

import pytest

from service.planning.header_form import MAX_CONFIG_BYTES
from tests.service.files import checkpoint_bytes, sharded_set
from tests.service.running import SPEC, assert_problem

MODEL = checkpoint_bytes({"a.weight": (64, 48), "a.bias": (64,), "b.weight": (48, 64)})
INDEX = "model.safetensors.index.json"
SHARDS = sharded_set(2)
FIRST, SECOND, _ = SHARDS
FILE = "model.safetensors"
ASKED = json.dumps(SPEC)


def head(content):
    """Return the first 8 + N bytes of a file, or all of an index."""
    if content.startswith(b"{"):
        return content
    (length,) = struct.unpack("<Q", content[:8])
    return content[: 8 + length]


def heads(files):
    return {name: head(content) for name, content in files.items()}


def plan(service, files, spec=SPEC, field="header"):
    parts = [(field, (name, content)) for name, content in files.items()]
    return service.http.post("/v1/plans", files=parts, data={"spec": json.dumps(spec)})


def on_disk(service):
    return sorted(str(path) for path in service.data_dir.rglob("*") if not path.match("*.lock"))


@pytest.mark.parametrize("files", [{FILE: MODEL}, SHARDS], ids=["one file", "shards"])
@pytest.mark.parametrize(
    "rank", [8, {"ratio": 0.5}, {"energy": 0.9}, {"budget": 0.5}, {"budget_bytes": 50_000}]
)
def test_a_plan_from_headers_is_that_of_the_stored_files(start, files, rank):
    service = start()
    for name, content in files.items():
        assert service.put("whole", name, content).status_code == 201
    stored = service.http.post("/v1/plans", json={"checkpoint": "whole", "spec": {"rank": rank}}).json()

    answer = plan(service, heads(files), {"rank": rank})

    assert answer.status_code == 200, answer.text
    assert stored["layers"]
    assert answer.json() == stored | {"checkpoint": None}


def test_nothing_is_written(start):
    service = start()
    assert service.http.get("/v1/checkpoints").status_code == 200  # makes the list of checkpoints
    before = on_disk(service)

    assert plan(service, heads(SHARDS)).status_code == 200
    assert_problem(plan(service, {FILE: MODEL}), 422, "invalid-checkpoint:trailing-data")
    assert on_disk(service) == before


def test_no_space_on_the_disk_is_needed(start):
    service = start(min_free_bytes=2**60)

    assert plan(service, heads({FILE: MODEL})).status_code == 200


def test_layers_that_only_config_json_lists_are_factored_already(service):
    layer = {"method": "svd", "rank": 8, "shape": [64, 48]}
    entry = {"quant_method": "eckart", "version": 1, "layers": {"a": layer}}
    factors = {"a.0.weight": (8, 48), "a.1.weight": (64, 8), "b.weight": (48, 64)}
    files = {
        FILE: checkpoint_bytes(factors),
        "config.json": json.dumps({"quantization_config": entry}).encode(),
    }
    for name, content in files.items():
        assert service.put("save_pretrained", name, content).status_code == 201
    body = {"checkpoint": "save_pretrained", "spec": {"rank": 4}}
    stored = service.http.post("/v1/plans", json=body).json()
    answer = plan(service, {name: head(content) for name, content in files.items()}, {"rank": 4}).json()

    assert [layer["name"] for layer in stored["layers"]] == ["b"]
    assert answer == stored | {"checkpoint": None}
    document = service.http.get("/v1/checkpoints/save_pretrained").json()
    assert {tensor["name"]: tensor["selected"] for tensor in document["tensors"]} == {
        "a.0.weight": False,
        "a.1.weight": False,
        "b.weight": True,
    }


def test_a_config_json_without_factored_layers_changes_nothing(service):
    bare = plan(service, heads({FILE: MODEL}))
    config = plan(service, {"config.json": b'{"model_type": "bert"}', FILE: head(MODEL)})

    assert config.status_code == 200
    assert config.json() == bare.json()


def test_a_stored_calibration_is_used(service):
    grams = service.stored(checkpoint_bytes({"a.gram": (48, 48)}), "grams.safetensors")

    answer = plan(service, heads({FILE: MODEL}), {"rank": 4, "calibration": grams})

    assert {x["name"]: x["calibrated"] for x in answer.json()["layers"]} == {"a": True, "b": False}


def test_a_stored_base_is_compared_with_the_headers(service):
    spec = {"rank": 4, "layout": "adapter"}
    same, other = service.stored(MODEL), service.stored(checkpoint_bytes({"x.weight": (4, 4)}))
    fits = plan(service, heads({FILE: MODEL}), spec | {"base": same})
    refused = plan(service, heads({FILE: MODEL}), spec | {"base": other})

    assert fits.json()["totals"]["parameters_after"] == sum(
        layer["parameters_after"] for layer in fits.json()["layers"]
    )
    body = assert_problem(refused, 422, "invalid-base:other-names")
    assert [error["pointer"] for error in body["errors"]] == ["/base"]
    assert '"x.weight"' in body["detail"]


def test_a_calibration_that_does_not_fit_or_is_unknown_is_refused_at_its_field(service):
    grams = service.stored(checkpoint_bytes({"a.gram": (47, 47)}), "grams.safetensors")

    for name, status, slug in (
        (grams, 422, "invalid-calibration:gram-shape"),
        ("nobody", 404, "checkpoint-not-found"),
    ):
        answer = plan(service, heads({FILE: MODEL}), {"rank": 4, "calibration": name})
        assert [e["pointer"] for e in assert_problem(answer, status, slug)["errors"]] == ["/calibration"]


@pytest.mark.parametrize(
    ("files", "fault", "words"),
    [
        ({FILE: MODEL}, "trailing-data", [FILE, f"only the first {len(head(MODEL))} bytes"]),
        ({FILE: head(MODEL) + b" "}, "trailing-data", [FILE]),
        ({FILE: head(MODEL)[:-1]}, "header-past-end", [FILE]),
        ({FILE: MODEL[:8]}, "no-header", [FILE]),
        ({FILE: MODEL[:5]}, "too-short", [FILE]),
        ({FILE: b""}, "too-short", [FILE]),
        ({FILE: b"PK\x03\x04" + bytes(30)}, "other-format", [FILE]),
        ({FILE: struct.pack("<Q", 2**33)}, "header-too-large", [FILE]),
        ({FILE: struct.pack("<Q", 2) + b"[]"}, "not-an-object", [FILE]),
        ({FILE: struct.pack("<Q", 4) + b"{,} "}, "not-json", [FILE]),
        ({**heads(SHARDS), INDEX: b'{"weight_map": {}}'}, "no-tensors", [INDEX]),
        ({**heads(SHARDS), INDEX: b'{"weight_map": 3}'}, "weight-map-not-strings", [INDEX]),
        ({FIRST: head(SHARDS[FIRST]), INDEX: SHARDS[INDEX]}, "missing-files", [SECOND]),
        ({INDEX: SHARDS[INDEX]}, "missing-files", [FIRST, SECOND]),
        ({FIRST: head(SHARDS[FIRST])}, "missing-files", [INDEX, SECOND]),
        (
            {FIRST: head(SHARDS[FIRST]), "other.safetensors": head(MODEL)},
            "missing-files",
            [INDEX, SECOND, "Not part of that checkpoint: other.safetensors"],
        ),
        ({"a.safetensors": head(MODEL), "b.safetensors": head(MODEL)}, "missing-files", ["index"]),
        ({**heads(SHARDS), "x.safetensors": head(MODEL)}, "shard-extra", ["x.safetensors"]),
        ({**heads(SHARDS), FIRST: head(SHARDS[SECOND])}, "tensor-in-two-shards", [FIRST, SECOND]),
        ({**heads(SHARDS), f"b.{INDEX}": SHARDS[INDEX]}, "second-index", [INDEX]),
    ],
)
def test_a_malformed_set_is_refused_with_the_name_of_the_file(service, files, fault, words):
    body = assert_problem(plan(service, files), 422, f"invalid-checkpoint:{fault}")

    assert all(word in body["detail"] for word in words)


@pytest.mark.parametrize(
    ("parts", "status", "slug", "words"),
    [
        ([("spec", (None, ASKED))], 422, "invalid-multipart", ["`header` is missing", "8 + N"]),
        ([("header", (FILE, head(MODEL)))], 422, "invalid-multipart", ["`spec` is missing"]),
        (
            [("header", ("config.json", b"{}")), ("spec", (None, ASKED))],
            422,
            "invalid-multipart",
            ["`header`"],
        ),
        ([("header", (None, head(MODEL)))], 422, "invalid-multipart", ["file name"]),
        ([("header", (FILE, head(MODEL)))] * 2, 422, "invalid-multipart", ["twice"]),
        ([("header", ("config.json", b"{}"))] * 2, 422, "invalid-multipart", ["twice"]),
        ([("header", ("config.json", b"[]"))], 422, "invalid-checkpoint:bad-config", ["JSON object"]),
        ([("header", ("vocab.txt", b"a"))], 422, "invalid-request", ["vocab.txt", "leave"]),
        ([("spec", (None, ASKED))] * 2, 422, "invalid-multipart", ["twice"]),
        ([("checkpoint", (FILE, head(MODEL)))], 422, "invalid-multipart", ["`header` and `spec`"]),
        ([("header", ("model.bin", head(MODEL)))], 422, "invalid-request", [".safetensors"]),
        ([("spec", (None, '{"rank": 4, "rank": 4}'))], 422, "invalid-json", ["twice"]),
        ([("spec", (None, " " * (2**20 + 1)))], 413, "too-large", ["spec"]),
        ([("header", ("config.json", bytes(MAX_CONFIG_BYTES + 1)))], 413, "too-large", ["config.json"]),
    ],
)
def test_a_malformed_multipart_body_is_refused(service, parts, status, slug, words):
    answer = service.http.post("/v1/plans", files=parts)

    assert all(word in assert_problem(answer, status, slug)["detail"] for word in words)


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ({"rank": 0}, "/rank"),
        ({"rank": {"budget": 0.01}}, "/rank/budget"),
        ({"rank": 4, "methods": "svd"}, "/methods"),
    ],
)
def test_a_bad_spec_is_refused_at_its_field(service, spec, pointer):
    body = assert_problem(plan(service, heads({FILE: MODEL}), spec), 422, "invalid-spec")

    assert [error["pointer"][: len(pointer)] for error in body["errors"]] == [pointer]


def test_the_number_of_parts_is_limited(start):
    service = start(max_files=2)
    three = {f"model-0000{i}-of-00003.safetensors": head(MODEL) for i in (1, 2, 3)}

    assert_problem(plan(service, {**three, "config.json": b"{}"}), 422, "invalid-multipart")


def test_the_size_of_all_parts_together_is_limited(service):
    request = (
        b"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 80000000\r\n\r\n"
    )

    answer = service.raw(request)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"urn:eckart:problem:too-large" in answer


def test_chunks_beyond_the_limit_are_refused_as_they_come(service):
    def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="header"; filename="config.json"\r\n\r\n'
        while True:
            yield bytes(2**16)

    answer = service.http.post(
        "/v1/plans", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )

    assert_problem(answer, 413, "too-large")
