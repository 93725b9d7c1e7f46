"""What signs webhooks: secrets of Standard Webhooks, for each owner or for all."""

import base64
import binascii
from collections.abc import Iterable, Mapping

from service.access.entries import Entries
from service.access.keys import owner_named

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of all secrets
LEAST_SECRET_BYTES = 24
# Stands for every owner without an entry of its own; no key has this name.
ALL_OTHERS = "*"


class WebhookSecrets:
    """The secrets of the setting, or of the file that it names."""

    def __init__(self, setting: str) -> None:
        """Parse `whsec_<base64>` for all, and `name:whsec_<base64>` for the owner of one key."""
        self._entries = Entries(setting, parse_secrets, what="webhook secrets")

    def of(self, owner: str) -> tuple[bytes, ...]:
        """Return what signs for an owner, without keys `''`; nothing if there is no secret for it."""
        secrets = self._entries.now()
        return secrets.get(owner, secrets.get(ALL_OTHERS, ()))


def parse_secrets(entries: Iterable[str]) -> Mapping[str, tuple[bytes, ...]]:
    """Parse the entries; errors count them and never quote them."""
    found: dict[str, tuple[bytes, ...]] = {}
    for number, entry in enumerate(entries, 1):
        name, colon, words = entry.strip().rpartition(":")
        owner = owner_named(name) if colon else ALL_OTHERS
        if owner is None:
            raise ValueError(f"secret {number} does not begin with the name of a key; write name:whsec_…")
        if owner in found:
            whose = "two entries are of one key" if colon else "two entries are for all keys"
            raise ValueError(f"{whose}; write the secrets of one into one entry, separated by spaces")
        found[owner] = tuple(_secret(word) for word in words.split())
    if not all(found.values()) or not found:
        raise ValueError("it is empty; write whsec_ and the base64 of at least 24 random bytes")
    return found


def _secret(word: str) -> bytes:
    try:
        secret = base64.b64decode(word.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not word.startswith(SECRET_PREFIX) or len(secret) < LEAST_SECRET_BYTES:
        raise ValueError(
            f"each secret is whsec_ and the base64 of at least {LEAST_SECRET_BYTES} random bytes; make one "
            'with `echo "whsec_$(openssl rand -base64 32)"`'
        )
    return secret
