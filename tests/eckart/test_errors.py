"""The tree of errors, and the table that maps httpx's into it."""

from __future__ import annotations

import inspect
import json
import traceback

import httpx
import pytest

import eckart
from eckart import errors
from eckart.errors import (
    EckartError,
    InputError,
    JobFailed,
    ProblemError,
    TransferError,
    UnreachableError,
    translate_errors,
)
from eckart.types import Job, Problem


def classes(module, base):
    return [thing for _, thing in inspect.getmembers(module, inspect.isclass) if issubclass(thing, base)]


def test_the_drawn_tree_is_the_real_one():
    lines = [line for line in errors.__doc__.splitlines() if "Error" in line or "JobFailed" in line]
    drawn = {}
    path = []
    for line in lines:
        depth = sum(line.count(mark) for mark in ("├", "└", "│"))
        depth += line.startswith("    └") + line.startswith("    ├")
        name = line.strip("│├└─ ").split()[0]
        path[depth:] = [name]
        drawn[name] = path[depth - 1] if depth else "Exception"

    assert drawn == {kind.__name__: kind.__mro__[1].__name__ for kind in classes(errors, EckartError)}


@pytest.mark.parametrize("kind", classes(httpx, Exception), ids=lambda kind: kind.__name__)
def test_every_error_of_httpx_becomes_one_of_ours(kind):
    foreign = Exception.__new__(kind)

    with pytest.raises(EckartError) as caught, translate_errors("http://here"):
        raise foreign

    assert caught.value.__cause__ is foreign
    assert "http://here" in str(caught.value)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (httpx.ConnectError("refused"), UnreachableError),
        (httpx.ConnectTimeout("late"), UnreachableError),
        (httpx.ReadTimeout("late"), TransferError),
        (httpx.RemoteProtocolError("cut"), TransferError),
        (httpx.UnsupportedProtocol("none"), InputError),
        (httpx.InvalidURL("bad"), InputError),
    ],
)
def test_the_most_specific_class_of_the_table_wins(foreign, ours):
    with pytest.raises(EckartError) as caught, translate_errors("http://here"):
        raise foreign

    assert type(caught.value) is ours


def test_what_is_not_httpxs_passes_untouched():
    with pytest.raises(ZeroDivisionError), translate_errors("http://here"):
        raise ZeroDivisionError


def test_all_public_errors_are_in_one_tree():
    assert {kind.__name__ for kind in classes(errors, EckartError)} <= set(eckart.__all__)


def test_a_problem_says_what_is_wrong_and_where(problem):
    fields = [{"pointer": "/rank/ratio", "detail": "too large"}]
    error = ProblemError(Problem.model_validate(problem(errors=fields)))

    assert str(error) == "The spec is not valid: fix it"
    assert [(field.pointer, field.detail) for field in error.errors] == [("/rank/ratio", "too large")]
    assert error.status == 422


def test_a_failed_job_tells_its_reason(job, problem):
    error = JobFailed(
        Job.model_validate_json(json.dumps(job("failed", error=problem(detail="The file is cut."))))
    )

    assert str(error) == "job J1 failed: The file is cut."
    assert error.job.id == "J1"


def test_a_canceled_job_says_so(job):
    assert (
        str(JobFailed(Job.model_validate_json(json.dumps(job("canceled")))))
        == "job J1 canceled: it was canceled"
    )


def test_the_traceback_of_a_refusal_names_the_bad_fields():
    field = {"pointer": "/spec/rank/ratio", "detail": "Input should be less than or equal to 1"}
    problem = Problem(
        type="urn:eckart:problem:invalid-spec", title="t", status=422, detail="d", errors=[field]
    )

    shown = "".join(traceback.format_exception(ProblemError(problem)))
    assert "/spec/rank/ratio: Input should be less than or equal to 1" in shown
