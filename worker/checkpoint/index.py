"""Writing the index of a sharded checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from schemas.index import index_json
from worker.checkpoint.part import PartFile, WrittenFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_index(
    path: Path,
    weight_map: Mapping[str, str],
    *,
    metadata: Mapping[str, Any],
    total_size_bytes: int,
    total_parameters: int,
) -> WrittenFile:
    """
    Write the index of a sharded checkpoint, published by rename.

    Parameters
    ----------
    path : Path
        Where the index shall appear.
    weight_map : mapping of str to str
        The file name of each tensor, in the order to list them.
    metadata : mapping
        The input index's metadata. ``total_size`` is set; ``total_parameters`` is updated where it stands.
    total_size_bytes : int
        The bytes of all tensors together, at least 0.
    total_parameters : int
        The elements of all tensors together, at least 0.

    Returns
    -------
    WrittenFile
        The published file.

    Raises
    ------
    ValueError
        If the metadata hold what JSON cannot: NaN, infinity or half of a surrogate pair.
    FileExistsError
        If another process began to write the same path meanwhile.
    OSError
        If the file cannot be written, forced to the disk or renamed.
    """
    text = index_json(
        weight_map,
        metadata=metadata,
        total_size_bytes=total_size_bytes,
        total_parameters=total_parameters,
    )
    with PartFile(path) as part:
        part.write(text)
    return part.written()
