"""Sizes and offsets in a tensor's entry, and what is said of those at fault."""

from __future__ import annotations

import json
from typing import Any

from schemas.fault import CheckpointError, pointer, quoted, shown
from schemas.jsonscan import NumberText

# Sizes and offsets are read as signed 64-bit integers by torch and by file systems.
MAX_SIZE = 2**63 - 1


def parse_offsets(name: str, value: Any) -> tuple[int, int]:
    if type(value) is list and len(value) == 2:
        start, end = value
        if type(start) is int and type(end) is int and 0 <= start <= end <= MAX_SIZE:
            return start, end
    raise _bad_offsets(name, value)


def _bad_offsets(name: str, value: Any) -> CheckpointError:
    place = pointer(name, "data_offsets")
    subject = f"Tensor {quoted(name)}: data_offsets"
    if type(value) is not list or len(value) != 2:
        return CheckpointError(
            "bad-offsets", f"{subject} must be a list of two integers, begin and end.", place
        )
    for side, offset in zip(("begin", "end"), value, strict=True):
        if type(offset) is int and offset < 0:
            return CheckpointError("negative-offset", f"{subject} have a negative {side}, {offset}.", place)
        if type(offset) is not int or offset > MAX_SIZE:
            return bad_integer("bad-offsets", f"{subject} {side}", offset, place)
    start, end = value
    return CheckpointError(
        "reversed-offsets", f"{subject} end at {end}, before they begin at {start}.", place
    )


def bad_integer(code: str, subject: str, value: Any, place: str) -> CheckpointError:
    digits = str(value).lstrip("-")
    if type(value) in {int, NumberText} and digits.isdigit() and int(digits[:20]) > MAX_SIZE:
        return CheckpointError(
            "integer-too-large", f"{subject} is {shown(str(value))}, which exceeds 2^63 - 1.", place
        )
    return CheckpointError(code, f"{subject} must be an integer of at least 0, not {told(value)}.", place)


def told(value: Any) -> str:
    """Tell a JSON value in a few words."""
    if isinstance(value, tuple | list):
        return "an object" if isinstance(value, tuple) else "a list"
    if isinstance(value, NumberText):
        return shown(value)
    return quoted(value) if isinstance(value, str) else json.dumps(value)
