"""`service.planning.plans`, `service.routes.plans`: plans of stored checkpoints, budgets and calibrations."""

import hashlib
import json
import secrets
import struct
from array import array

import pytest

from schemas.planning.references import NO_REFERENCES
from schemas.spec import CompressionSpec
from service.errors import ProblemError
from service.planning import plans
from state.cache.file import DecompositionHeader
from state.cache.key import DecompositionKey
from state.cache.store import DecompositionCache
from tests.schemas.format.checkpoints import files_of
from tests.service.files import checkpoint_bytes, sharded_set
from tests.service.running import assert_problem

LONG_NAMES = {f"{'a' * 900}.{i}.weight": (1, 1) for i in range(300)}
TOO_MANY_PATTERNS = {
    "patterns": ({"include": ["x"] * 1_001}, "include", "at most 1000 are allowed"),
    "patterns of several fields": (
        {"include": ["x"] * 501, "exclude": ["y"] * 500},
        "include",
        "1001 patterns",
    ),
    "characters": ({"exclude": ["y" * 1_000] * 66}, "exclude", "at most 65536 are allowed"),
    "time": ({"transposed": ["*" + "[ab]" * 200 + "*"]}, "transposed", "300 tensors"),
    "names of pairs": (
        {"rank": {"ratio": 0.5}, "pairs": [{"up": "u", "down": "d"}] * 501},
        "pairs",
        "1002 patterns",
    ),
}


@pytest.mark.parametrize(("fields", "place", "words"), TOO_MANY_PATTERNS.values(), ids=TOO_MANY_PATTERNS)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_more_patterns_than_can_be_matched_in_time_are_refused(service, path, fields, place, words):
    name = service.stored(checkpoint_bytes(LONG_NAMES))

    refused = service.http.post(path, json={"checkpoint": name, "spec": {"rank": 4, **fields}})

    body = assert_problem(refused, 422, "invalid-spec")
    assert words in body["detail"]
    assert body["errors"][0]["pointer"] == f"/spec/{place}"


def test_long_patterns_of_plain_text_are_not_too_many(service):
    name = service.stored(checkpoint_bytes(LONG_NAMES))
    spec = {"rank": 4, "exclude": [f"*{'a' * 900}{at:03}*" for at in range(70)]}

    assert service.http.post("/v1/plans", json={"checkpoint": name, "spec": spec}).status_code == 200


def test_a_checkpoint_of_more_weights_than_can_be_planned_is_refused_before(monkeypatch):
    files = files_of()
    monkeypatch.setattr(plans, "MAX_LAYERS", 5)
    assert plans.make_bounded_plan(files, CompressionSpec(rank=1), NO_REFERENCES, pointer="").layers

    monkeypatch.setattr(plans, "MAX_LAYERS", 4)
    with pytest.raises(ProblemError, match="5 weights of floats") as refused:
        plans.make_bounded_plan(files, CompressionSpec(rank=1), NO_REFERENCES, pointer="")
    assert refused.value.fault == "too-many-layers"


def test_a_plan_lists_twenty_warnings_and_counts_the_others(service):
    spec = {"rank": 4, "include": ["*", *(f"absent{i}" for i in range(100))]}
    name = service.stored(MODEL)

    warnings = service.http.post("/v1/plans", json={"checkpoint": name, "spec": spec}).json()["warnings"]

    assert len(warnings) == 21
    assert warnings[-1].startswith("and ")
    assert service.submit(name, spec).json()["warnings"] == warnings


def test_a_plan_says_what_would_happen_and_makes_nothing(service):
    name = service.stored(checkpoint_bytes({"a.weight": (64, 64), "b.weight": (2, 2)}))
    before = service.http.get("/v1/jobs").json()

    plan = service.http.post("/v1/plans", json={"checkpoint": name, "spec": {"rank": 8}})

    assert plan.status_code == 200
    body = plan.json()
    assert [layer["rank"] for layer in body["layers"]] == [8, None]
    assert [layer["reason"] for layer in body["layers"]] == [None, "no_saving"]
    assert body["totals"]["parameters_after"] == 8 * 128 + 4
    assert service.http.get("/v1/jobs").json() == before


SHAPES = {"a.weight": (64, 64), "b.weight": (64, 64), "b.bias": (64,), "embed.weight": (300, 8)}


def content(fill=1):
    return checkpoint_bytes(SHAPES, fill=fill)


