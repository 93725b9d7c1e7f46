"""Exception handlers: every exception becomes an application/problem+json answer."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from schemas.digest import DigestHeaderError
from schemas.format.errors import CheckpointError
from schemas.problem import ProblemKind, field_problems
from service.errors import ProblemError
from state.errors import OutOfSpace, StateError
from state.files import DISK_FULL

MAX_FIELD_PROBLEMS = 50
CLIENT_CLOSED_REQUEST = 499
NAMELESS_UPLOAD = (
    "This address names a checkpoint, but no file of it. End it with a slash, and `curl -T` appends the "
    "file's name; other clients write the name after the slash."
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

log = logging.getLogger("eckart.service")


class ProblemResponse(JSONResponse):
    """A problem document of RFC 9457."""

    media_type = "application/problem+json"

    def __init__(self, error: ProblemError) -> None:
        super().__init__(error.problem().model_dump(mode="json"), error.kind.status, headers=error.headers)


def invalid_fields(
    kind: ProblemKind, found: list[Mapping[str, Any]], subject: str, model: type[BaseModel] | None = None
) -> ProblemError:
    """List the fields that pydantic found invalid, without their values."""
    count = f"1 field of the {subject} is" if len(found) == 1 else f"{len(found)} fields of the {subject} are"
    first = f" The first {MAX_FIELD_PROBLEMS} are listed." if len(found) > MAX_FIELD_PROBLEMS else ""
    detail = f"{count} not valid. Fix the fields listed in `errors` and resend.{first}"
    return ProblemError(kind, detail, errors=field_problems(found[:MAX_FIELD_PROBLEMS], model))


def _from_http_exception(error: HTTPException) -> ProblemError:
    if error.status_code == 404:
        return ProblemError(ProblemKind.NOT_FOUND, headers=error.headers)
    if error.status_code == 405:
        allowed = "The Allow header lists the methods of this address."
        return ProblemError(ProblemKind.METHOD_NOT_ALLOWED, allowed, headers=error.headers)
    reason = "The request breaks a rule of this address; /docs lists the rules."
    return ProblemError(ProblemKind.INVALID_REQUEST, reason, headers=error.headers)


def _from_validation_error(error: RequestValidationError) -> ProblemError:
    # A parameter that a route and its dependencies ask for is checked for each of them.
    found = {(each["loc"], each["msg"]): each for each in error.errors()}
    return invalid_fields(ProblemKind.INVALID_REQUEST, list(found.values()), "request")


def _from_checkpoint_error(error: CheckpointError) -> ProblemError:
    return ProblemError(
        ProblemKind.INVALID_CHECKPOINT, error.detail, fault=error.fault, pointer=error.pointer
    )


def _from_digest_error(error: DigestHeaderError) -> ProblemError:
    return ProblemError(ProblemKind.INVALID_REQUEST, str(error))


def _from_state_error(error: StateError) -> ProblemError:
    return ProblemError(error.kind, values=error.values)


def _from_os_error(error: OSError) -> ProblemError:
    if error.errno in DISK_FULL:
        return _from_state_error(OutOfSpace())
    log.error("the file system failed", exc_info=error)
    return ProblemError(ProblemKind.INTERNAL_ERROR)


CONVERTERS: dict[type[Exception], Callable[[Any], ProblemError]] = {
    HTTPException: _from_http_exception,
    RequestValidationError: _from_validation_error,
    CheckpointError: _from_checkpoint_error,
    DigestHeaderError: _from_digest_error,
    OSError: _from_os_error,
    StateError: _from_state_error,
}


def to_problem(error: Exception) -> ProblemError:
    """Convert any exception; the converter of its nearest base class is used."""
    if isinstance(error, ProblemError):
        return error
    convert = next((CONVERTERS[base] for base in type(error).__mro__ if base in CONVERTERS), None)
    return convert(error) if convert else ProblemError(ProblemKind.INTERNAL_ERROR)


async def handle_exception(request: Request, error: Exception) -> Response:
    converted = to_problem(error)
    if converted.kind is ProblemKind.METHOD_NOT_ALLOWED and _is_upload_without_name(request):
        converted = ProblemError(ProblemKind.METHOD_NOT_ALLOWED, NAMELESS_UPLOAD)
    response = ProblemResponse(converted)
    if converted.kind is ProblemKind.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    # An exception that no one expected is answered outside the middleware that sets this header.
    if request_id := request.scope.get("state", {}).get("request_id"):
        response.headers["X-Request-ID"] = request_id
    return response


def _is_upload_without_name(request: Request) -> bool:
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return request.method == "PUT" and re.fullmatch("/v1/checkpoints/[^/]+", path) is not None


def _allowed_methods(request: Request) -> list[str]:
    # Starlette's own Allow header names only the methods of the first route that matches the path.
    routes = request.app.routes
    scope = dict(request.scope)
    return [m for m in METHODS if any(r.matches({**scope, "method": m})[0] == Match.FULL for r in routes)]


async def _handle_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


HANDLERS: dict[int | type[Exception], Any] = {
    ClientDisconnect: _handle_disconnect,
    ProblemError: handle_exception,
    **dict.fromkeys(CONVERTERS, handle_exception),
    Exception: handle_exception,
}
