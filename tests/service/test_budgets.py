"""Budgets over HTTP: refused by name before any 202, and planned exactly where the spectra are known."""

import hashlib
import json
from array import array

import pytest

from state.cache import DecompositionCache, DecompositionKey
from state.cache_file import DecompositionHeader
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem

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
        "": [service.one_shot({"model.safetensors": content()}, spec)],
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
