"""Everything that can go wrong on the user's side, as one tree.

EckartError                 catch this and nothing else gets past but OSError from your own disk
├── InputError              what you gave cannot be used; nothing was sent
├── LoadError               a compressed checkpoint and a model do not fit together
├── ServiceError            the service answered, but not with what was asked for: .status
│   ├── ProblemError        it says why: .problem
│   └── AnswerError         the answer cannot be understood: a proxy's page, another version
├── TransferError           the connection broke and did not come back in time
│   ├── UnreachableError    there was nobody at the address
│   └── DigestError         the bytes that arrived are not the bytes that were promised
├── JobFailed               the job ended without a result, failed or canceled: .job
└── WaitTimeoutError        the job goes on, but you would not wait longer: .job
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.job import Job
    from schemas.problem import FieldProblem, Problem

BUSY = frozenset({429, 502, 503, 504})


class EckartError(Exception):
    """Whatever the user's side raises; `errors` points at the bad fields, where there are any."""

    def __init__(self, message: str, *, errors: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class InputError(EckartError):
    """What you gave cannot be used; nothing was sent."""


class LoadError(EckartError):
    """A compressed checkpoint and a model do not fit together."""


class ServiceError(EckartError):
    """The service answered, but not with what was asked for."""

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
        """Whether the same request may well succeed a little later."""
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


class AnswerError(ServiceError):
    """The answer cannot be understood."""


class TransferError(EckartError):
    """The connection broke and did not come back in time."""


class UnreachableError(TransferError):
    """There was nobody at the address."""


class DigestError(TransferError):
    """The bytes that arrived are not the bytes that were promised."""


class JobFailed(EckartError):  # noqa: N818 - it tells of the job's end, not of a mistake in the program
    """The job ended without a result: it failed or was canceled."""

    def __init__(self, job: Job) -> None:
        end = job.error.detail if job.error else f"it was {job.state}"
        super().__init__(f"job {job.id} {job.state}: {end}", errors=job.error.errors if job.error else ())
        self.job = job


class WaitTimeoutError(EckartError):
    """The job goes on, but you would not wait longer."""

    def __init__(self, job: Job, *, timeout_s: float) -> None:
        super().__init__(f"job {job.id} is still {job.state} after {timeout_s:g} s; it goes on")
        self.job = job


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
    UnreachableError: "nobody answers at {url} ({why}); is the service running? `eckart serve` starts one",
    InputError: "{url} is not an address of a service ({why}); give one like http://127.0.0.1:8000",
}


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise our own errors for httpx's; the most specific class of the table wins."""
    try:
        yield
    except tuple(FOREIGN) as error:
        ours = next(FOREIGN[kind] for kind in type(error).__mro__ if kind in FOREIGN)
        why = str(error) or type(error).__name__
        raise ours(ADVICE[ours].format(url=url, why=why)) from error
