"""Parse the header fields that hold the SHA-256 of a file, and write `Repr-Digest` of RFC 9530."""

import base64
import binascii
import re

_SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*([^,]*)", re.IGNORECASE)
_SHA256_BYTES = 32
# The field of RFC 3230, which RFC 9530 replaces; its base64 stands without colons.
OLD_FIELD = "Digest"


class DigestHeaderError(ValueError):
    """A digest field does not follow its RFC, or two fields contradict each other."""


def parse_digest(field: str, value: str | None) -> bytes | None:
    """Return the SHA-256 in Repr-Digest, Content-Digest or Digest.

    It is None where there is none: readers may ignore digests by other algorithms.
    """
    found = _SHA256.findall(value or "")
    if not found:
        return None
    old = field == OLD_FIELD
    form = (
        f"{field} must look like {'SHA-256=' if old else 'sha-256=:'}<base64 of 32 bytes>{'' if old else ':'}"
    )
    text = found[-1].split(";")[0].strip()
    if not old:
        if len(text) < 2 or text[0] != ":" or text[-1] != ":":
            raise DigestHeaderError(f"{form}.")
        text = text[1:-1]
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DigestHeaderError(f"{form}; this is not base64.") from None
    if len(digest) != _SHA256_BYTES:
        raise DigestHeaderError(f"{form}; this has {len(digest)} bytes.")
    return digest


def agreed_digest(fields: dict[str, str | None]) -> bytes | None:
    """Return the SHA-256 that these fields give, all of them the same."""
    given = {field: digest for field, value in fields.items() if (digest := parse_digest(field, value))}
    if len(set(given.values())) > 1:
        raise DigestHeaderError(f"{' and '.join(given)} give different digests of the same bytes; send one.")
    return next(iter(given.values()), None)


def repr_digest(sha256: str) -> str:
    """Write the header's value for a SHA-256 in hexadecimal."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
