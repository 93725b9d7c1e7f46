"""API keys: the setting, or the file that it names, and whose each secret is."""

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from state.data_dir import OWNER

# The key of this name has what was stored before there were keys.
DEFAULT_NAME = "default"
WITHOUT_KEYS = ""
SECRET = re.compile(r"[\x21-\x7e]+")
HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")

log = logging.getLogger("eckart.service")


@dataclass(frozen=True, slots=True)
class Key:
    """The name of a key, and the SHA-256 of its secret."""

    name: str
    digest: bytes

    @property
    def owner(self) -> str:
        """Whose things it opens, as `state` names owners."""
        return WITHOUT_KEYS if self.name == DEFAULT_NAME else self.name


def parse_keys(entries: Iterable[str]) -> tuple[Key, ...]:
    """Parse `name:secret` or `name:sha256:<hex>`; errors count the entries and never quote them."""
    keys: list[Key] = []
    for number, entry in enumerate(entries, 1):
        name, colon, secret = entry.strip().partition(":")
        if not colon or OWNER.fullmatch(name) is None:
            raise ValueError(
                f"key {number} does not begin with a name of at most 64 letters, digits, _ and - and a "
                "colon; write name:secret"
            )
        keys.append(Key(name, _digest(number, secret)))
    for what in ("name", "digest"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise ValueError(f"two keys have the same {'name' if what == 'name' else 'secret'}; change one")
    return tuple(keys)


def _digest(number: int, secret: str) -> bytes:
    if hashed := HASHED.fullmatch(secret):
        return bytes.fromhex(hashed[1])
    if secret.startswith("sha256:"):
        raise ValueError(f"key {number} has sha256: without 64 hexadecimal digits after it")
    if SECRET.fullmatch(secret) is None:
        raise ValueError(f"the secret of key {number} is empty, or not of printable ASCII without spaces")
    return hashlib.sha256(secret.encode()).digest()


class KeyRing:
    """The keys of the setting, or of the file that it names, which is read again whenever it changes."""

    def __init__(self, setting: str) -> None:
        """Parse the setting: `name:secret,…`, or `@/path` of a file with one a line."""
        if not setting:
            raise ValueError("it is empty; unset it to serve without keys, or write name:secret")
        self._path = Path(setting[1:]) if setting.startswith("@") else None
        self._seen = self._state()
        self._keys = parse_keys(self._lines() if self._path else filter(str.strip, setting.split(",")))
        if not self._keys:
            raise ValueError("it names no key; unset it to serve without keys, or write name:secret")

    def find(self, secret: str) -> Key | None:
        """Return the key of this secret, or None. The time does not tell how near it is to one."""
        self._reload()
        given = hashlib.sha256(secret.encode("latin-1", "replace")).digest()
        found = [key for key in self._keys if hmac.compare_digest(key.digest, given)]
        return found[0] if found else None

    def __contains__(self, key: Key) -> bool:
        """Whether a key that was found is still there."""
        self._reload()
        return key in self._keys

    def _reload(self) -> None:
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._keys = parse_keys(self._lines())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.error("%s is not taken, so the keys stay as they were: %s", self._path, reason)  # noqa: TRY400
        else:
            log.info("%s was read again: %d keys", self._path, len(self._keys))

    def _state(self) -> tuple[int, ...] | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)  # noqa: PTH116 - at every request
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _lines(self) -> Iterator[str]:
        assert self._path is not None
        lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
        return (line for line in map(str.strip, lines) if line and not line.startswith("#"))
