"""Differences between the tensors of a checkpoint and of its base, one pair in memory at a time."""

import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from schemas.format.files import CheckpointFiles
from schemas.format.tensor import DTYPE_BITS, FLOAT_DTYPES, TensorInfo
from worker.checkpoint.reader import CheckpointReader, torch_dtype
from worker.work_plan import tensor_sources

CHUNK_ELEMENTS = 1 << 20
Source = tuple[Path, TensorInfo]


def subtract(weight: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return W - W_base in float32 at least, which is exact where two float32 values are close.

    Values that are equal differ by zero, also if they are infinite.
    """
    dtype = torch.promote_types(torch.promote_types(weight.dtype, base.dtype), torch.float32)
    difference = weight.to(dtype, copy=True).sub_(base.to(dtype))
    if not bool(torch.isfinite(difference).all()):
        difference.masked_fill_(weight == base, 0)
    return difference


def squared_differences(
    checkpoint: CheckpointFiles,
    base: CheckpointFiles,
    names: Collection[str],
    *,
    check_canceled: Callable[[], None],
) -> dict[str, float]:
    """Return the squared norm of the difference of each named tensor that both have and that differs.

    It is infinite where the difference is not finite, and for tensors that are not numbers of a floating
    dtype. `check_canceled` is called before each tensor; an exception from it stops the work.
    """
    mine, theirs = tensor_sources(checkpoint), tensor_sources(base)
    found = {}
    for name in names:
        if name in theirs:
            check_canceled()
            if squared := _squared_difference(mine[name], theirs[name]):
                found[name] = squared
    return found


def _squared_difference(mine: Source, theirs: Source) -> float:
    total = 0.0
    with CheckpointReader(mine[0]) as reader, CheckpointReader(theirs[0]) as base_reader:
        pairs = zip(_pieces(reader, mine[1]), _pieces(base_reader, theirs[1]), strict=True)
        for piece, base_piece in pairs:
            if mine[1].dtype not in FLOAT_DTYPES:
                total = total if bytes(piece) == bytes(base_piece) else math.inf
                continue
            weight, base = _floats(piece, mine[1]), _floats(base_piece, theirs[1])
            squared = float(torch.linalg.vector_norm(subtract(weight, base), dtype=torch.float64)) ** 2
            total += squared if math.isfinite(squared) else math.inf
    return total


def _pieces(reader: CheckpointReader, info: TensorInfo) -> Iterator[memoryview]:
    # Pieces of the same elements, whatever the dtypes.
    return reader.chunks(info, chunk_bytes=CHUNK_ELEMENTS * DTYPE_BITS[info.dtype] // 8)


def _floats(piece: memoryview, info: TensorInfo) -> torch.Tensor:
    return torch.frombuffer(piece, dtype=torch_dtype(info.dtype))
