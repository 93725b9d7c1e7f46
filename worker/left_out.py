"""What an adapter does not hold: differences of layers that were left out, and of all other tensors."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from schemas.format.errors import listed
from schemas.format.tensor import DTYPE_BITS, FLOAT_DTYPES, TensorInfo
from schemas.report import NOT_LINEAR
from worker.checkpoint.reader import torch_dtype
from worker.context import TensorReaders
from worker.difference import subtract
from worker.layer import LayerOutcome
from worker.work_plan import WorkPlan, tensor_sources

CHUNK_ELEMENTS = 1 << 20
Source = tuple[Path, TensorInfo]


def count_left_out(
    work: WorkPlan,
    outcomes: Sequence[LayerOutcome],
    readers: TensorReaders,
    *,
    check_canceled: Callable[[], None],
) -> tuple[tuple[LayerOutcome, ...], tuple[str, ...]]:
    """Find the differences that are not in the adapter.

    `check_canceled` is called before each tensor; an exception from it stops the work.

    Returns
    -------
    outcomes, warnings
        The outcomes, in which a linear layer that was left out has an error of its whole difference; and a
        warning that names all other tensors that differ.
    """
    assert work.base is not None
    written = {outcome.report.tensor for outcome in outcomes if outcome.rank is not None}
    mine, theirs = tensor_sources(work.checkpoint), tensor_sources(work.base)
    squared = {}
    for name in mine:
        if name in theirs and name not in written:
            check_canceled()
            squared[name] = _squared_difference(readers, mine[name], theirs[name])
    squared = {name: found for name, found in squared.items() if found}
    counted = tuple(_with_difference(outcome, squared) for outcome in outcomes)
    total = sum(outcome.squared_norm for outcome in counted) + _finite_sum(squared)
    return counted, _warnings(squared, total)


def _with_difference(outcome: LayerOutcome, squared: dict[str, float]) -> LayerOutcome:
    """Move the difference of a linear layer that was left out from `squared` to its outcome."""
    report = outcome.report
    if report.rank is not None or report.reason in NOT_LINEAR or report.tensor not in squared:
        return outcome
    found = squared.pop(report.tensor)
    if not math.isfinite(found):
        return outcome
    return outcome.model_copy(update={"squared_error": found, "squared_norm": found})


def _squared_difference(readers: TensorReaders, mine: Source, theirs: Source) -> float:
    """Return the squared norm of a difference, by pieces; infinite if it is not finite, or of no floats."""
    total = 0.0
    for piece, base_piece in zip(_pieces(readers, mine), _pieces(readers, theirs), strict=True):
        if mine[1].dtype not in FLOAT_DTYPES:
            total = total if piece == base_piece else math.inf
            continue
        weight, base = _floats(piece, mine[1]), _floats(base_piece, theirs[1])
        squared = float(torch.linalg.vector_norm(subtract(weight, base), dtype=torch.float64)) ** 2
        total += squared if math.isfinite(squared) else math.inf
    return total


def _pieces(readers: TensorReaders, source: Source) -> Iterator[memoryview]:
    path, info = source
    # Pieces of the same elements, whatever the dtypes.
    return readers.chunks(path, info, chunk_bytes=CHUNK_ELEMENTS * DTYPE_BITS[info.dtype] // 8)


def _floats(piece: memoryview, info: TensorInfo) -> torch.Tensor:
    return torch.frombuffer(piece, dtype=torch_dtype(info.dtype))


def _finite_sum(squared: Mapping[str, float]) -> float:
    return sum(value for value in squared.values() if math.isfinite(value))


def _warnings(squared: Mapping[str, float], total: float) -> tuple[str, ...]:
    if not squared:
        return ()
    share = _finite_sum(squared) / total if total else 0.0
    largest = sorted(squared, key=lambda name: -squared[name])
    named = listed([f"{name} ({_share(squared[name], total)})" for name in largest])
    verb = "tensor differs" if len(squared) == 1 else "tensors differ"
    text = (
        f"base: {len(squared)} {verb} from the base but cannot be in the adapter, "
        f"{share:.2%} of the squared norm of the whole difference: {named}"
    )
    return (text,)


def _share(squared: float, total: float) -> str:
    return f"{squared / total:.2%}" if math.isfinite(squared) and total else "not a finite difference"
