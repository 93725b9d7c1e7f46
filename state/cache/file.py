"""One decomposition on disk, as a safetensors file that stock tools can open.

Tensors: `singular_values`, F64 of shape [p], and `basis`, F32 or F64 of shape [r, s]. All else is in
`__metadata__`. A checksum covers the header together with the singular values; each block of rows of the
basis has its own, so that a job of a small rank reads and checks no more than the leading blocks.
"""

import os
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

from schemas.format.errors import CheckpointError
from schemas.format.header import LENGTH_BYTES, Header, NewTensor, build_header, parse_header
from schemas.format.tensor import DTYPE_BITS
from schemas.spectrum import Spectrum

Axis = Literal["rows", "columns"]

FORMAT = "eckart-decomposition-2"
TENSORS = ["singular_values", "basis"]
BLOCK_ROWS = 128
BASIS_DTYPES: Mapping[int, str] = {4: "F32", 8: "F64"}
# More than the header of any decomposition; a damaged length must not make us read all of a large file.
MAX_HEADER_BYTES = 1 << 20
CHECKSUM = "header_crc32"


class DamagedFile(Exception):  # noqa: N818 - it says what happened
    """The file is torn or changed, or it is not the decomposition that was asked for."""


@dataclass(frozen=True, slots=True)
class DecompositionHeader:
    """All of a decomposition but its basis.

    Attributes
    ----------
    key, environment : bytes
        Digests of what was decomposed, and by which libraries on which processor; readers compare them.
    exponent : int
        The decomposition is that of 2^-exponent · W.
    roundoff : float
        The part of the sum of squared singular values that rounding may have moved.
    axis : {"rows", "columns"}
        Whether the basis holds left ("rows") or right ("columns") singular vectors of W.
    item_bytes : int
        4 or 8: the basis is in float32 or float64.
    rows, length : int
        Shape of the basis, [r, s].
    singular_values : array of float64, [p]
        All of them, in descending order.
    """

    key: bytes
    environment: bytes
    exponent: int
    roundoff: float
    axis: Axis
    item_bytes: int
    rows: int
    length: int
    singular_values: "array[float]"

    @property
    def row_bytes(self) -> int:
        return self.length * self.item_bytes

    @property
    def spectrum(self) -> Spectrum:
        """The part of it that planning needs."""
        return Spectrum(self.singular_values, self.exponent, self.roundoff)


def encode_header(head: DecompositionHeader, basis: memoryview) -> bytes:
    """Return the file up to the bytes of the basis, which come next."""
    new_tensors = [
        NewTensor("singular_values", "F64", (len(head.singular_values),)),
        NewTensor("basis", BASIS_DTYPES[head.item_bytes], (head.rows, head.length)),
    ]
    metadata = {
        "format": FORMAT,
        "key": head.key.hex(),
        "environment": head.environment.hex(),
        "exponent": str(head.exponent),
        "roundoff": repr(head.roundoff),
        "axis": head.axis,
        "basis_crc32": " ".join(_hex(zlib.crc32(block)) for block in _blocks(basis, head.row_bytes)),
    }
    values = head.singular_values.tobytes()
    metadata[CHECKSUM] = _header_checksum(new_tensors, metadata, values)
    header = build_header(new_tensors, metadata)
    return len(header).to_bytes(LENGTH_BYTES, "little") + header + values


def estimate_file_bytes(*, rows: int, length: int, item_bytes: int, singular_values: int) -> int:
    """Return about how large the file of a decomposition of this shape is."""
    header_bytes = 800 + 9 * (rows // BLOCK_ROWS)
    return header_bytes + 8 * singular_values + rows * length * item_bytes


class DecompositionFile:
    """An open file whose header and singular values are whole; it stays readable when it is evicted.

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
            header = self._parse_header()
            values = self._read(header.data_start, header.tensors[0].nbytes)
            self.head, self._checksums = _decode(header, values, key)
            self._start = header.data_start + header.tensors[1].start
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
        """Return how many rows there are in the blocks that hold the first `rows`."""
        return min(self.head.rows, -(-rows // BLOCK_ROWS) * BLOCK_ROWS)

    def read_into(self, buffer: memoryview) -> None:
        """Fill a buffer of whole blocks with the leading rows, and check each block."""
        at = self._start
        for number, block in enumerate(_blocks(buffer, self.head.row_bytes)):
            self._fill(block, at)
            at += len(block)
            if _hex(zlib.crc32(block)) != self._checksums[number]:
                raise DamagedFile(f"block {number} of its basis does not match its checksum")

    def _parse_header(self) -> Header:
        length = int.from_bytes(self._read(0, LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise DamagedFile("it is of another kind")
        try:
            header = parse_header(self._read(LENGTH_BYTES, length), file_bytes=self.size_bytes)
        except CheckpointError as error:
            raise DamagedFile(f"its header is damaged ({error.fault})") from error
        if header.metadata.get("format") != FORMAT or [info.name for info in header.tensors] != TENSORS:
            raise DamagedFile("it is of another kind or version")
        return header

    def _read(self, at: int, count: int) -> bytes:
        # A damaged length may ask for more than the file has.
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


def _decode(header: Header, values: bytes, key: bytes) -> tuple[DecompositionHeader, list[str]]:
    """Return the fields of a file, and the checksum of each block of its basis."""
    metadata = dict(header.metadata)
    checksum = metadata.pop(CHECKSUM, None)
    new_tensors = [NewTensor(info.name, info.dtype, info.shape) for info in header.tensors]
    if checksum != _header_checksum(new_tensors, metadata, values):
        raise DamagedFile("its header or its singular values do not match their checksum")
    if metadata["key"] != key.hex():
        raise DamagedFile("it is of another tensor")
    # The checksum holds, so the rest is as it was written.
    axis = next(axis for axis in get_args(Axis) if axis == metadata["axis"])
    rows, length = header.tensors[1].shape
    head = DecompositionHeader(
        key,
        bytes.fromhex(metadata["environment"]),
        int(metadata["exponent"]),
        float(metadata["roundoff"]),
        axis,
        DTYPE_BITS[header.tensors[1].dtype] // 8,
        rows,
        length,
        array("d", values),
    )
    return head, metadata["basis_crc32"].split()


def _header_checksum(new_tensors: list[NewTensor], metadata: Mapping[str, str], values: bytes) -> str:
    return _hex(zlib.crc32(values, zlib.crc32(build_header(new_tensors, metadata))))


def _hex(checksum: int) -> str:
    return f"{checksum:08x}"


def _blocks(basis: memoryview, row_bytes: int) -> Iterator[memoryview]:
    block_bytes = BLOCK_ROWS * row_bytes
    return (basis[at : at + block_bytes] for at in range(0, len(basis), block_bytes))
