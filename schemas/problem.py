"""RFC 9457 problem details: every error the service or a job reports."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from schemas.base import Output

TYPE_PREFIX = "urn:eckart:problem:"

# Where a field is a union, pydantic puts the chosen branch into the path; no field has these names.
UNION_TAGS = frozenset({"integer", "rule"})


class FieldProblem(Output):
    """One invalid field."""

    pointer: str = Field(description="JSON pointer to the field.", examples=["/rank/ratio"])
    detail: str = Field(
        description="What is wrong with the field.", examples=["Input should be less than or equal to 1"]
    )


class Problem(Output):
    """A problem document of RFC 9457: what went wrong and what to do about it."""

    type: str = Field(
        description="Stable name of the kind of problem.", examples=["urn:eckart:problem:invalid-spec"]
    )
    title: str = Field(description="The kind of problem in a few words.", examples=["The spec is not valid"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(
        description="What is wrong, where, and what to do.",
        examples=["1 field of the spec is not valid. Fix the fields listed in `errors` and resend."],
    )
    errors: tuple[FieldProblem, ...] = Field(
        description="The invalid fields, if any.",
        examples=[[{"pointer": "/rank/ratio", "detail": "Input should be less than or equal to 1"}]],
    )


def problem(
    slug: str, title: str, status: int, detail: str, *, errors: tuple[FieldProblem, ...] = ()
) -> Problem:
    """Build a problem; `slug` is the last part of its type."""
    return Problem(type=TYPE_PREFIX + slug, title=title, status=status, detail=detail, errors=errors)


def field_problems(errors: Iterable[Mapping[str, Any]]) -> tuple[FieldProblem, ...]:
    """Turn pydantic's errors into pointers and messages, without the invalid values."""
    return tuple(FieldProblem(pointer=_pointer(e["loc"]), detail=_sentence(e)) for e in errors)


def _sentence(error: Mapping[str, Any]) -> str:
    """Replace messages of pydantic that speak of Python instead of JSON."""
    if error["type"] == "extra_forbidden":
        return "unknown field; is it misspelled or in the wrong place?"
    if "integer" in error["loc"] and error["type"].startswith("int_"):
        return 'give a whole number such as 64, or a rule such as {"ratio": 0.5}'
    return str(error["msg"])


def _pointer(path: Iterable[int | str]) -> str:
    steps = (str(step) for step in path if step not in UNION_TAGS)
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


class SpecError(ValueError):
    """A checkpoint cannot meet the spec; `pointer` is a field of the spec, `detail` says what to change."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(pointer, detail)
        self.pointer = pointer
        self.detail = detail

    def __str__(self) -> str:
        return self.detail
