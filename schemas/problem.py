"""RFC 9457 problem details: every error the service or a job reports."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from schemas.base import Output

TYPE_PREFIX = "urn:eckart:problem:"

# Where a field is a union, pydantic puts the branch it chose into the path; no field bears these names.
UNION_TAGS = frozenset({"integer", "rule"})


class FieldProblem(Output):
    """One bad field."""

    pointer: str = Field(description="JSON pointer to the field.", examples=["/rank/ratio"])
    detail: str = Field(
        description="What is wrong with it.", examples=["Input should be less than or equal to 1"]
    )


class Problem(Output):
    """What went wrong and what to do about it."""

    type: str = Field(
        description="A stable name of the kind of problem.", examples=["urn:eckart:problem:invalid-spec"]
    )
    title: str = Field(description="The kind of problem in a few words.", examples=["The spec is not valid"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(
        description="This problem: what is wrong, where, and what to do.",
        examples=["1 field of the spec is not valid. Fix the fields listed in `errors` and resend."],
    )
    errors: tuple[FieldProblem, ...] = Field(
        description="The bad fields, where there are any.",
        examples=[[{"pointer": "/rank/ratio", "detail": "Input should be less than or equal to 1"}]],
    )


def problem(
    slug: str, title: str, status: int, detail: str, *, errors: tuple[FieldProblem, ...] = ()
) -> Problem:
    """Build a problem from the last part of its type."""
    return Problem(type=TYPE_PREFIX + slug, title=title, status=status, detail=detail, errors=errors)


def field_problems(errors: Iterable[Mapping[str, Any]]) -> tuple[FieldProblem, ...]:
    """Turn pydantic's errors into pointers and sentences, without the offending values."""
    return tuple(FieldProblem(pointer=_pointer(e["loc"]), detail=_sentence(e)) for e in errors)


def _sentence(error: Mapping[str, Any]) -> str:
    """Say in our words what pydantic says in those of a program."""
    if error["type"] == "extra_forbidden":
        return "there is no such field; is it misspelled, or in the wrong place?"
    if "integer" in error["loc"] and error["type"].startswith("int_"):
        return 'give a whole number such as 64, or a rule such as {"ratio": 0.5}'
    return str(error["msg"])


def _pointer(path: Iterable[int | str]) -> str:
    steps = (str(step) for step in path if step not in UNION_TAGS)
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


class SpecError(ValueError):
    """What cannot be met: `pointer` is the field within the spec, `detail` names the layer and the remedy."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(pointer, detail)
        self.pointer = pointer
        self.detail = detail

    def __str__(self) -> str:
        return self.detail
