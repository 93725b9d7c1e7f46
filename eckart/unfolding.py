"""A convolution as a linear layer: its inputs unfolded, one row for each position of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

# Elements of the rows that are unfolded at once.
PIECE = 1 << 22


@dataclass(frozen=True)
class Unfolding:
    """Where the kernel of a convolution goes; layers with the same one and the same input share a sum.

    `padding` is in the order of `torch.nn.functional.pad`.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    mode: str

    @classmethod
    def of(cls, layer: nn.Module) -> Unfolding | None:
        """Return that of a convolution; None of any other layer, and of one in groups or transposed."""
        if not is_convolution(layer):
            return None
        conv: Any = layer
        padding = tuple(conv._reversed_padding_repeated_twice)  # noqa: SLF001 - torch's own, and its only one
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        return cls(tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation), padding, mode)

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the rows [positions, inputs·kernel] of inputs [batch, inputs, *sides], some at a time."""
        batch = x if x.dim() == len(self.kernel) + 2 else x[None]
        per_sample = prod(self.kernel) * batch[0].numel()
        for piece in torch.split(batch, max(1, PIECE // max(1, per_sample))):
            yield self._unfold(piece)

    def _unfold(self, x: Tensor) -> Tensor:
        inputs, sides = x.shape[1], len(self.kernel)
        views = functional.pad(x, self.padding, self.mode)
        for side, (length, stride, dilation) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True)
        ):
            # Every position of a window as long as the dilated kernel; of it, what the kernel meets.
            views = views.unfold(2 + side, dilation * (length - 1) + 1, stride)[..., ::dilation]
        views = views.permute(_order(sides))  # [batch, *positions, inputs, *kernel]
        return views.reshape(-1, inputs * prod(self.kernel))


def is_convolution(layer: nn.Module) -> bool:
    """Whether a layer is a plain convolution without groups."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1


def _order(sides: int) -> tuple[int, ...]:
    return (0, *range(2, 2 + sides), 1, *range(2 + sides, 2 + 2 * sides))
