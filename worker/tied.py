"""Find weights with the bytes of a tensor that is not selected, as a head may have those of an embedding."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from schemas.format.errors import quoted
from schemas.format.tensor import TensorInfo
from schemas.planning.budget import settle
from schemas.planning.left_out import left_out_warnings
from schemas.problem import SpecError
from worker.context import TensorReaders
from worker.work_plan import WorkPlan, tensor_sources

# What is read of a tensor to see that it differs from most others.
HEAD_BYTES = 4096
TIED_MEMBER = (
    "{name} has the bytes of a tensor that is not in a pair, so a loader may tie the two, and its neurons "
    "cannot be cut. Name the other MLPs in `pairs`, without it."
)


@dataclass(frozen=True)
class StoredBytes:
    """The bytes of one tensor, of which no more is read than needed."""

    path: Path
    tensor: TensorInfo
    readers: TensorReaders

    @cached_property
    def head(self) -> bytes:
        return bytes(next(self.readers.chunks(self.path, self.tensor, chunk_bytes=HEAD_BYTES), b""))

    @cached_property
    def digest(self) -> bytes:
        """A digest of all bytes; each tensor is read once, however many it is compared with."""
        digest = hashlib.blake2b()
        for chunk in self.readers.chunks(self.path, self.tensor):
            digest.update(chunk)
        return digest.digest()


def keep_tied(work: WorkPlan, readers: TensorReaders, *, check_canceled: Callable[[], None]) -> WorkPlan:
    """Keep dense each layer whose weight has the dtype, shape and bytes of a tensor that is not selected.

    A loader ties the two, so that the factors could not take the place of both. `check_canceled` is called
    before each layer that is compared; an exception from it stops the work.

    Raises
    ------
    SpecError
        If it is a member of a pair, which cannot stay dense alone.
    """
    unselected = _unselected_by_head(work, readers)
    tied = set()
    for task in work.tasks:
        others = unselected.get(_kind(task.tensor)) if task.layer.reason is None else None
        if not others:
            continue
        check_canceled()
        own = StoredBytes(task.path, task.tensor, readers)
        if any(own.digest == other.digest for other in others.get(own.head, ())):
            if task.layer.pair is not None:
                raise SpecError("/pairs", TIED_MEMBER.format(name=quoted(task.layer.name)))
            tied.add(task.number)
    return _with_reason(work, tied) if tied else work


def _unselected_by_head(
    work: WorkPlan, readers: TensorReaders
) -> dict[tuple[str, tuple[int, ...]], dict[bytes, list[StoredBytes]]]:
    """Return the tensors that a layer could equal, by dtype and shape, and then by their first bytes."""
    selected = {task.tensor.name for task in work.tasks}
    kinds = {_kind(task.tensor) for task in work.tasks if task.layer.reason is None and task.tensor.nbytes}
    found: defaultdict[tuple[str, tuple[int, ...]], dict[bytes, list[StoredBytes]]] = defaultdict(dict)
    for path, tensor in tensor_sources(work.checkpoint).values():
        if tensor.name not in selected and _kind(tensor) in kinds:
            stored = StoredBytes(path, tensor, readers)
            found[_kind(tensor)].setdefault(stored.head, []).append(stored)
    return found


def _kind(tensor: TensorInfo) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _with_reason(work: WorkPlan, tied: Collection[int]) -> WorkPlan:
    before = set(left_out_warnings(work.plan))
    tasks = list(work.tasks)
    for number in tied:
        tasks[number] = replace(tasks[number], layer=settle(tasks[number].layer, "tied"))
    work = replace(work, tasks=tuple(tasks))
    others = tuple(warning for warning in work.warnings if warning not in before)
    return replace(work, warnings=(*others, *left_out_warnings(work.plan)))
