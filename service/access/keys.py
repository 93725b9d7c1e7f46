"""API keys: the setting, or the file that it names, and whose each secret is."""

import hashlib
import hmac
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from service.access.entries import Entries
from state.data_dir import OWNER

# The key of this name has what was stored before there were keys.
DEFAULT_NAME = "default"
WITHOUT_KEYS = ""
SECRET = re.compile(r"[\x21-\x7e]+")
# A shorter one may be guessed. It is taken all the same, since a service may have had it for long.
LEAST_SECRET_CHARACTERS = 16
HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")

log = logging.getLogger("eckart.service")


@dataclass(frozen=True, slots=True)
class Key:
    """The name of a key, and the SHA-256 of its secret; of a hashed one nobody knows whether it is short."""

    name: str
    digest: bytes
    is_short: bool = field(default=False, compare=False)

    @property
    def owner(self) -> str:
        """Whose things it opens, as `state` names owners."""
        return WITHOUT_KEYS if self.name == DEFAULT_NAME else self.name


def owner_named(name: str) -> str | None:
    """Return the owner of the key of this name; None if no key can have it."""
    return Key(name, b"").owner if OWNER.fullmatch(name) else None


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
        is_short = HASHED.fullmatch(secret) is None and len(secret) < LEAST_SECRET_CHARACTERS
        keys.append(Key(name, _digest(number, secret), is_short))
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


def _parse_ring(entries: Iterable[str]) -> tuple[Key, ...]:
    """Parse one key or more. A list without any is a lost one, so it is never taken."""
    keys = parse_keys(entries)
    if not keys:
        raise ValueError("it names no key; unset it to serve without keys, or write name:secret")
    return keys


def _warn_of_short_secrets(keys: Iterable[Key]) -> None:
    for key in keys:
        if key.is_short:
            log.warning(
                "the secret of the key %s has fewer than %d characters and may be guessed; make another "
                "with `openssl rand -hex 32`",
                key.name,
                LEAST_SECRET_CHARACTERS,
            )


class KeyRing:
    """The keys of the setting, or of the file that it names."""

    def __init__(self, setting: str) -> None:
        """Parse the setting: `name:secret,…`, or `@/path` of a file with one a line."""
        if not setting:
            raise ValueError("it is empty; unset it to serve without keys, or write name:secret")
        self._entries = Entries(setting, _parse_ring, what="keys", changed=_warn_of_short_secrets)

    def warn(self) -> None:
        """Log the keys whose secrets may be guessed, as is done by itself whenever the file has changed."""
        _warn_of_short_secrets(self._entries.now())

    def find(self, secret: str) -> Key | None:
        """Return the key of this secret, or None. The time does not tell how near it is to one."""
        given = hashlib.sha256(secret.encode("latin-1", "replace")).digest()
        found = [key for key in self._entries.now() if hmac.compare_digest(key.digest, given)]
        return found[0] if found else None

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries.now())

    def __contains__(self, key: Key) -> bool:
        """Whether a key that was found is still there."""
        return key in self._entries.now()
