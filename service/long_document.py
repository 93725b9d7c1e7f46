"""A JSON document of any length: packed while it is written, and unpacked while it is sent.

A plan of a hundred thousand layers is 50 MB of JSON, in which little changes from layer to layer.
"""

import zlib
from collections.abc import Iterable, Iterator

from starlette.responses import Response, StreamingResponse

BLOCK_CHARACTERS = 1 << 17
# The fastest; what repeats is found all the same.
LEVEL = 1


class LongDocument:
    """The text of a document, in blocks, the last of which is not packed."""

    def __init__(self, parts: Iterable[str]) -> None:
        """Write it, part after part."""
        self.nbytes = 0
        self._packed: list[bytes] = []
        gathered: list[str] = []
        characters = 0
        for part in parts:
            gathered.append(part)
            characters += len(part)
            if characters >= BLOCK_CHARACTERS:
                self._packed.append(zlib.compress(self._encoded(gathered), LEVEL))
                gathered, characters = [], 0
        self._last = self._encoded(gathered)

    def response(self) -> Response:
        """Return what sends it."""
        if not self._packed:
            return Response(self._last, media_type="application/json")
        headers = {"Content-Length": str(self.nbytes)}
        return StreamingResponse(self.blocks(), media_type="application/json", headers=headers)

    def blocks(self) -> Iterator[bytes]:
        for packed in self._packed:
            yield zlib.decompress(packed)
        yield self._last

    def _encoded(self, gathered: list[str]) -> bytes:
        block = "".join(gathered).encode()
        self.nbytes += len(block)
        return block
