"""Sums over the rows of inputs and gradients: of products in float64, in memory or in files."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

# Rows whose products are summed in float32; the sums of such sums are in float64.
ROWS = 2048
# So many rows wait at most: half of the memory of n² sums for n = 256, and a small part for wide layers.
WAITING_ROWS = 256


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


class Moments:
    """Sums over vectors x of n features: of xxᵀ [n, n] and of x [n], in float64, and how many there were.

    A few rows wait for others: a product costs at least n² additions, however few rows it has.
    """

    def __init__(self, n: int, store: SumStore) -> None:
        with _plain_tensors():
            self.gram = store.zeros(torch.Size((n, n)))
            self.total = torch.zeros(n, dtype=torch.float64)
        self.count = 0
        self._waiting: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add the rows of a matrix [rows, n] that nobody else changes."""
        self._waiting.append(rows)
        if sum(rows.shape[0] for rows in self._waiting) >= WAITING_ROWS:
            self.settle()

    def settle(self) -> None:
        """Add the rows that wait."""
        if self._waiting:
            with _plain_tensors():
                rows = torch.cat(self._waiting)
                self._waiting.clear()
                self.gram += product_of(rows)
                self.total += rows.sum(0, dtype=torch.float64).cpu()
                self.count += rows.shape[0]

    def copied(self, store: SumStore) -> Moments:
        """Return sums of their own that go on from these."""
        self.settle()
        copy = Moments(self.total.shape[0], store)
        with _plain_tensors():
            copy.gram.copy_(self.gram)
            copy.total.copy_(self.total)
        copy.count = self.count
        return copy

    @property
    def mean(self) -> Tensor:
        """The mean of the vectors."""
        return self.total / self.count


def counted_part(x: Tensor, counted: Tensor | None) -> Tensor:
    """Copy the rows of values [..., n] that count by a mask [...] to a matrix [rows, n]."""
    rows = x.detach().clone() if counted is None else x.detach()[counted]
    return rows.reshape(-1, x.shape[-1])


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
def _plain_tensors() -> Iterator[None]:
    """Make tensors that can be changed in any mode, though a model may have turned on inference mode."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


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
