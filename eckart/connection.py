"""One service at one address: requests that outlive a dropped connection or a busy moment."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from eckart.errors import (
    AnswerError,
    DigestError,
    EckartError,
    ProblemError,
    ServiceError,
    TransferError,
    UnreachableError,
    translated,
)
from eckart.patience import Patience, retry_after_s
from schemas.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Model = TypeVar("Model", bound=BaseModel)

# A proxy that is set for the world must not be asked for this very machine.
LOCAL = ("all://localhost", "all://127.0.0.1", "all://[::1]")


@dataclass(frozen=True, slots=True)
class Call:
    """One request; `content` makes its body anew for each try."""

    method: str
    path: str
    params: Mapping[str, str | int] | None = None
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    content: Callable[[], Iterator[bytes]] | None = None
    answer_s: float = 0.0  # how long the answer may take beyond the usual


class Connection:
    """An httpx client that speaks our errors and tries again where that may help."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        patience_s: float,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self.base_url = base_url
        self.patience_s = patience_s
        self._timeout_s = timeout_s
        self._answered = False
        with translated(base_url):
            self._http = httpx.Client(
                base_url=base_url,
                transport=transport,
                mounts=dict.fromkeys(LOCAL),
                headers={"Accept-Encoding": "identity"},
            )

    def close(self) -> None:
        self._http.close()

    def ask(self, call: Call, *, patience_s: float | None = None) -> httpx.Response:
        """Send a request that is harmless twice until it is answered, and read the answer whole."""
        patience = Patience(self.patience_s if patience_s is None else patience_s)
        while True:
            try:
                with self.open(call) as response:
                    response.read()
                    return response
            except EckartError as error:
                self.pause_or_raise(error, patience)

    def pause_or_raise(self, error: EckartError, patience: Patience) -> None:
        """Wait before another try if one may help."""
        if not self._may_pass(error):
            raise error
        patience.pause(error, asked_s=error.retry_after_s if isinstance(error, ServiceError) else None)

    @contextmanager
    def open(self, call: Call) -> Iterator[httpx.Response]:
        """Send a request once and give the answer, its body unread, if it is a good one."""
        request = self._http.build_request(
            call.method,
            call.path,
            params=call.params,
            json=call.json,
            headers=call.headers,
            content=call.content() if call.content else None,
            timeout=httpx.Timeout(self._timeout_s, read=self._timeout_s + call.answer_s),
        )
        with translated(self.base_url):
            response = self._http.send(request, stream=True)
            try:
                self._answered = True
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                yield response
            finally:
                response.close()

    def _may_pass(self, error: EckartError) -> bool:
        if isinstance(error, ServiceError):
            return error.passing
        if isinstance(error, UnreachableError):
            return self._answered  # a service that was never there will not come: say so at once
        return isinstance(error, TransferError) and not isinstance(error, DigestError)


def refusal(response: httpx.Response) -> ServiceError:
    """Make an error of an answer that is none; what is no problem document is quoted."""
    pause_s = retry_after_s(response.headers.get("Retry-After"))
    try:
        return ProblemError(
            Problem.model_validate_json(response.content, extra="ignore"), retry_after_s=pause_s
        )
    except ValidationError:
        said = ascii(response.text[:200])[1:-1]
        return AnswerError(
            f"{response.request.method} {response.request.url} was answered with "
            f"{response.status_code} {response.reason_phrase}: {said}",
            status=response.status_code,
            retry_after_s=pause_s,
        )


def parse(model: type[Model], response: httpx.Response) -> Model:
    """Read a good answer; fields that a newer service adds are let by."""
    try:
        return model.model_validate_json(response.content, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise AnswerError(
            f"the answer to {response.request.method} {response.request.url} is no {model.__name__} that "
            f"this version of eckart understands ({first['msg']} at /{'/'.join(map(str, first['loc']))}); "
            "upgrade the older of the two sides",
            status=response.status_code,
            retry_after_s=None,
        ) from error
