"""Specs as the client takes them: eckart/spec.py."""

import pytest

from eckart.errors import InputError
from eckart.spec import schema, spec_document
from schemas.report import KEPT_REASONS
from schemas.spec import CompressionSpec


def test_the_reasons_are_the_servers():
    assert schema()["reasons"] == KEPT_REASONS


DOCUMENT = {"method": "cx", "rank": {"ratio": 0.5}}


@pytest.mark.parametrize(
    "given",
    [
        DOCUMENT,
        CompressionSpec.model_validate(DOCUMENT),
        '{"method": "cx", "rank": {"ratio": 0.5}}',
        b'{"method": "cx", "rank": {"ratio": 0.5}}',
    ],
    ids=["mapping", "model", "text", "bytes"],
)
def test_a_spec_may_be_a_mapping_a_model_or_json(given):
    assert CompressionSpec.model_validate(spec_document(given)) == CompressionSpec.model_validate(DOCUMENT)


@pytest.mark.parametrize(
    "given",
    [
        "{",
        b"\xff",
        "[" * 5000,
        "[]",
        "4",
        {"rank": float("nan")},
        {"include": {"a"}},
        {"include": ["\udcff"]},
    ],
)
def test_a_spec_that_is_no_json_object_is_refused(given):
    with pytest.raises(InputError, match="the spec is not valid"):
        spec_document(given)
