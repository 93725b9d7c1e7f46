"""Finished layers on disk, kept for the next attempt."""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Self

from schemas.format.tensor import DTYPE_BITS
from worker.checkpoint.reader import CHUNK_BYTES, dtype_name, tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

# A segment is a sequence of records: this prefix, what the tensors are as JSON, the outcome, and the data.
# The prefix has a mark, the lengths of the two texts, and their checksum; the JSON has one of each tensor.
_PREFIX = struct.Struct("<8sIII")
_MARK = b"eckartL1"
_ENDING = ".segment"


class DamagedLayer(Exception):  # noqa: N818 - it says what happened
    """The bytes of a finished layer are not those that were put."""


@dataclass(frozen=True, slots=True)
class SpooledTensor:
    """A tensor of a finished layer: its dtype and shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    descriptor: int
    start: int
    checksum: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class _Record:
    """A record whose prefix and texts are whole: where its outcome is, and its tensors."""

    descriptor: int
    outcome_start: int
    outcome_bytes: int
    tensors: tuple[SpooledTensor, ...]


class LayerSpool:
    """A directory of finished layers. Each process appends to a segment of its own, and reads those before.

    A layer is kept once `put` returns, also when the process is killed. Nothing is forced to the disk: a loss
    of power may damage layers, which their checksums show. A damaged layer counts as missing.

    Parameters
    ----------
    directory : Path
        Created by the first `put`, with its parent, whose own parent must exist. Use one directory for one
        input and one spec only.

    Raises
    ------
    OSError
        If the directory cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._records: dict[int, _Record] = {}
        self._lock = threading.Lock()
        self._own: int | None = None
        self._end = 0
        with ExitStack() as files:
            for name in self._segments():
                descriptor = os.open(directory / name, os.O_RDONLY)
                files.callback(os.close, descriptor)
                self._records |= _records_in(descriptor)
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; what was put stays."""
        self._files.close()

    @property
    def numbers(self) -> frozenset[int]:
        """The layers that are kept, whether or not their bytes are whole."""
        return frozenset(self._records)

    def put(self, number: int, outcome_json: str, factors: Sequence[torch.Tensor]) -> None:
        """Store a layer, replacing an earlier one with the same number; may be called from several threads.

        Parameters
        ----------
        number : int
            The layer's number, at least 0.
        outcome_json : str
            The layer's outcome, as JSON.
        factors : sequence of Tensor, each of any shape
            On any device, with any strides; empty for a layer that stays dense.

        Raises
        ------
        CheckpointError
            With fault ``dtype-not-writable``, if safetensors has no such dtype.
        OSError
            If the directory cannot be created or the layer cannot be written.
        """
        ready = [factor.detach().cpu().contiguous() for factor in factors]
        data = [tensor_bytes(factor) for factor in ready]
        described = [
            (dtype_name(factor.dtype), tuple(factor.shape), zlib.crc32(raw))
            for factor, raw in zip(ready, data, strict=True)
        ]
        head = json.dumps([number, described]).encode()
        outcome = outcome_json.encode()
        prefix = _PREFIX.pack(_MARK, len(head), len(outcome), zlib.crc32(outcome, zlib.crc32(head)))
        with self._lock:
            descriptor = self._open_own()
            # What an earlier call could not write to its end is overwritten.
            end = _write(descriptor, [memoryview(prefix + head + outcome), *data], self._end)
            outcome_start = self._end + len(prefix) + len(head)
            self._records[number] = _record(descriptor, outcome_start, len(outcome), described)
            self._end = end

    def get(self, number: int) -> str | None:
        """Return the outcome of a layer that was stored and is not damaged.

        Parameters
        ----------
        number : int
            The layer's number, at least 0.

        Returns
        -------
        str or None
            The JSON as it was given to `put`; None if the layer was not stored or is damaged.

        Raises
        ------
        OSError
            If the layer cannot be read.
        """
        record = self._records.get(number)
        if record is None:
            return None
        try:
            for tensor in record.tensors:
                for _ in self.chunks(tensor):
                    pass
            return _read(record.descriptor, record.outcome_start, record.outcome_bytes).decode()
        except DamagedLayer:
            del self._records[number]
            return None

    def factors(self, number: int) -> tuple[SpooledTensor, ...]:
        """Return the factors of a layer in the order of `put`.

        Raises
        ------
        KeyError
            If the layer was not stored.
        """
        return self._records[number].tensors

    def chunks(self, tensor: SpooledTensor) -> Iterator[memoryview]:
        """Yield the bytes of a factor in pieces.

        Yields
        ------
        memoryview
            Valid until the next piece, which uses the same memory.

        Raises
        ------
        DamagedLayer
            Before the last piece, if the bytes do not have the checksum of what was put.
        """
        nbytes, checksum = tensor.nbytes, 0
        buffer = memoryview(bytearray(min(CHUNK_BYTES, nbytes)))
        for offset in range(0, nbytes, CHUNK_BYTES):
            piece = buffer[: nbytes - offset]
            _fill(tensor.descriptor, piece, tensor.start + offset)
            checksum = zlib.crc32(piece, checksum)
            if offset + len(piece) == nbytes and checksum != tensor.checksum:
                raise DamagedLayer("a finished layer was damaged on the disk")
            yield piece

    def _segments(self) -> list[str]:
        try:
            return sorted(path.name for path in self.directory.iterdir() if path.suffix == _ENDING)
        except FileNotFoundError:
            return []

    def _open_own(self) -> int:
        """Return the descriptor of this process's segment, which is created by the first call."""
        if self._own is None:
            # Not all parents: the folder of a deleted job must not come back.
            self.directory.parent.mkdir(exist_ok=True)
            self.directory.mkdir(exist_ok=True)
            self._own = self._create_segment()
            self._files.callback(os.close, self._own)
        return self._own

    def _create_segment(self) -> int:
        # Those of other processes stay as they are, even of one that still writes after its time.
        number = len(self._segments())
        while (path := self.directory / f"{number:06d}{_ENDING}").exists():
            number += 1
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


