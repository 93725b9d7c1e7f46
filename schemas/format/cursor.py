"""A cursor over UTF-8 text that arrives in chunks: only the part around the cursor is decoded at a time."""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import TYPE_CHECKING, TypeAlias

from schemas.format.errors import CheckpointError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Iterator

Chunk: TypeAlias = bytes | bytearray | memoryview

# One character beyond ASCII makes all of a piece four times as large.
PIECE_BYTES = 1 << 17


def decode_all(chunks: deque[Chunk], *, base: int, subject: str) -> Iterator[str]:
    """Decode chunks to pieces of text; each chunk is taken out once its turn comes.

    All are decoded once before: what is not UTF-8 is no JSON, whatever else is wrong with it.
    """
    for _ in _decoded(chunks, base=base, subject=subject):
        pass
    return _decoded((chunks.popleft() for _ in range(len(chunks))), base=base, subject=subject)


def _decoded(chunks: Iterable[Chunk], *, base: int, subject: str) -> Iterator[str]:
    decoder = getincrementaldecoder("utf-8")()
    for piece in _pieces(chunks):
        waiting = len(decoder.getstate()[0])
        try:
            yield decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            byte = base - waiting + error.start
            raise CheckpointError(
                "not-utf8", f"{subject} is not UTF-8: byte {byte} of the file is not part of any character."
            ) from None
        base += len(piece)


def _pieces(chunks: Iterable[Chunk]) -> Iterator[memoryview]:
    """Yield small pieces, and an empty one at the end."""
    for chunk in chunks:
        view = memoryview(chunk)
        yield from (view[at : at + PIECE_BYTES] for at in range(0, len(view), PIECE_BYTES))
    yield memoryview(b"")


class Cursor:
    """Text with a position; what lies before the position may be dropped whenever more is decoded."""

    def __init__(self, pieces: Iterable[str], *, base: int) -> None:
        self.text = ""
        self.position = 0
        self._pieces = iter(pieces)
        self._dropped_bytes = base
        self._dropped_characters = 0

    @property
    def character(self) -> int:
        """How many characters lie before the cursor."""
        return self._dropped_characters + self.position

    @property
    def byte(self) -> int:
        """The byte of the file at the cursor."""
        return self._dropped_bytes + len(self.text[: self.position].encode())

    def fill(self, characters: int) -> bool:
        """Decode until so many characters lie ahead, or all; return whether that changed anything."""
        ahead = len(self.text) - self.position
        if ahead >= characters:
            return False
        found = [self.text[self.position :]]
        for piece in self._pieces:
            found.append(piece)
            ahead += len(piece)
            if ahead >= characters:
                break
        if not any(found[1:]):
            return False
        self._dropped_bytes, self._dropped_characters = self.byte, self.character
        self.text, self.position = "".join(found), 0
        return True
