"""`service.json_body`: strict JSON within its limit, and invalid fields named by pointer."""

import json

import pytest

from tests.service.files import MODEL
from tests.service.running import SPEC, assert_problem


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (b"", "invalid-json"),
        (b"{", "invalid-json"),
        (b"\xff\xfe", "invalid-json"),
        (b"\xef\xbb\xbf{}", "invalid-json"),
        (b'{"checkpoint": "a", "checkpoint": "b", "spec": {"rank": 1}}', "invalid-json"),
        (b'{"checkpoint": "a", "spec": {"rank": {"ratio": NaN}}}', "invalid-json"),
        (b'{"checkpoint": "a", "spec": {"rank": {"ratio": -Infinity}}}', "invalid-json"),
        (b'{"checkpoint": "a", "spec": {"rank": {"ratio": 1e999}}}', "invalid-json"),
        (b'{"checkpoint": "a", "spec": {"rank": %s}}' % (b"9" * 5000), "invalid-json"),
        (b'{"checkpoint": "\\ud800", "spec": {"rank": 1}}', "invalid-json"),
        (b"[" * 100_000, "invalid-json"),
        (b"[" * 500 + b"]" * 500, "invalid-spec"),
        (b"[]", "invalid-spec"),
        (b"null", "invalid-spec"),
        (b'"text"', "invalid-spec"),
        (b"{}", "invalid-spec"),
    ],
)
def test_broken_json_is_refused(service, path, body, slug):
    refused = service.http.post(path, content=body, headers={"Content-Type": "application/json"})

    assert_problem(refused, 422, slug)


@pytest.mark.parametrize(
    ("spec", "advised"),
    [
        ("{'rank':{'ratio':0.5}}", True),
        ("{rank:64}", True),
        ('{"rank":64,"method":\'svd\'}', True),
        ('{"rank":64,"method":svd}', True),
        ('{"rank":64,}', False),
        ('{"rank":', False),
    ],
)
def test_quotes_that_a_shell_took_or_json_does_not_know_are_named(service, spec, advised):
    files = {"checkpoint": ("model.safetensors", MODEL)}
    refused = service.http.post("/v1/jobs", files=files, data={"spec": spec})

    detail = assert_problem(refused, 422, "invalid-json")["detail"]
    assert ("double quotes" in detail) == advised


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ({"checkpoint": "a"}, ["/spec"]),
        ({"checkpoint": 7, "spec": SPEC}, ["/checkpoint"]),
        ({"checkpoint": "../a", "spec": SPEC}, ["/checkpoint"]),
        ({"checkpoint": "a", "spec": {}}, ["/spec/rank"]),
        ({"checkpoint": "a", "spec": {"rank": 0}}, ["/spec/rank"]),
        ({"checkpoint": "a", "spec": {"rank": "4"}}, ["/spec/rank"]),
        ({"checkpoint": "a", "spec": {"rank": {}}}, ["/spec/rank"]),
        ({"checkpoint": "a", "spec": {"rank": {"ratio": 2}}}, ["/spec/rank/ratio"]),
        ({"checkpoint": "a", "spec": {"rank": {"ratio": "nobody-knows"}}}, ["/spec/rank/ratio"]),
        ({"checkpoint": "a", "spec": {"rank": {"ratio": True}}}, ["/spec/rank/ratio"]),
        ({"checkpoint": "a", "spec": {"rank": {"budget": 2}}}, ["/spec/rank/budget"]),
        ({"checkpoint": "a", "spec": {"rank": {"budget_bytes": 0}}}, ["/spec/rank/budget_bytes"]),
        ({"checkpoint": "a", "spec": {"rank": 4, "calibration": "../x"}}, ["/spec/calibration"]),
        ({"checkpoint": "a", "spec": {"rank": 4, "transposed": "x"}}, ["/spec/transposed"]),
        ({"checkpoint": "a", "spec": {"rank": 4, "metod": "nobody-knows"}}, ["/spec/metod"]),
        ({"checkpoint": "a", "spec": {"rank": 4, "a/b~": 1}}, ["/spec/a~1b~0"]),
        (
            {"checkpoint": "a", "spec": {"rank": 4, "seed": -1, "method": "qr"}},
            ["/spec/method", "/spec/seed"],
        ),
        ({"checkpoint": "a", "spec": {"rank": 4, "overrides": [{"match": ""}]}}, ["/spec/overrides/0/match"]),
        ({"checkpoint": "a", "spec": SPEC, "priority": 1}, ["/priority"]),
    ],
)
def test_bad_fields_are_named_by_pointer_and_never_echoed(service, document, pointers):
    refused = service.http.post("/v1/jobs", json=document)

    body = assert_problem(refused, 422, "invalid-spec")
    assert sorted(error["pointer"] for error in body["errors"]) == pointers
    assert all(error["detail"] for error in body["errors"])
    assert "nobody-knows" not in refused.text


def test_a_flood_of_bad_fields_gets_a_short_answer(service):
    spec = {"rank": 4, "overrides": [{"match": ""}] * 10_000}

    refused = service.http.post("/v1/jobs", json={"checkpoint": "a", "spec": spec})

    body = assert_problem(refused, 422, "invalid-spec")
    assert len(body["errors"]) == 50
    assert "10000" in body["detail"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_json_by_another_name_is_refused(service, path):
    body = json.dumps({"checkpoint": "a", "spec": SPEC})

    refused = service.http.post(path, content=body, headers={"Content-Type": "text/plain"})

    assert_problem(refused, 415, "unsupported-media-type")


def test_a_json_body_over_its_limit_is_refused_announced_or_not(service):
    big = b'{"checkpoint": "' + b"a" * 2**20 + b'"}'
    for path in ("/v1/jobs", "/v1/plans"):
        for content in (big, iter([big])):
            refused = service.http.post(path, content=content, headers={"Content-Type": "application/json"})
            assert_problem(refused, 413, "too-large")


def test_a_compressed_json_body_is_refused(service):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    assert_problem(service.http.post("/v1/plans", content=b"{}", headers=headers), 415, "encoded-body")
