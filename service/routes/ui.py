"""The page at `/`: one document, its styles and its modules, which are files beside this package."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from schemas.problem import ProblemKind
from service.dependencies import IfNoneMatch, RootPath
from service.errors import ProblemError
from service.headers import etag_matches

router = APIRouter(include_in_schema=False)

FOLDER = files("service") / "ui"
INDEX = "index.html"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# What stands for the path of a proxy in the document.
ROOT_MARK = "{root_path}"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page as it is sent."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


@cache
def assets() -> dict[str, Asset]:
    """Read all files but the document; they are small, and only these names are answered."""
    return {
        entry.name: Asset(entry.read_bytes(), MEDIA_TYPES[suffix])
        for entry in FOLDER.iterdir()
        if (suffix := entry.name[entry.name.rfind(".") :]) in MEDIA_TYPES
    }


@cache
def _document() -> str:
    return (FOLDER / INDEX).read_text("utf-8")


@router.head("/")
@router.get("/")
async def show_page(root_path: RootPath, if_none_match: IfNoneMatch = None) -> Response:
    """Show the page; its addresses lead back through the proxy."""
    content = _document().replace(ROOT_MARK, root_path).encode()
    return _answer(Asset(content, "text/html"), if_none_match)


@router.head("/ui/{name}")
@router.get("/ui/{name}")
async def asset(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """Send a file of the page."""
    if name not in assets():
        raise ProblemError(ProblemKind.NOT_FOUND)
    return _answer(assets()[name], if_none_match)


def _answer(asset: Asset, if_none_match: str | None) -> Response:
    # Asked for again each time: modules of a new release must not meet those of an old one.
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache"}
    if etag_matches(asset.etag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
