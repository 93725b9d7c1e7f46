"""The client's documents (eckart/types.py) against the server's own description of what it sends."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from eckart import types
from service.app import create_app
from service.settings import Settings

DOCUMENTS = {
    "Job": types.Job,
    "JobList": types.JobList,
    "Checkpoint": types.Checkpoint,
    "CheckpointList": types.CheckpointList,
    "PlanDocument": types.PlanDocument,
    "Report": types.Report,
    "Problem": types.Problem,
}
# An example of each field, as the server's OpenAPI schema gives them.
SCHEMAS = create_app(Settings(redis_url="redis://nowhere")).openapi()["components"]["schemas"]


def example(part):
    """Build an example of a part of a schema from the examples of its fields."""
    if part.get("examples"):
        return part["examples"][0]
    if "$ref" in part:
        return example(SCHEMAS[part["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in part:
        return example(part["anyOf"][0])
    if part.get("type") == "array":
        return [example(part["items"])]
    if "properties" in part:
        return {name: example(field) for name, field in part["properties"].items()}
    return part.get("const")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_holds_what_the_server_sends(name):
    sent = example(SCHEMAS[name])

    assert DOCUMENTS[name].model_validate(sent).model_dump(mode="json") == sent


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_field_of_the_client_is_one_of_the_server(name):
    """A misspelled field with a default would otherwise never be noticed."""

    def check(kind, sent):
        assert set(kind.model_fields) <= set(sent), kind
        for field, info in kind.model_fields.items():
            for inner in (info.annotation, *getattr(info.annotation, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, types.Document) and sent[field]:
                    check(inner, sent[field][0] if isinstance(sent[field], list) else sent[field])

    check(DOCUMENTS[name], example(SCHEMAS[name]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_fields_of_a_newer_server_are_kept_and_those_of_an_older_one_may_be_missing(name):
    kind, sent = DOCUMENTS[name], example(SCHEMAS[name])
    required = {field for field, info in kind.model_fields.items() if info.is_required()}
    document = kind.model_validate({field: sent[field] for field in required} | {"colour": {"red": 1}})

    assert document.model_dump()["colour"] == {"red": 1}
    with pytest.raises(ValidationError):
        kind.model_validate({})


def test_a_document_cannot_be_changed():
    job = types.Job.model_validate(example(SCHEMAS["Job"]))

    with pytest.raises(ValidationError):
        job.state = "succeeded"
