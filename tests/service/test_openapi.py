"""`service.openapi`: each field, parameter, header and problem is described and has an example."""

import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.running import assert_problem

METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
# What an operation may answer without it being a refusal.
GOOD = {"200", "201", "202", "204", "206", "304"}


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """Make it as the documentation does: without Redis, and without writing to the disk."""
    data_dir = tmp_path_factory.mktemp("nothing") / "data"
    document = create_app(Settings(data_dir=data_dir, redis_url="redis://nowhere")).openapi()
    assert not data_dir.exists()
    return document


@pytest.fixture(scope="module")
def operations(document):
    return {
        f"{method} {path}": item[method]
        for path, item in document["paths"].items()
        for method in METHODS
        if method in item
    }


def test_the_operations_are_these(operations):
    assert sorted(operations) == [
        "delete /v1/checkpoints/{checkpoint_id}",
        "delete /v1/jobs/{job_id}",
        "delete /v1/uploads/{upload_id}",
        "get /livez",
        "get /metrics",
        "get /readyz",
        "get /v1/checkpoints",
        "get /v1/checkpoints/{checkpoint_id}",
        "get /v1/jobs",
        "get /v1/jobs/{job_id}",
        "get /v1/jobs/{job_id}/archive",
        "get /v1/jobs/{job_id}/checkpoint",
        "get /v1/jobs/{job_id}/events",
        "get /v1/jobs/{job_id}/files/{filename}",
        "get /v1/jobs/{job_id}/report",
        "head /v1/uploads/{upload_id}",
        "options /v1/uploads",
        "patch /v1/uploads/{upload_id}",
        "post /v1/checkpoints/{checkpoint_id}",
        "post /v1/jobs",
        "post /v1/jobs/{job_id}/cancel",
        "post /v1/jobs/{job_id}/links",
        "post /v1/jobs/{job_id}/resume",
        "post /v1/plans",
        "post /v1/uploads",
        "put /v1/checkpoints/{checkpoint_id}/{filename}",
    ]


def test_every_operation_has_a_summary_and_a_description(operations):
    for name, operation in operations.items():
        assert operation["summary"], name
        assert operation["description"], name


def test_only_headers_that_a_client_can_send_are_parameters(operations):
    sent = {
        "Range",
        "idempotency-key",
        "if-match",
        "if-none-match",
        "repr-digest",
        "content-digest",
        "Digest",
        "last-event-id",
        "tus-resumable",
        "upload-checksum",
        "upload-length",
        "upload-metadata",
        "upload-offset",
    }
    headers = {
        parameter["name"]
        for operation in operations.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header"
    }
    assert headers == sent


def test_every_parameter_has_a_description_and_an_example(operations):
    for name, operation in operations.items():
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (name, parameter)
            assert shows(parameter) or shows(parameter["schema"]), (name, parameter["name"])


def shows(schema):
    return "example" in schema or bool(schema.get("examples"))


def refers(schema):
    """Whether a schema refers to models, whose own fields are checked where they are defined."""
    inner = [schema, schema.get("items", {}), *schema.get("anyOf", []), *schema.get("allOf", [])]
    return any("$ref" in each for each in inner)


def described(document, schema):
    """Return the description; pydantic omits it where it equals that of the model."""
    model = schema.get("$ref", "").removeprefix("#/components/schemas/")
    return schema.get("description") or document["components"]["schemas"].get(model, {}).get("description")


def test_every_field_has_a_description_and_an_example(document):
    seen = 0
    for name, model in document["components"]["schemas"].items():
        for field, schema in model.get("properties", {}).items():
            assert described(document, schema), (name, field)
            assert shows(schema) or refers(schema), (name, field)
            seen += 1
    assert seen > 80


def test_every_field_of_a_multipart_body_has_a_description_and_an_example(operations):
    for name in ("post /v1/jobs", "post /v1/plans", "post /v1/checkpoints/{checkpoint_id}"):
        multipart = operations[name]["requestBody"]["content"]["multipart/form-data"]["schema"]
        for schema in multipart["properties"].values():
            assert schema["description"]
            assert shows(schema)


