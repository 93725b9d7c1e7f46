"""The compression spec as a user gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from eckart.errors import InputError
from schemas.problem import field_problems
from schemas.spec import CompressionSpec

Spec = CompressionSpec | Mapping[str, Any] | str | bytes


def as_spec(given: Spec) -> CompressionSpec:
    """Check a spec given as a model, as a mapping or as JSON text."""
    if isinstance(given, CompressionSpec):
        return given
    try:
        if isinstance(given, str | bytes):
            return CompressionSpec.model_validate_json(given)
        return CompressionSpec.model_validate(dict(given))
    except ValidationError as error:
        fields = field_problems(error.errors(include_url=False))
        raise InputError("the spec is not valid", errors=fields) from error


def refuse_two_calibrations(spec: CompressionSpec) -> None:
    """Refuse a calibration that is given beside one that the spec names."""
    if spec.calibration is not None:
        raise InputError(f"the spec names the calibration {spec.calibration}; leave one of the two out")
