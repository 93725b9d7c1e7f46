"""Response headers that identify a file's content, and the request headers that refer to it."""

from starlette.requests import Request

from schemas.digest import repr_digest
from schemas.problem import ProblemKind
from service.errors import ProblemError


def content_headers(sha256: str) -> dict[str, str]:
    """Identify a file by its SHA-256, given in hexadecimal."""
    return {"ETag": f'"{sha256}"', "Repr-Digest": repr_digest(sha256)}


def etag_matches(etag: str, if_none_match: str | None) -> bool:
    """Whether the client already has the representation: the weak comparison of RFC 9110."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def require_json_accepted(request: Request) -> None:
    """Refuse a client whose Accept header excludes JSON."""
    accepted = (part.partition(";") for part in request.headers.get("accept", "*/*").split(","))
    wanted = {kind.strip().lower() for kind, _, options in accepted if options.replace(" ", "") != "q=0"}
    if not wanted & {"application/json", "application/*", "*/*"}:
        raise ProblemError(ProblemKind.NOT_ACCEPTABLE)
