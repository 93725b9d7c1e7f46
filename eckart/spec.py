"""A spec as a JSON object, and the schema that the command line builds its options from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from eckart.errors import InputError


class SpecModel(Protocol):
    """A pydantic model of a spec, such as the server's own."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the spec as JSON values."""


Spec = Mapping[str, Any] | SpecModel | str | bytes


def spec_document(spec: Spec) -> dict[str, Any]:
    """Return a spec as a JSON object; whether its fields are right, the service says."""
    try:
        if isinstance(spec, str | bytes):
            document = json.loads(spec)
        else:
            document = dict(spec) if isinstance(spec, Mapping) else spec.model_dump(mode="json")
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the spec is not valid: {error}") from error
    if not isinstance(document, dict):
        raise InputError("the spec is not valid: give a JSON object such as {'rank': {'ratio': 0.5}}")
    return document


@cache
def schema() -> dict[str, Any]:
    """Return the server's JSON schema of a `spec`, and its `reasons` to keep a layer dense.

    `make docs` writes the file from the server's own definitions.
    """
    content: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_bytes())
    return content
