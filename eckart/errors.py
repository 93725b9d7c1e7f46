"""Everything that can go wrong on the user's side, as one tree.

EckartError                 the base class of all; only OSError from your own disk is outside of it
├── InputError              your input cannot be used
├── LoadError               a compressed checkpoint and a model do not fit together
├── ServiceError            the service answered with an error: .status
│   ├── ProblemError        it says why: .problem
│   └── AnswerError         the answer cannot be understood: a proxy's page, another version
├── TransferError           the connection broke and did not come back in time
│   ├── UnreachableError    no service answers at the address
│   └── DigestError         the bytes that arrived do not have the promised SHA-256
├── JobFailed               the job ended without a result, failed or canceled: .job
└── WaitTimeoutError        the job still runs, but your timeout is over: .job
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eckart.types import FieldProblem, Job, Problem

BUSY = frozenset({429, 502, 503, 504})


class EckartError(Exception):
    """The base class of what the user's side raises; `errors` lists the bad fields, if there are any."""

    def __init__(self, message: str, *, errors: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class InputError(EckartError):
    """Your input cannot be used."""


class LoadError(EckartError):
    """A compressed checkpoint and a model do not fit together."""


class ServiceError(EckartError):
    """The service answered with an error."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        retry_after_s: float | None,
        errors: tuple[FieldProblem, ...] = (),
    ) -> None:
        super().__init__(message, errors=errors)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.status in BUSY


class ProblemError(ServiceError):
    """The service refused, and says why."""

    def __init__(self, problem: Problem, *, retry_after_s: float | None = None) -> None:
        super().__init__(
            f"{problem.title}: {problem.detail}",
            status=problem.status,
            retry_after_s=retry_after_s,
            errors=problem.errors,
        )
        self.problem = problem
        for field in problem.errors:
            # A traceback shows notes; the message alone would not say which field is wrong.
            self.add_note(f"{field.pointer}: {field.detail}")


class AnswerError(ServiceError):
    """The answer cannot be understood."""


class TransferError(EckartError):
    """The connection broke and did not come back in time."""


class UnreachableError(TransferError):
    """No service answers at the address."""


class DigestError(TransferError):
    """The bytes that arrived do not have the promised SHA-256."""


class JobFailed(EckartError):  # noqa: N818 - it describes the end of a job, not a mistake in the program
    """The job ended without a result: it failed or was canceled."""

    def __init__(self, job: Job) -> None:
        end = job.error.detail if job.error else f"it was {job.state}"
        super().__init__(f"job {job.id} {job.state}: {end}", errors=job.error.errors if job.error else ())
        self.job = job


class WaitTimeoutError(EckartError):
    """The job still runs, but your timeout is over."""

    def __init__(self, job: Job, *, timeout_s: float) -> None:
        super().__init__(f"job {job.id} is still {job.state} after {timeout_s:g} s; it goes on")
        self.job = job


def missing_extra(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """Return the error of a package that is not installed, with the extra that brings it."""
    return ModuleNotFoundError(f"{error.msg}: pip install 'eckart[{extra}]'", name=error.name)


FOREIGN: dict[type[Exception], type[EckartError]] = {
    httpx.HTTPError: TransferError,
    httpx.StreamError: TransferError,
    httpx.CookieConflict: TransferError,
    httpx.ConnectError: UnreachableError,
    httpx.ConnectTimeout: UnreachableError,
    httpx.ProxyError: UnreachableError,
    httpx.UnsupportedProtocol: InputError,
    httpx.InvalidURL: InputError,
}
ADVICE: dict[type[EckartError], str] = {
    TransferError: "the connection to {url} failed: {why}",
    UnreachableError: "no service answers at {url} ({why}); `eckart serve` starts one",
    InputError: "{url} is not the address of a service ({why}); give one like http://127.0.0.1:8000",
}


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Raise our own errors in place of httpx's; the most specific class of the table wins."""
    try:
        yield
    except tuple(FOREIGN) as error:
        ours = next(FOREIGN[kind] for kind in type(error).__mro__ if kind in FOREIGN)
        why = str(error) or type(error).__name__
        raise ours(ADVICE[ours].format(url=url, why=why)) from error
