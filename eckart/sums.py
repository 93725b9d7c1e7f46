"""Sums over the rows of inputs and gradients: exact products, in float64, in memory or in files."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

# Rows whose products are summed in float32; the sums of such sums are in float64.
ROWS = 2048


class SumStore:
    """Makes room for sums: in memory or, inside a `with` block, in a temporary folder beside a file."""

    def __init__(self, spill_next_to: Path | None = None) -> None:
        self._spill_next_to = spill_next_to
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> Self:
        if (target := self._spill_next_to) is not None:
            self._folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def zeros(self, shape: torch.Size) -> Tensor:
        """Return a sum that is zero so far, in float64."""
        if self._folder is None:
            return torch.zeros(shape, dtype=torch.float64)
        self._files += 1
        file = Path(self._folder.name) / str(self._files)
        mapped = torch.from_file(str(file), shared=True, size=shape.numel(), dtype=torch.float64)
        return mapped.reshape(shape)


@dataclass(eq=False, slots=True)
class Moments:
    """Sums over inputs x of n features: of xxᵀ [n, n] and of x [n], in float64, and how many there were."""

    gram: Tensor
    total: Tensor
    count: int

    @classmethod
    def zeros(cls, n: int, store: SumStore) -> Moments:
        """Return the sums over no inputs."""
        return cls(store.zeros(torch.Size((n, n))), torch.zeros(n, dtype=torch.float64), 0)

    def add(self, other: Moments) -> None:
        """Add the sums of further inputs."""
        self.gram += other.gram
        self.total += other.total
        self.count += other.count

    def copied(self, store: SumStore) -> Moments:
        """Return sums of their own that go on from these."""
        return Moments(store.zeros(self.gram.shape).copy_(self.gram), self.total.clone(), self.count)

    @property
    def mean(self) -> Tensor:
        """The mean of the inputs."""
        return self.total / self.count


def counted_part(x: Tensor, counted: Tensor | None) -> Tensor:
    """Return the rows of values [..., n] that count by a mask [...], as a matrix [rows, n]."""
    rows = x.detach()
    if counted is not None:
        rows = rows[counted]
    return rows.reshape(-1, x.shape[-1])


def moments_of(rows: Tensor) -> Moments:
    """Return the sums over the rows of a matrix [rows, n], on the CPU."""
    total = rows.sum(0, dtype=torch.float64)
    return Moments(product_of(rows), total.cpu(), rows.shape[0])


def product_of(rows: Tensor) -> Tensor:
    """Return the sum of xxᵀ over the rows x of a matrix [rows, n] in float64, on the CPU."""
    n = rows.shape[1]
    total = torch.zeros(n, n, dtype=torch.float64, device=rows.device)
    with _exact(rows.device):
        for block in torch.split(rows, ROWS):
            wide = block.to(torch.promote_types(block.dtype, torch.float32))
            total += wide.mT @ wide
    return total.cpu()


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Disable autocast and TF32: their rounding can make a sum indefinite."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
