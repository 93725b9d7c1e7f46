"""Turning whatever was raised into a problem+json answer: one table, one handler."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from schemas.format.errors import CheckpointError
from schemas.problem import field_problems
from service import errors
from state import errors as state
from state.files import FULL

MAX_FIELD_PROBLEMS = 50
CLIENT_CLOSED_REQUEST = 499
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")

log = logging.getLogger("eckart.service")


class ProblemResponse(JSONResponse):
    """RFC 9457."""

    media_type = "application/problem+json"

    def __init__(self, refusal: errors.Refusal) -> None:
        super().__init__(
            refusal.problem().model_dump(mode="json"), refusal.status, headers=refusal.sent_headers
        )


def invalid_fields(
    kind: type[errors.InvalidRequest], found: list[Mapping[str, Any]], subject: str
) -> errors.Refusal:
    """Say which fields are bad, without their values."""
    count = f"1 field of the {subject} is" if len(found) == 1 else f"{len(found)} fields of the {subject} are"
    first = f" The first {MAX_FIELD_PROBLEMS} are listed." if len(found) > MAX_FIELD_PROBLEMS else ""
    detail = f"{count} not valid; mend what errors lists and send the request again.{first}"
    return kind(detail, errors=field_problems(found[:MAX_FIELD_PROBLEMS]))


def _of_framework(error: HTTPException) -> errors.Refusal:
    kinds: dict[int, type[errors.Refusal]] = {
        404: errors.NotFound,
        405: errors.MethodNotAllowed,
        413: errors.TooLarge,
        415: errors.UnsupportedMediaType,
    }
    return kinds.get(error.status_code, errors.InvalidRequest)(headers=error.headers)


def _of_validation(error: RequestValidationError) -> errors.Refusal:
    return invalid_fields(errors.InvalidRequest, list(error.errors()), "request")


def _of_checkpoint(error: CheckpointError) -> errors.Refusal:
    return errors.InvalidCheckpoint(error.code, error.detail, pointer=error.pointer)


def _said(kind: type[errors.Refusal]) -> Callable[[Exception], errors.Refusal]:
    """Keep the words of the error itself."""
    return lambda error: kind(str(error))


def _of_os(error: OSError) -> errors.Refusal:
    if error.errno in FULL:
        return errors.OutOfSpace()
    log.error("the file system failed", exc_info=error)
    return errors.InternalError()


TRANSLATIONS: dict[type[Exception], Callable[[Any], errors.Refusal]] = {
    HTTPException: _of_framework,
    RequestValidationError: _of_validation,
    CheckpointError: _of_checkpoint,
    OSError: _of_os,
    state.JobNotFound: _said(errors.JobNotFound),
    state.CheckpointNotFound: _said(errors.CheckpointNotFound),
    state.ContentConflict: _said(errors.ContentConflict),
    state.CheckpointInUse: _said(errors.CheckpointInUse),
    state.CheckpointGone: _said(errors.CheckpointGone),
    state.IdempotencyConflict: _said(errors.IdempotencyMismatch),
    state.DigestMismatch: _said(errors.DigestMismatch),
    state.TooLarge: _said(errors.TooLarge),
    state.NoSpace: _said(errors.OutOfSpace),
    state.BadCursor: _said(errors.InvalidRequest),
    state.StoreUnavailable: _said(errors.StoreUnavailable),
}


def translated(error: Exception) -> errors.Refusal:
    """Return the refusal that a foreign error amounts to; the most specific entry of the table wins."""
    if isinstance(error, errors.Refusal):
        return error
    found = next((TRANSLATIONS[kind] for kind in type(error).__mro__ if kind in TRANSLATIONS), None)
    return found(error) if found else errors.InternalError()


async def answer(request: Request, error: Exception) -> Response:
    """Answer with the problem that was raised."""
    refusal = translated(error)
    response = ProblemResponse(refusal)
    if isinstance(refusal, errors.MethodNotAllowed):
        response.headers["Allow"] = ", ".join(_methods(request))
    if request_id := request.scope.get("state", {}).get("request_id"):
        response.headers["X-Request-ID"] = request_id
    return response


def _methods(request: Request) -> list[str]:
    """Ask every route, for Starlette's own Allow header names the methods of the first alone."""
    routes = request.app.routes
    scope = dict(request.scope)
    return [m for m in METHODS if any(r.matches({**scope, "method": m})[0] == Match.FULL for r in routes)]


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


HANDLERS: dict[int | type[Exception], Any] = {
    ClientDisconnect: _gone,
    errors.Refusal: answer,
    **dict.fromkeys(TRANSLATIONS, answer),
    Exception: answer,
}
