"""The page at `/`: one document, its styles and its modules, which are files beside this package."""

import hashlib
import html
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from schemas.problem import ProblemKind
from schemas.spec import DEFAULT_EXCLUDE
from service.dependencies import IfNoneMatch, RootPath
from service.errors import ProblemError
from service.headers import etag_matches

router = APIRouter(include_in_schema=False)

FOLDER = files("service") / "ui"
INDEX = "index.html"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Scripts that the page's modules do not import: one runs before them, one is in each report's own page.
NOT_IMPORTED = {"theme.js", "report-page.js"}
PRELOAD = '<link rel="modulepreload" href="{root_path}/ui/{name}">'


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
    """Read the document, and name all modules in it, or a browser finds them one after another."""
    modules = (
        PRELOAD.replace("{name}", name)
        for name in sorted(assets())
        if name.endswith(".js") and name not in NOT_IMPORTED
    )
    text = (FOLDER / INDEX).read_text("utf-8")
    text = text.replace("{modules}", "\n".join(modules))
    return text.replace("{exclude}", html.escape(" ".join(DEFAULT_EXCLUDE)))


@router.head("/")
@router.get("/")
async def show_page(root_path: RootPath, if_none_match: IfNoneMatch = None) -> Response:
    """Show the page; its addresses lead back through the proxy."""
    content = _document().replace("{root_path}", root_path).encode()
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
        # With its type, by which it gets its policy: the headers of a 304 replace those that the browser has.
        return Response(status_code=304, headers=headers, media_type=asset.media_type)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
