"""SHA-256 as HTTP says it: the Repr-Digest field of RFC 9530."""

from __future__ import annotations

import base64
import binascii
import re

_SHA256 = re.compile(r"(?:^|[,\s])sha-256=:([A-Za-z0-9+/]{43}=):")


def repr_digest(sha256: str) -> str:
    """Write a hex digest as a Repr-Digest field."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def sha256_of(field: str | None) -> str | None:
    """Read the hex digest out of a Repr-Digest field; None where it holds no sha-256."""
    found = _SHA256.search(field or "")
    try:
        return base64.b64decode(found[1], validate=True).hex() if found else None
    except binascii.Error:
        return None