# Dtype, shape and checksum of each tensor of a record.
_Described = tuple[str, tuple[int, ...], int]


def _records_in(descriptor: int) -> dict[int, _Record]:
    """Return the records of a segment by the layer's number, up to the first that is torn."""
    records: dict[int, _Record] = {}
    size, at = os.fstat(descriptor).st_size, 0
    while at + _PREFIX.size <= size:
        mark, head_bytes, outcome_bytes, checksum = _PREFIX.unpack(_read(descriptor, at, _PREFIX.size))
        outcome_start = at + _PREFIX.size + head_bytes
        if mark != _MARK or outcome_start + outcome_bytes > size:
            break
        texts = _read(descriptor, at + _PREFIX.size, head_bytes + outcome_bytes)
        if zlib.crc32(texts) != checksum:
            break
        number, described = json.loads(texts[:head_bytes])
        record = _record(descriptor, outcome_start, outcome_bytes, described)
        at = outcome_start + outcome_bytes + sum(tensor.nbytes for tensor in record.tensors)
        if at > size:
            break
        records[number] = record
    return records


def _record(
    descriptor: int, outcome_start: int, outcome_bytes: int, described: Iterable[_Described]
) -> _Record:
    tensors, start = [], outcome_start + outcome_bytes
    for dtype, shape, checksum in described:
        tensors.append(SpooledTensor(dtype, tuple(shape), descriptor, start, checksum))
        start += tensors[-1].nbytes
    return _Record(descriptor, outcome_start, outcome_bytes, tuple(tensors))


def _read(descriptor: int, at: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    _fill(descriptor, memoryview(buffer), at)
    return bytes(buffer)


def _fill(descriptor: int, target: memoryview, at: int) -> None:
    while target:
        read = os.preadv(descriptor, [target], at)
        if read == 0:
            raise DamagedLayer("a segment of finished layers became shorter")
        target, at = target[read:], at + read


def _write(descriptor: int, pieces: list[memoryview], at: int) -> int:
    """Write pieces one after another from an offset on, and return the offset of their end."""
    while pieces:
        written = os.pwritev(descriptor, pieces, at)
        at += written
        while pieces and written >= len(pieces[0]):
            written -= len(pieces.pop(0))
        if pieces:
            pieces[0] = pieces[0][written:]
    return at
