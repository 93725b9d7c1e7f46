"""Whose each request is, by its API key. One without a key is refused before its body is read."""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.problem import ProblemKind
from service.access.keys import WITHOUT_KEYS, KeyRing
from service.errors import ProblemError
from service.problems import ProblemResponse

BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)
# Probes have no keys and are told nothing of anybody; the pages and the schema are the same for all.
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/livez", "/readyz"})
OPEN_FOLDERS = ("/docs/", "/ui/")


class Authentication:
    """Finds out whose a request is, as `request.state.owner`, or refuses it before its body is read."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = self._owner(scope) if scope["type"] == "http" else WITHOUT_KEYS
        if owner is None:
            await ProblemResponse(ProblemError(ProblemKind.UNAUTHORIZED))(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        await self.app(scope, receive, send)

    def _owner(self, scope: Scope) -> str | None:
        if self._keys is None:
            return WITHOUT_KEYS
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return WITHOUT_KEYS
        secret = _secret(Headers(scope=scope))
        return None if secret is None else self._keys.owner_of(secret)


def _secret(headers: Headers) -> str | None:
    if bearer := BEARER.fullmatch(headers.get("authorization", "").strip()):
        return bearer[1]
    return headers.get("x-api-key", "").strip() or None
