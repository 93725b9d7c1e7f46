"""Parse and write the `Repr-Digest` header of RFC 9530, which holds the SHA-256 of a file."""

import base64
import binascii
import re

_SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*([^,]*)", re.IGNORECASE)
_SHA256_BYTES = 32
_FORMAT = "Repr-Digest must look like sha-256=:<base64 of 32 bytes>:"


class DigestHeaderError(ValueError):
    """The header does not follow RFC 9530."""


def parse_repr_digest(header: str | None) -> bytes | None:
    """Return the SHA-256 in the header, or None; RFC 9530 lets readers ignore digests by other algorithms."""
    found = _SHA256.findall(header or "")
    if not found:
        return None
    text = found[-1].split(";")[0].strip()
    if len(text) < 2 or text[0] != ":" or text[-1] != ":":
        raise DigestHeaderError(f"{_FORMAT}.")
    try:
        digest = base64.b64decode(text[1:-1], validate=True)
    except (binascii.Error, ValueError):
        raise DigestHeaderError(f"{_FORMAT}; this is not base64.") from None
    if len(digest) != _SHA256_BYTES:
        raise DigestHeaderError(f"{_FORMAT}; this has {len(digest)} bytes.")
    return digest


def repr_digest(sha256: str) -> str:
    """Write the header's value for a SHA-256 in hexadecimal."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
