"""The checksum that a client promises for the bytes of one request."""

import hashlib
import hmac

ALGORITHMS = ("sha256", "sha1")


class Checksum:
    """A promised digest, and that of the bytes so far."""

    def __init__(self, algorithm: str, digest: bytes) -> None:
        # SHA-1 guards against faults of the line here, not against anybody.
        self._found = hashlib.new(algorithm, usedforsecurity=False)
        self._promised = digest

    @property
    def digest_bytes(self) -> int:
        return self._found.digest_size

    def update(self, block: bytes) -> None:
        self._found.update(block)

    @property
    def matches(self) -> bool:
        return hmac.compare_digest(self._found.digest(), self._promised)
