"""How many bytes a compression will take, known before any of it is done."""

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.format.header import Header
from schemas.format.index import ShardIndex
from schemas.format.tensor import TensorInfo


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The headers of a whole checkpoint, by file name and in that order, and its index where it has one."""

    headers: Mapping[str, Header]
    index: ShardIndex | None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor, by file and then by offset."""
        return tuple(tensor for header in self.headers.values() for tensor in header.tensors)
