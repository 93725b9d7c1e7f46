"""Finished layers on disk, kept for the next attempt."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from schemas.format.errors import CheckpointError
from schemas.format.header import MAX_OUTPUT_HEADER_BYTES, NewTensor, aligned_order, build_header
from worker.checkpoint.reader import CheckpointReader, dtype_name, tensor_bytes
from worker.checkpoint.writer import CheckpointWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from schemas.format.tensor import TensorInfo

_OUTCOME = "outcome"
_CHECKSUM = "crc32"
# A safetensors file holds at least one tensor.
_NO_FACTORS = "none"


@dataclass(frozen=True, slots=True)
class SpooledLayer:
    """A finished layer on disk.

    Attributes
    ----------
    path : Path
        Its file.
    outcome_json : str
        The outcome as it was given to `LayerSpool.put`.
    factors : tuple of TensorInfo
        The factors in the order of `put`, named ``"0"``, ``"1"``, ….
    """

    path: Path
    outcome_json: str
    factors: tuple[TensorInfo, ...]

    def open(self) -> CheckpointReader:
        """Open the file to read the factors, or to copy them into a `CheckpointWriter`; the caller closes it.

        Raises
        ------
        CheckpointError
            If the file was damaged since `LayerSpool.get`.
        OSError
            If the file was removed or cannot be opened.
        """
        return CheckpointReader(self.path, max_header_bytes=MAX_OUTPUT_HEADER_BYTES)


class LayerSpool:
    """A directory of finished layers, one file each.

    Files appear complete or not at all, but they are not forced to the disk: a loss of power may damage one,
    which its checksum shows. A damaged layer counts as missing.

    Parameters
    ----------
    directory : Path
        Created by the first `put`. Use one directory for one input and one spec only.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, index: int, outcome_json: str, factors: Sequence[torch.Tensor]) -> None:
        """Store a layer, replacing an earlier one with the same number.

        Parameters
        ----------
        index : int
            The layer's number, at least 0.
        outcome_json : str
            The layer's outcome, as JSON.
        factors : sequence of Tensor, each of any shape
            On any device, with any strides; empty for a layer that stays dense.

        Raises
        ------
        CheckpointError
            With fault ``dtype-not-writable``, if safetensors has no such dtype.
        FileExistsError
            If another process began to store the same layer meanwhile.
        OSError
            If the directory cannot be created or the file cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        ready = {str(at): factor.detach().cpu().contiguous() for at, factor in enumerate(factors)}
        if not ready:
            ready = {_NO_FACTORS: torch.empty(0, dtype=torch.uint8)}
        new_tensors = aligned_order(
            NewTensor(name, dtype_name(factor.dtype), tuple(factor.shape)) for name, factor in ready.items()
        )
        in_order = [ready[new_tensor.name] for new_tensor in new_tensors]
        checksum = _checksum(outcome_json, new_tensors, (tensor_bytes(factor) for factor in in_order))
        metadata = {_OUTCOME: outcome_json, _CHECKSUM: checksum}
        with CheckpointWriter(self._path(index), new_tensors, metadata, durable=False) as writer:
            for factor in in_order:
                writer.write(factor)

    def get(self, index: int) -> SpooledLayer | None:
        """Find a layer that was stored and is not damaged.

        Parameters
        ----------
        index : int
            The layer's number, at least 0.

        Returns
        -------
        SpooledLayer or None
            None if it was not stored or is damaged.

        Raises
        ------
        OSError
            If there is such a file but it cannot be opened or read.
        """
        path = self._path(index)
        try:
            with CheckpointReader(path, max_header_bytes=MAX_OUTPUT_HEADER_BYTES) as reader:
                metadata, infos = reader.header.metadata, reader.header.tensors
                outcome_json = metadata.get(_OUTCOME, "")
                new_tensors = [NewTensor(info.name, info.dtype, info.shape) for info in infos]
                pieces = (piece for info in infos for piece in reader.chunks(info))
                if metadata.get(_CHECKSUM) != _checksum(outcome_json, new_tensors, pieces):
                    return None
        except (FileNotFoundError, CheckpointError):
            return None
        factors = [info for info in infos if info.name != _NO_FACTORS]
        return SpooledLayer(path, outcome_json, tuple(sorted(factors, key=lambda info: int(info.name))))

    def _path(self, index: int) -> Path:
        return self.directory / f"layer-{index:05d}.safetensors"


def _checksum(outcome_json: str, new_tensors: Sequence[NewTensor], pieces: Iterable[memoryview]) -> str:
    """Return the CRC-32 of everything in a file but the checksum itself, in decimal."""
    total = zlib.crc32(build_header(new_tensors, {_OUTCOME: outcome_json}))
    for piece in pieces:
        total = zlib.crc32(piece, total)
    return str(total)
