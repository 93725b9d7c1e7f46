"""Which kind of body a request says it has."""

from starlette.requests import Request

from service import errors


def media_type(request: Request) -> str:
    """Return the Content-Type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_multipart(request: Request) -> bool:
    """Say whether it is a form of parts."""
    return media_type(request) == "multipart/form-data"


def require_json(request: Request) -> None:
    """Refuse what is not called JSON."""
    kind = media_type(request)
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise errors.UnsupportedMediaType
