"""Digest and entity-tag headers: RFC 9530 and RFC 9110."""

import base64
import binascii
import re

from service import errors

SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*([^,]*)", re.IGNORECASE)
SHA256_BYTES = 32
ADVICE = "Repr-Digest must look like sha-256=:<base64 of 32 bytes>:"


def wanted_sha256(header: str | None) -> bytes | None:
    """Return the SHA-256 that a Repr-Digest asks for; RFC 9530 lets us ignore digests of other kinds."""
    found = SHA256.findall(header or "")
    if not found:
        return None
    text = found[-1].split(";")[0].strip()
    if len(text) < 2 or text[0] != ":" or text[-1] != ":":
        raise errors.InvalidRequest(f"{ADVICE}.")
    try:
        digest = base64.b64decode(text[1:-1], validate=True)
    except (binascii.Error, ValueError):
        raise errors.InvalidRequest(f"{ADVICE}; this is no base64.") from None
    if len(digest) != SHA256_BYTES:
        raise errors.InvalidRequest(f"{ADVICE}; this has {len(digest)} bytes.")
    return digest


def digest_headers(sha256: str) -> dict[str, str]:
    """Headers that name a file's content, from its SHA-256 in hex."""
    encoded = base64.b64encode(bytes.fromhex(sha256)).decode()
    return {"ETag": f'"{sha256}"', "Repr-Digest": f"sha-256=:{encoded}:"}


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Say whether the client already has the representation of this tag, compared weakly."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