def test_every_refusal_is_a_problem_with_an_example_of_its_own(operations):
    for name, operation in operations.items():
        refused = {status: said for status, said in operation["responses"].items() if status not in GOOD}
        assert {"400", "500"} <= refused.keys(), name
        for status, said in refused.items():
            assert said["description"], (name, status)
            assert said["content"].keys() == {"application/problem+json"}, (name, status)
            content = said["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert content["examples"], (name, status)
            for slug, example in content["examples"].items():
                assert example["value"]["status"] == int(status)
                assert example["value"]["type"].startswith(f"urn:eckart:problem:{slug}")


def test_every_header_has_a_description_and_an_example(operations):
    for name, operation in operations.items():
        for said in operation["responses"].values():
            for header in said.get("headers", {}).values():
                assert header["description"], name
                assert "example" in header, name


@pytest.mark.parametrize(
    ("operation", "statuses"),
    [
        ("put /v1/checkpoints/{checkpoint_id}/{filename}", "200 201 408 409 412 413 415 429 503 507"),
        ("post /v1/checkpoints/{checkpoint_id}", "200 201 408 409 413 415 429 503 507"),
        ("get /v1/checkpoints/{checkpoint_id}", "200 404 429"),
        ("delete /v1/checkpoints/{checkpoint_id}", "204 404 409 412 503"),
        ("options /v1/uploads", "204"),
        ("post /v1/uploads", "201 408 409 412 413 415 429 460 503 507"),
        ("head /v1/uploads/{upload_id}", "200 404 412"),
        ("patch /v1/uploads/{upload_id}", "204 404 408 409 412 413 415 423 429 460 503 507"),
        ("delete /v1/uploads/{upload_id}", "204 404 412 423"),
        ("post /v1/jobs", "202 404 408 409 413 415 429 503 507"),
        ("post /v1/plans", "200 404 408 409 413 415 429"),
        ("get /v1/jobs", "200 503"),
        ("get /v1/jobs/{job_id}", "200 304 404 429 503"),
        ("get /v1/jobs/{job_id}/events", "200 204 404 429 503"),
        ("post /v1/jobs/{job_id}/cancel", "200 404 503"),
        ("post /v1/jobs/{job_id}/resume", "202 404 409 429 501 503"),
        ("delete /v1/jobs/{job_id}", "204 404 412 503"),
        ("get /v1/jobs/{job_id}/report", "200 206 304 404 406 409 410 416 429 501 503"),
        ("get /v1/jobs/{job_id}/checkpoint", "200 206 304 404 409 410 416 429 501 503"),
        ("get /v1/jobs/{job_id}/files/{filename}", "200 206 304 404 409 410 416 429 501 503"),
        ("get /livez", "200"),
        ("get /readyz", "200 503"),
        ("get /metrics", "200"),
    ],
)
def test_an_operation_lists_exactly_what_it_answers(operations, operation, statuses):
    method, _, path = operation.partition(" ")
    of_middleware = {"421"} - ({"421"} if path in {"/livez", "/readyz"} else set())
    of_middleware |= set() if method in {"get", "head", "options"} else {"403"}
    of_middleware |= set() if path in {"/livez", "/readyz"} else {"401"}
    of_all = {"400", "500"} | ({"422"} if path.startswith("/v1/") else set())
    assert operations[operation]["responses"].keys() == {*statuses.split()} | of_all | of_middleware


def test_no_parameter_may_be_null(operations):
    for name, operation in operations.items():
        for parameter in operation.get("parameters", ()):
            assert "anyOf" not in parameter["schema"], name


@pytest.mark.parametrize("keys", [None, "alice:of-alice"])
def test_a_key_is_required_where_the_service_has_keys(keys):
    document = create_app(Settings(redis_url="redis://nowhere", api_keys=keys)).openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            security = operation.get("security", [{}])
            assert ({} in security) == (keys is None or path in {"/livez", "/readyz"})


def test_sizes_of_uploads_are_bounded_integers(operations):
    for operation, name in (
        ("post /v1/uploads", "upload-length"),
        ("patch /v1/uploads/{upload_id}", "upload-offset"),
    ):
        schema = next(p["schema"] for p in operations[operation]["parameters"] if p["name"] == name)
        assert (schema["type"], schema["minimum"], schema["maximum"]) == ("integer", 0, 2**53)


def test_results_are_sent_in_one_range_or_in_several(operations):
    for path in ("report", "checkpoint", "files/{filename}"):
        part = operations[f"get /v1/jobs/{{job_id}}/{path}"]["responses"]["206"]
        assert "multipart/byteranges" in part["content"]
        assert len(part["content"]) == 2


def test_every_reference_leads_somewhere(document):
    known = document["components"]["schemas"].keys()

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in known


def references(node):
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_a_query_parameter_that_an_address_does_not_have_is_refused(operations, service):
    """One that is misspelled would change nothing, and nobody would see why."""
    for name, operation in operations.items():
        method, _, path = name.partition(" ")
        known = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
        misspelled = [f"{each}x" for each in known] or ["verbose"]
        for wrong in misspelled:
            answer = service.http.request(method, path.replace("{", "").replace("}", ""), params={wrong: "1"})
            if not path.startswith("/v1/"):
                assert answer.status_code in (200, 503), name
                continue
            assert answer.status_code == 422, name
            if method != "head":
                (found,) = assert_problem(answer, 422, "invalid-request")["errors"]
                assert found["pointer"] == f"/query/{wrong}", name
                hint = f"did you mean {wrong[:-1]}?" if known else "there are none here"
                assert hint in found["detail"], name
