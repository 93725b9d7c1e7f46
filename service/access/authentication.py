"""Whose each request is, by its API key or a signed link. Any other is refused before its body is read."""

import re
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.problem import ProblemKind
from service.access.keys import WITHOUT_KEYS, Key, KeyRing
from service.access.links import LinkSigner
from service.errors import ProblemError
from service.problems import ProblemResponse

BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)
# Probes have no keys and are told nothing of anybody; the pages and the schema are the same for all.
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/livez", "/readyz"})
OPEN_FOLDERS = ("/docs/", "/ui/")


class Authentication:
    """Finds out whose a request is, as `request.state.owner`, or refuses it before its body is read."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None, links: LinkSigner) -> None:
        self.app = app
        self._keys = keys
        self._links = links

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keys = self._keys
        if scope["type"] != "http" or keys is None or _is_open(scope):
            await self._pass_on(scope, receive, send, owner=WITHOUT_KEYS, key_is_known=lambda: True)
            return
        headers = Headers(scope=scope)
        secret = _secret(headers)
        if secret is not None:
            key = keys.find(secret)
        elif _may_be_linked(scope, headers):
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            query = scope["query_string"].decode("latin-1")
            key = await run_in_threadpool(self._links.find, keys, path, query)
        else:
            key = None
        if key is None:
            await ProblemResponse(ProblemError(ProblemKind.UNAUTHORIZED))(scope, receive, send)
            return
        known = lambda: key in keys  # noqa: E731 - of this key
        await self._pass_on(scope, receive, send, owner=key.owner, key=key, key_is_known=known)

    async def _pass_on(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        owner: str,
        key_is_known: Callable[[], bool],
        key: Key | None = None,
    ) -> None:
        scope.setdefault("state", {}).update(owner=owner, key=key, key_is_known=key_is_known)
        await self.app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def _may_be_linked(scope: Scope, headers: Headers) -> bool:
    """Whether a request reads, and has no key: a wrong one is refused whatever its address is."""
    has_key = "authorization" in headers or "x-api-key" in headers
    return scope["method"] in {"GET", "HEAD"} and not has_key and bool(scope["query_string"])


def _secret(headers: Headers) -> str | None:
    """Return the one secret that all these headers, also repeated ones, agree on; None if there is none."""
    bearers = (BEARER.fullmatch(field.strip()) for field in headers.getlist("authorization"))
    given = {bearer[1] for bearer in bearers if bearer}
    given |= {field.strip() for field in headers.getlist("x-api-key")} - {""}
    return given.pop() if len(given) == 1 else None
