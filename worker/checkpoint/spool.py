"""Finished layers, kept for the next attempt."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from schemas.format.errors import CheckpointError
from schemas.format.header import MAX_OUTPUT_HEADER_BYTES, TensorSpec, aligned_order
from worker.checkpoint.reader import CheckpointReader, dtype_name
from worker.checkpoint.writer import CheckpointWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from schemas.format.tensor import TensorInfo

_OUTCOME = "outcome"
_CHECKSUM = "crc32"
_NO_FACTORS = TensorSpec("none", "U8", (0,))


@dataclass(frozen=True, slots=True)
class SpooledLayer:
    """
    A finished layer on disk.

    Attributes
    ----------
    path : Path
        Its file.
    outcome_json : str
        What was given to `LayerSpool.put`.
    factors : tuple of TensorInfo
        Its factors in the order they were given, named ``"0"``, ``"1"``, ….
    """

    path: Path
    outcome_json: str
    factors: tuple[TensorInfo, ...]

    def open(self) -> CheckpointReader:
        """
        Open the file, to read factors or to copy them into a `CheckpointWriter`; the caller closes it.

        Raises
        ------
        CheckpointError
            If the file was damaged since it was found.
        OSError
            If the file is gone or cannot be opened.
        """
        return CheckpointReader(self.path, max_header_bytes=MAX_OUTPUT_HEADER_BYTES)


class LayerSpool:
    """
    A directory of finished layers, one file each.

    Files appear complete or not at all, but are not forced to the disk: a loss of power may damage one, which
    its checksum shows. A damaged file counts as not there.

    Parameters
    ----------
    directory : Path
        Made by the first `put`. It should serve one input and one specification only.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, index: int, outcome_json: str, factors: Sequence[torch.Tensor]) -> None:
        """
        Keep a layer.

        Parameters
        ----------
        index : int
            The layer's number, at least 0; what was kept under it is replaced.
        outcome_json : str
            What there is to say of it.
        factors : sequence of Tensor, each of any shape
            On any device, with any strides; none for a layer that stays dense.

        Raises
        ------
        CheckpointError
            With code ``dtype-not-writable``, if safetensors has no such dtype.
        FileExistsError
            If another process began to put the same layer meanwhile.
        OSError
            If the directory cannot be made or the file not be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        ready = {str(at): factor.detach().cpu().contiguous() for at, factor in enumerate(factors)}
        specs = aligned_order(
            TensorSpec(name, dtype_name(factor.dtype), tuple(factor.shape)) for name, factor in ready.items()
        )
        in_order = [ready[spec.name] for spec in specs]
        metadata = {_OUTCOME: outcome_json, _CHECKSUM: str(_checksum(in_order))}
        with CheckpointWriter(self._path(index), specs or [_NO_FACTORS], metadata, durable=False) as writer:
            for factor in in_order or [torch.empty(0, dtype=torch.uint8)]:
                writer.write(factor)

    def get(self, index: int) -> SpooledLayer | None:
        """
        Find a layer that was kept and is whole.

        Parameters
        ----------
        index : int
            The layer's number, at least 0.

        Returns
        -------
        SpooledLayer or None
            None if it was not kept or is damaged.

        Raises
        ------
        OSError
            If there is such a file but it cannot be opened or read.
        """
        path = self._path(index)
        try:
            with CheckpointReader(path, max_header_bytes=MAX_OUTPUT_HEADER_BYTES) as reader:
                metadata = reader.header.metadata
                whole = metadata.get(_CHECKSUM) == str(_read_checksum(reader))
                stored = [info for info in reader.header.tensors if info.name != _NO_FACTORS.name]
        except (FileNotFoundError, CheckpointError):
            return None
        if not whole or _OUTCOME not in metadata:
            return None
        return SpooledLayer(path, metadata[_OUTCOME], tuple(sorted(stored, key=lambda info: int(info.name))))

    def _path(self, index: int) -> Path:
        return self.directory / f"layer-{index:05d}.safetensors"


def _checksum(factors: Sequence[torch.Tensor]) -> int:
    total = 0
    for factor in factors:
        total = zlib.crc32(factor.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _read_checksum(reader: CheckpointReader) -> int:
    total = 0
    for info in reader.header.tensors:
        for piece in reader.chunks(info):
            total = zlib.crc32(piece, total)
    return total
