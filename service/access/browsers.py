"""What keeps foreign web pages off: the host that a request names, its page, and the headers of answers.

A browser sends requests of any page to a service on 127.0.0.1 too. A page whose name was rebound to that
address even reads the answers, but its name stays in Host.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.problem import ProblemKind
from service.errors import ProblemError
from service.problems import ProblemResponse
from service.settings import is_address

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
ANY_HOST = "*"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Answered under any name: probes name whatever they like, and the answers are the same for all.
PROBES = frozenset({"/livez", "/readyz"})

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
# Pages use scripts, styles and images of this service, and talk to it alone.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class AllowedHosts:
    """The hosts under which the service answers: its own address, this machine's names, and the given.

    Where keys are needed and no host is given, it is any: a page under a rebound name knows no key.
    """

    def __init__(self, bound: str, named: tuple[str, ...], *, with_keys: bool = False) -> None:
        self._any = ANY_HOST in named
        self._any_name = self._any or (with_keys and not named)
        self._named = frozenset(named)
        self._names = LOOPBACK | {bound.lower().strip("[]")} | set(named)
        # Bound to all addresses of the machine, it has no way to know them. An address cannot be rebound.
        self._any_address = _is_unspecified(bound)

    def __contains__(self, host: str | None) -> bool:
        if self._any_name:
            return True
        return host is not None and (host in self._names or (self._any_address and is_address(host)))

    def has_page(self, origin: str) -> bool:
        """Whether pages of this origin, which is not that of the request's host, count as the service's.

        Those of named hosts do, since a proxy may put another Host in place. Those of this machine do not:
        another program may serve them, on another port. That any name is answered names no page.
        """
        return self._any or host_of(urlsplit(origin).netloc) in self._named


class ForeignRequests:
    """Refuses requests for hosts that are not the service's, and unsafe ones of another site's page."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self.app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        answer = self.app if refusal is None else ProblemResponse(ProblemError(refusal))
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> ProblemKind | None:
        headers = Headers(scope=scope)
        given = headers.getlist("host")
        # HTTP/1.0 knows no Host, and no browser speaks it.
        required = scope.get("http_version") != "1.0"
        if len(given) > 1 or (required and not "".join(given).strip()):
            return ProblemKind.INVALID_HTTP
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if given and path not in PROBES and host_of(given[0]) not in self._hosts:
            return ProblemKind.FOREIGN_HOST
        if scope["method"] not in SAFE_METHODS and self._is_of_another_site(headers):
            return ProblemKind.CROSS_SITE
        return None

    def _is_of_another_site(self, headers: Headers) -> bool:
        """Decide by what browsers say of the page; other clients send neither header."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site not in {"same-origin", "none"}
        origin = headers.get("origin")
        if origin is None:
            return False
        try:
            is_own = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
            return not (is_own or self._hosts.has_page(origin))
        except ValueError:
            return True


class SecurityHeaders:
    """Adds the headers that tell browsers what an answer may do; outermost, so that no answer lacks them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                is_page = headers.get("content-type", "").startswith("text/html")
                headers.setdefault("Content-Security-Policy", PAGE_POLICY if is_page else DATA_POLICY)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def host_of(field: str) -> str | None:
    """Return the host of a Host header without its port, in lower case; None if it is malformed."""
    try:
        parts = urlsplit(f"//{field.strip()}")
        parts.port  # noqa: B018 - raises on a port that is none
    except ValueError:
        return None
    if parts.hostname is None or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname.removesuffix(".")


def _is_unspecified(host: str) -> bool:
    return not host or (
        is_address(host.strip("[]")) and ipaddress.ip_address(host.strip("[]")).is_unspecified
    )
