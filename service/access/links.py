"""Links that need no key: signed for one address of a result and for an hour, since links send no headers."""

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable

from service.access.keys import Key

LIFE_S = 3600
# The last parameter of a signed address; all that is before it is signed.
PARAMETER = "link"
SIGNED = re.compile(rf"(?:(?P<query>.*)&)?{PARAMETER}=(?P<expires>\d{{1,12}})\.(?P<mac>[0-9a-f]{{64}})")


class LinkSigner:
    """Signs addresses in the name of a key, and finds the key that an address was signed for."""

    def __init__(self, secret: Callable[[], bytes]) -> None:
        self._secret = secret

    def signed(self, key: Key, path: str, query: str = "", *, now_s: float | None = None) -> tuple[str, int]:
        """Return the address with its signature, and when that expires; the path is below the root path."""
        expires_s = int(time.time() if now_s is None else now_s) + LIFE_S
        mac = self._mac(key, path, query, expires_s)
        return f"{path}?{query}{'&' if query else ''}{PARAMETER}={expires_s}.{mac}", expires_s

    def find(self, keys: Iterable[Key], path: str, full_query: str) -> Key | None:
        """Return the key that an address was signed for, unless it has expired or was altered."""
        given = SIGNED.fullmatch(full_query)
        if given is None or int(given["expires"]) < time.time():
            return None
        query, expires_s = given["query"] or "", int(given["expires"])
        # All are compared, so that the time tells nothing of which one fits.
        found = [
            key for key in keys if hmac.compare_digest(self._mac(key, path, query, expires_s), given["mac"])
        ]
        return found[0] if found else None

    def _mac(self, key: Key, path: str, query: str, expires_s: int) -> str:
        # The key's digest is signed too: a link ends where its key is given another secret.
        signed = json.dumps([key.name, key.digest.hex(), path, query, expires_s])
        return hmac.new(self._secret(), signed.encode(), hashlib.sha256).hexdigest()
