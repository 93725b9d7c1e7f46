"""Response headers that identify a file's content, and the request headers that refer to it."""

import re

from starlette.requests import Request

from schemas.digest import repr_digest
from schemas.problem import ProblemKind
from service.errors import ProblemError

QUALITY = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?")


def content_headers(sha256: str) -> dict[str, str]:
    """Identify a file by its SHA-256, given in hexadecimal."""
    return {"ETag": f'"{sha256}"', "Repr-Digest": repr_digest(sha256)}


def etag_matches(etag: str, if_none_match: str | None) -> bool:
    """Whether the client already has the representation: the weak comparison of RFC 9110."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def if_match_holds(etag: str | None, if_match: str) -> bool:
    """Whether what is there is one that the client names: the strong comparison; None: it has no ETag."""
    tags = {tag.strip() for tag in if_match.split(",")}
    return "*" in tags or etag in tags


def preferred_type(request: Request, *offered: str) -> str:
    """Return the media type that the client likes best, of equals the first; refuse if it takes none."""
    accepted = _qualities(",".join(request.headers.getlist("accept")))

    def quality(kind: str) -> float:
        """Take the range that names the type most closely, RFC 9110, 12.5.1."""
        ranges = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        return next((accepted[name] for name in ranges if name in accepted), 0.0)

    best = max(offered, key=quality)
    if not quality(best):
        raise ProblemError(ProblemKind.NOT_ACCEPTABLE)
    return best


def _qualities(accept: str) -> dict[str, float]:
    """Read an Accept header; what is malformed says nothing, and nothing takes all."""
    found: dict[str, float] = {}
    for part in accept.split(","):
        kind, *options = (word.strip().lower() for word in part.split(";"))
        quality = next((word[2:].strip() for word in options if word.startswith("q=")), "1")
        if kind and QUALITY.fullmatch(quality):
            found[kind] = max(float(quality), found.get(kind, 0.0))
    return found or {"*/*": 1.0}