@pytest.mark.parametrize(
    ("spec", "pointer", "words"),
    [
        ({"rank": {"budget": 0.01}}, "/rank/budget", ['"a", at rank 1', "at least 0.0313"]),
        ({"rank": {"budget_bytes": 100}}, "/rank/budget_bytes", ['"embed.weight", which is not selected']),
        ({"rank": {"budget": 0.5}, "align": 64}, "/align", ['"a"', "Lower align"]),
        ({"rank": {"ratio": 0.5}, "min_rank": 64}, "/min_rank", ['"a"', "Lower min_rank"]),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_layer_and_the_remedy(service, spec, pointer, words):
    checkpoint = service.stored(content())
    answers = {
        "/spec": [
            service.http.post("/v1/plans", json={"checkpoint": checkpoint, "spec": spec}),
            service.submit(checkpoint, spec),
        ],
        "": [service.submit_files({"model.safetensors": content()}, spec)],
    }

    for place, refusals in answers.items():
        for response in refusals:
            body = assert_problem(response, 422, "invalid-spec")
            assert [field["pointer"] for field in body["errors"]] == [place + pointer]
            assert body["errors"][0]["detail"] == body["detail"]
            for word in words:
                assert word in body["detail"]


def keep_spectra(service, raw):
    """Play a job that came before: keep what it would have found out."""
    store = DecompositionCache.shared(service.data_dir, limit_bytes=None)
    source = service.data_dir / "model"
    source.write_bytes(raw)
    for name, rate in (("a.weight", 0.5), ("b.weight", 0.9)):
        key = DecompositionKey(hashlib.sha256(raw).hexdigest(), name, "F32", (64, 64))
        spectrum = array("d", [rate**i for i in range(64)])
        head = DecompositionHeader(key.digest, bytes(32), 3, 0.0, "columns", 4, 31, 64, spectrum)
        assert store.put(key, head, memoryview(bytes(31 * 64 * 4)), sources=[source])


@pytest.mark.parametrize("rank", [{"budget": 0.5}, {"budget_bytes": 33_000}, {"energy": 0.9}])
def test_a_plan_is_exact_once_the_spectra_are_known(start, rank):
    service = start()
    raw = content(fill=2)
    asked = {"checkpoint": service.stored(raw), "spec": {"rank": rank}}

    before = service.http.post("/v1/plans", json=asked).json()
    keep_spectra(service, raw)
    after = service.http.post("/v1/plans", json=asked).json()

    assert not before["totals"]["exact"]
    assert [layer["rank_bounds"] for layer in before["layers"]] == [{"least": 1, "most": 31}] * 2
    assert after["totals"]["exact"]
    assert after["layers"][0]["rank"] < (after["layers"][1]["rank"] or 32)
    assert after["totals"]["parameters_after"] <= before["totals"]["parameters_after"]


def test_a_job_with_a_budget_is_accepted_and_shows_its_spec(service):
    response = service.submit(service.stored(content()), {"rank": {"budget": 0.5}, "align": 8})

    assert response.status_code == 202
    spec = response.json()["spec"]
    assert (spec["rank"], spec["align"]) == ({"budget": 0.5}, 8)
    assert json.dumps(spec).count("objective") == 0


MODEL = checkpoint_bytes({"h.up.weight": (64, 32), "h.down.weight": (32, 64), "wte.weight": (100, 32)})


FILES = {"model.safetensors": MODEL}


GRAMS = checkpoint_bytes({"h.up.gram": (32, 32)})


def halves(name, shape):
    """Make a file of one BF16 tensor."""
    nbytes = 2 * shape[0] * shape[1]
    header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, nbytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(nbytes)


@pytest.fixture
def model(service):
    return service.stored(MODEL)


@pytest.fixture
def grams(service):
    return service.stored(GRAMS, "grams.safetensors")


def spec(calibration, **fields):
    return {"rank": 4, "calibration": calibration, **fields}


def test_a_plan_says_which_layers_are_calibrated(service, model, grams):
    plan = service.http.post("/v1/plans", json={"checkpoint": model, "spec": spec(grams)})

    assert plan.status_code == 200
    assert {x["name"]: x["calibrated"] for x in plan.json()["layers"]} == {"h.up": True, "h.down": False}
    assert plan.json()["warnings"] == []


def test_a_job_keeps_its_calibration_until_it_has_ended(service, model, grams):
    job = service.submit(model, spec(grams))
    assert job.status_code == 202
    assert job.json()["spec"]["calibration"] == grams

    assert_problem(service.http.delete(f"/v1/checkpoints/{grams}"), 409, "checkpoint-in-use")
    service.http.post(f"/v1/jobs/{job.json()['id']}/cancel")
    assert service.http.delete(f"/v1/checkpoints/{grams}").status_code == 204
    assert_problem(service.submit(model, spec(grams)), 404, "checkpoint-not-found")


def test_a_job_with_its_own_files_may_name_a_stored_calibration_and_leaves_it(service, grams):
    job = service.submit_files(FILES, spec(grams))
    assert job.status_code == 202
    record = service.jobs.get(job.json()["id"])
    assert [file.name for file in record.calibration_files] == ["grams.safetensors"]

    service.http.delete(f"/v1/jobs/{record.id}")
    assert service.http.get(f"/v1/checkpoints/{grams}").status_code == 200


REQUESTS = {
    "job": lambda service, model, asked: service.submit(model, asked),
    "plan": lambda service, model, asked: service.http.post(
        "/v1/plans", json={"checkpoint": model, "spec": asked}
    ),
    "multipart": lambda service, _model, asked: service.submit_files(FILES, asked),
}


POINTERS = {"job": "/spec/calibration", "plan": "/spec/calibration", "multipart": "/calibration"}


@pytest.mark.parametrize("request_", REQUESTS)
def test_an_unknown_calibration_is_not_found_where_it_was_named(service, model, request_):
    refused = REQUESTS[request_](service, model, spec("nobody"))

    body = assert_problem(refused, 404, "checkpoint-not-found")
    assert [error["pointer"] for error in body["errors"]] == [POINTERS[request_]]
    assert "/v1/checkpoints/nobody/" in body["errors"][0]["detail"]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_calibration_that_lacks_files_is_a_conflict_that_names_them(service, model, request_):
    first, second, index = files = sharded_set(2)
    name = service.stored(files[first], first)
    service.put(name, index, files[index])

    body = assert_problem(REQUESTS[request_](service, model, spec(name)), 409, "checkpoint-incomplete")
    assert second in body["detail"]
    assert [error["pointer"] for error in body["errors"]] == [POINTERS[request_]]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_calibration_of_unrelated_files_is_a_conflict_that_names_both(service, model, request_):
    name = service.stored(GRAMS, "a.safetensors")
    service.put(name, "b.safetensors", GRAMS)

    body = assert_problem(REQUESTS[request_](service, model, spec(name)), 409, "checkpoint-incomplete")
    assert "the index of a.safetensors and b.safetensors" in body["detail"]


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    ("content", "fields", "fault", "words"),
    [
        (checkpoint_bytes({"h.up.act": (32, 32)}), {}, "no-grams", ["<module>.gram", "eckart.calibrate"]),
        (checkpoint_bytes({"h.9.gram": (32, 32)}), {}, "unknown-layer", ['"h.9"', "leave it out"]),
        (checkpoint_bytes({"up.gram": (32, 32)}), {}, "unknown-layer", ['"up"', '"h.up"']),
        (checkpoint_bytes({"h.up.gram": (32, 31)}), {}, "gram-shape", ['"h.up"', "[32, 32]", "Calibrate"]),
        (checkpoint_bytes({"h.up.gram": (32,)}), {}, "gram-shape", ['"h.up"', "[32, 32]"]),
        (checkpoint_bytes({"h.up.gram": (64, 64)}), {}, "gram-shape", ['"h.up"', "to `transposed`"]),
        (GRAMS, {"transposed": ["h.up"]}, "gram-shape", ['"h.up"', "from `transposed`"]),
        (halves("h.up.gram", (32, 32)), {}, "gram-dtype", ['"h.up"', "BF16", "F32 or F64"]),
    ],
)
def test_what_does_not_fit_is_refused_by_layer_with_its_remedy(
    service, model, request_, content, fields, fault, words
):
    asked = spec(service.stored(content, "grams.safetensors"), **fields)
    before = len(service.http.get("/v1/jobs").json()["jobs"])

    body = assert_problem(REQUESTS[request_](service, model, asked), 422, f"invalid-calibration:{fault}")
    assert all(word in body["detail"] for word in words)
    assert [error["pointer"] for error in body["errors"]] == [POINTERS[request_]]
    assert len(service.http.get("/v1/jobs").json()["jobs"]) == before


def test_a_gram_matrix_of_a_layer_that_is_not_selected_is_a_warning(service, model):
    asked = spec(service.stored(checkpoint_bytes({"wte.gram": (2, 2), "h.up.gram": (32, 32)})))

    assert service.submit(model, asked).json()["warnings"] == [
        "calibration: not used, since the layer is not selected: wte"
    ]


def test_the_same_key_with_other_grams_under_the_same_id_is_another_request(service, model):
    name, key = service.stored(GRAMS, "grams.safetensors"), secrets.token_hex(8)
    first = service.submit(model, spec(name), **{"Idempotency-Key": key})
    again = service.submit(model, spec(name), **{"Idempotency-Key": key})
    assert first.json()["id"] == again.json()["id"]

    service.http.post(f"/v1/jobs/{first.json()['id']}/cancel")
    assert service.http.delete(f"/v1/checkpoints/{name}").status_code == 204
    service.put(name, "grams.safetensors", checkpoint_bytes({"h.up.gram": (32, 32)}, fill=2))
    other = service.submit(model, spec(name), **{"Idempotency-Key": key})
    assert_problem(other, 422, "idempotency-mismatch")


def test_transposed_patterns_count_among_those_to_be_matched(service):
    name = service.stored(checkpoint_bytes({f"layer.{i}.weight": (1, 1) for i in range(2000)}))
    refused = service.submit(name, {"rank": 4, "transposed": ["x"] * 10_000})

    assert "patterns" in assert_problem(refused, 422, "invalid-spec")["detail"]


BASE_SHAPES = {"h.up.weight": (64, 32), "h.down.weight": (32, 64), "wte.weight": (100, 32)}
BASE = checkpoint_bytes(BASE_SHAPES, fill=2)


@pytest.fixture
def base(service):
    return service.stored(BASE, "base.safetensors")


def difference(base, **fields):
    return {"rank": 4, "layout": "adapter", "base": base, **fields}


def test_a_job_keeps_its_base_until_it_has_ended(service, model, base):
    job = service.submit(model, difference(base))
    assert job.status_code == 202
    assert job.json()["spec"]["base"] == base
    record = service.jobs.get(job.json()["id"])
    assert [file.name for file in record.base_files] == ["base.safetensors"]

    assert_problem(service.http.delete(f"/v1/checkpoints/{base}"), 409, "checkpoint-in-use")
    service.http.post(f"/v1/jobs/{job.json()['id']}/cancel")
    assert service.http.delete(f"/v1/checkpoints/{base}").status_code == 204
    assert_problem(service.submit(model, difference(base)), 404, "checkpoint-not-found")


def at(request_, field):
    return f"/spec/{field}" if request_ != "multipart" else f"/{field}"


@pytest.mark.parametrize("request_", REQUESTS)
def test_an_unknown_base_is_not_found_where_it_was_named(service, model, request_):
    refused = REQUESTS[request_](service, model, difference("nobody"))

    body = assert_problem(refused, 404, "checkpoint-not-found")
    assert [error["pointer"] for error in body["errors"]] == [at(request_, "base")]
    assert "/v1/checkpoints/nobody/model.safetensors" in body["errors"][0]["detail"]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_base_of_the_same_weights_is_refused_under_whatever_id(service, model, base, request_):
    for name in (model, service.stored(MODEL, "other.safetensors")):
        refused = REQUESTS[request_](service, model, difference(name))
        body = assert_problem(refused, 422, "invalid-base:no-difference")
        assert [error["pointer"] for error in body["errors"]] == [at(request_, "base")]


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    ("content", "fault", "words"),
    [
        (checkpoint_bytes({"h.up.weight": (64, 32)}), "other-names", ["2 tensors", '"h.down.weight"']),
        (
            checkpoint_bytes({"h.up.weight": (64, 32), "h.down.weight": (32, 64), "wte.weight": (101, 32)}),
            "other-shapes",
            ['"wte.weight"', "[100, 32]", "[101, 32]"],
        ),
    ],
)
def test_a_base_that_does_not_fit_is_refused_by_the_names_of_its_tensors(
    service, model, request_, content, fault, words
):
    asked = difference(service.stored(content, "base.safetensors"))
    before = len(service.http.get("/v1/jobs").json()["jobs"])

    body = assert_problem(REQUESTS[request_](service, model, asked), 422, f"invalid-base:{fault}")
    assert all(word in body["detail"] for word in words)
    assert [error["pointer"] for error in body["errors"]] == [at(request_, "base")]
    assert len(service.http.get("/v1/jobs").json()["jobs"]) == before


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_layout_that_does_not_fit_the_base_is_refused(service, model, base, request_):
    for asked in (difference(base, layout="factored"), {"rank": 4, "layout": "adapter"}):
        body = assert_problem(REQUESTS[request_](service, model, asked), 422, "invalid-spec")
        assert [error["pointer"] for error in body["errors"]] == [at(request_, "layout")]


def test_a_plan_of_an_adapter_counts_the_adapter_alone(service, model, base):
    plan = service.http.post("/v1/plans", json={"checkpoint": model, "spec": difference(base)}).json()

    assert plan["totals"]["parameters_after"] == 2 * 4 * (64 + 32)
    assert plan["totals"]["parameters_before"] == 64 * 32 * 2 + 3200


def test_the_same_key_with_another_base_under_the_same_id_is_another_request(service, model, base):
    key = secrets.token_hex(8)
    first = service.submit(model, difference(base), **{"Idempotency-Key": key})
    service.http.post(f"/v1/jobs/{first.json()['id']}/cancel")
    service.http.delete(f"/v1/checkpoints/{base}")
    service.put(base, "base.safetensors", checkpoint_bytes(BASE_SHAPES, fill=3))

    other = service.submit(model, difference(base), **{"Idempotency-Key": key})
    assert_problem(other, 422, "idempotency-mismatch")
