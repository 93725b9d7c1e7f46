"""A spec in any of its forms."""

from __future__ import annotations

import pytest

from eckart.errors import InputError
from eckart.spec import as_spec
from schemas.spec import CompressionSpec

DOCUMENT = {"method": "cx", "rank": {"ratio": 0.5}}


@pytest.mark.parametrize(
    "given",
    [
        CompressionSpec.model_validate(DOCUMENT),
        DOCUMENT,
        '{"method": "cx", "rank": {"ratio": 0.5}}',
        b'{"method": "cx", "rank": {"ratio": 0.5}}',
    ],
    ids=["model", "mapping", "text", "bytes"],
)
def test_a_spec_may_be_a_model_a_mapping_or_json(given):
    assert as_spec(given) == CompressionSpec.model_validate(DOCUMENT)


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"rank": {"ratio": 7}}, "/rank/ratio"),
        ({"rank": 4, "method": "lu"}, "/method"),
        ({"rank": 4, "more": 1}, "/more"),
        ({}, "/rank"),
        ("{", ""),
        (b"\xff", ""),
        ("[" * 5000, ""),
    ],
)
def test_a_bad_spec_is_refused_with_the_field(given, pointer):
    with pytest.raises(InputError, match="the spec is not valid") as caught:
        as_spec(given)

    assert pointer in [field.pointer for field in caught.value.errors]
