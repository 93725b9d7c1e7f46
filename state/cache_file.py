"""One decomposition on disk: its spectrum, and below it the basis, with a checksum for each block of rows.

The head is laid out in the byte order of the machine, which a reader of another order takes for damage:

    magic, checksum of all of the head that follows, the fields, a checksum for each block, the spectrum

From the next multiple of 4096 bytes on come the rows of the basis.
"""

import os
import struct
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from schemas.spectrum import Spectrum

Side = Literal["rows", "columns"]

MAGIC = b"eckartD\x01"
# A job of a small rank reads and checks no more than these rows at a time.
BLOCK_ROWS = 128
ALIGNMENT_BYTES = 4096
PREFIX = struct.Struct("=8sI")
FIELDS = struct.Struct("=32s32sdiIIIBB")
SIDES: tuple[Side, ...] = ("rows", "columns")


class DamagedFile(Exception):  # noqa: N818 - it says what happened
    """The file is not what it should be: it was torn, changed, or is another's."""


@dataclass(frozen=True, slots=True)
class DecompositionHeader:
    """All of a decomposition but its basis.

    Attributes
    ----------
    key, origin : bytes
        What was decomposed, and what with: 32 bytes each, which a reader compares.
    exponent : int
        The decomposition is that of 2^-exponent · W.
    noise : float
        The part of the squared spectrum that rounding may have moved.
    side : {"rows", "columns"}
        On which side of W the basis lies.
    item_bytes : int
        4 or 8: the basis is in float32 or float64.
    rows, length : int
        Shape of the basis.
    spectrum : array of float64
        All singular values, descending.
    """

    key: bytes
    origin: bytes
    exponent: int
    noise: float
    side: Side
    item_bytes: int
    rows: int
    length: int
    spectrum: "array[float]"

    @property
    def row_bytes(self) -> int:
        return self.length * self.item_bytes

    @property
    def singular_values(self) -> Spectrum:
        """What planning needs of it."""
        return Spectrum(self.spectrum, self.exponent, self.noise)


def encode_header(head: DecompositionHeader, basis: memoryview) -> bytes:
    """Return what a file begins with; the bytes of the basis come right behind it."""
    block_bytes = BLOCK_ROWS * head.row_bytes
    starts = range(0, len(basis), block_bytes)
    checksums = array("I", (zlib.crc32(basis[at : at + block_bytes]) for at in starts))
    fields = FIELDS.pack(
        head.key,
        head.origin,
        head.noise,
        head.exponent,
        len(head.spectrum),
        head.rows,
        head.length,
        head.item_bytes,
        SIDES.index(head.side),
    )
    body = fields + checksums.tobytes() + head.spectrum.tobytes()
    packed = PREFIX.pack(MAGIC, zlib.crc32(body)) + body
    return packed + bytes(-len(packed) % ALIGNMENT_BYTES)


class DecompositionFile:
    """An open file whose head is whole; it stays readable when it is evicted meanwhile.

    Raises
    ------
    DamagedFile
        If it is not whole, or not of this key.
    OSError
        If there is none, or it cannot be read.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        # A pipe by this name must not keep us waiting.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            self.size_bytes = os.fstat(self._descriptor).st_size
            self.head, self._checksums, self._start = self._read_head(key)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def rows_of_blocks(self, rows: int) -> int:
        """Return how many rows the blocks hold that hold the first `rows`."""
        return min(self.head.rows, -(-rows // BLOCK_ROWS) * BLOCK_ROWS)

    def read_into(self, buffer: memoryview) -> None:
        """Fill a buffer of whole blocks with the leading rows, and check each block."""
        block_bytes = BLOCK_ROWS * self.head.row_bytes
        for number, at in enumerate(range(0, len(buffer), block_bytes)):
            block = buffer[at : at + block_bytes]
            self._fill(block, self._start + at)
            if zlib.crc32(block) != self._checksums[number]:
                raise DamagedFile(f"block {number} of its basis does not match its checksum")

    def _read_head(self, wanted: bytes) -> tuple[DecompositionHeader, "array[int]", int]:
        magic, checksum = PREFIX.unpack(self._read(0, PREFIX.size))
        if magic != MAGIC:
            raise DamagedFile("it is of another kind or version")
        raw = self._read(PREFIX.size, FIELDS.size)
        key, origin, noise, exponent, count, rows, length, item_bytes, side = FIELDS.unpack(raw)
        blocks = -(-rows // BLOCK_ROWS)
        rest = self._read(PREFIX.size + FIELDS.size, 4 * blocks + 8 * count)
        if zlib.crc32(rest, zlib.crc32(raw)) != checksum:
            raise DamagedFile("its head does not match its checksum")
        checksums, spectrum = array("I", rest[: 4 * blocks]), array("d", rest[4 * blocks :])
        if key != wanted:
            raise DamagedFile("it is another tensor's")
        head = DecompositionHeader(
            key, origin, exponent, noise, SIDES[side], item_bytes, rows, length, spectrum
        )
        end = PREFIX.size + len(raw) + len(rest)
        start = end + -end % ALIGNMENT_BYTES
        if self.size_bytes != start + rows * head.row_bytes:
            raise DamagedFile("its size is not what its head says")
        return head, checksums, start

    def _read(self, at: int, count: int) -> bytes:
        # What a damaged head asks for is never more than the file has.
        if at + count > self.size_bytes:
            raise DamagedFile("it ends too soon")
        buffer = bytearray(count)
        self._fill(memoryview(buffer), at)
        return bytes(buffer)

    def _fill(self, target: memoryview, at: int) -> None:
        while target:
            count = os.preadv(self._descriptor, [target], at)
            if count == 0:
                raise DamagedFile("it ends too soon")
            target = target[count:]
            at += count
