"""Convolutions as a chain of smaller ones: the stored kernels, and the kernel that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from eckart.torch.forms import BIAS, Form, factor_name
from eckart.torch.matrices import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """How the kernels of one method follow one another.

    `carried` says of each factor which sides of the kernel it has, None for all. `depthwise` is the factor
    with one filter, or several, for each of its inputs.
    """

    carried: Sequence[Sequence[int] | None]
    depthwise: int | None = None

    def sides(self, number: int, count: int) -> Sequence[int]:
        """Return which of so many sides a factor has; it has one element along the others."""
        carried = self.carried[number]
        return range(count) if carried is None else carried


# By the method that the metadata name.
CHAINS: dict[str, Chain] = {
    "channel": Chain((None, ())),
    "spatial": Chain(((0,), (1,))),
    "tucker2": Chain(((), None, ())),
    "cp": Chain(((), None, ()), depthwise=1),
    "separable": Chain((None, ()), depthwise=0),
}


@dataclass(frozen=True, slots=True)
class Kernels(Form):
    """Kernels [outputs, inputs, *sides] that follow one another; `whole` is the one that they stand for.

    All are shaped as in a convolution that is not transposed.
    """

    method: str
    whole: Shape
    rank_named: int
    factors: tuple[Shape, ...]

    def inputs_of(self, number: int) -> int:
        """Return the number of channels that a factor takes, which a depthwise kernel does not tell."""
        return self.factors[number - 1][0] if number else self.whole[1]

    @property
    def chain(self) -> Chain:
        """How the kernels follow one another."""
        return CHAINS[self.method]

    @property
    def shape(self) -> Shape:
        """The shape of the weight."""
        return turned(self.whole) if self.transposed else self.whole

    @property
    def rank(self) -> int:
        """The rank that the metadata name."""
        return self.rank_named

    @property
    def bias(self) -> str:
        """The bias of the last kernel."""
        return f"{len(self.factors) - 1}.{BIAS}"

    @property
    def tensors(self) -> dict[str, Kind]:
        """The kernels as they are stored."""
        stored = [turned(shape) if self.transposed else shape for shape in self.factors]
        return {factor_name(number): Kind(shape) for number, shape in enumerate(stored)}

    @property
    def trained(self) -> frozenset[str]:
        """All kernels."""
        return frozenset(self.tensors)

    def weight(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Multiply the kernels."""
        kernels = [stored[name] for name in self.tensors]
        if self.transposed:
            kernels = [kernel.transpose(0, 1) for kernel in kernels]
        whole = joined(self.method, kernels, self.whole)
        return whole.transpose(0, 1) if self.transposed else whole


def turned(shape: Shape) -> Shape:
    """Return a shape with its first two sides exchanged."""
    return (shape[1], shape[0], *shape[2:])


def joined(method: str, kernels: Sequence[Tensor], whole: Shape) -> Tensor:
    """Return the kernel that a method's kernels stand for."""
    first, last = kernels[0], kernels[-1].flatten(1)
    if method == "spatial":
        return torch.einsum("rih,orw->oihw", first.squeeze(3), kernels[1].squeeze(2))
    if method == "tucker2":
        return torch.einsum("ri,srk,os->oik", first.flatten(1), kernels[1].flatten(2), last).reshape(whole)
    if method == "cp":
        return torch.einsum("ri,rk,or->oik", first.flatten(1), kernels[1].flatten(1), last).reshape(whole)
    if method == "separable":
        filters = first.reshape(whole[1], -1, *first.shape[2:]).flatten(2)  # [i, r, k]
        return torch.einsum("irk,oir->oik", filters, last.reshape(whole[0], *filters.shape[:2])).reshape(
            whole
        )
    return (last @ first.flatten(1)).reshape(whole)


def chain_fits(method: str, whole: Shape, factors: Sequence[Shape]) -> bool:
    """Whether kernels of these shapes follow one another and make up the whole one."""
    chain = CHAINS[method]
    if len(factors) != len(chain.carried) or any(len(shape) != len(whole) for shape in factors):
        return False
    sides = whole[2:]
    inputs = whole[1]
    for number, (outputs, own, *rest) in enumerate(factors):
        carried = chain.sides(number, len(sides))
        if rest != [side if at in carried else 1 for at, side in enumerate(sides)]:
            return False
        if own != (1 if number == chain.depthwise else inputs) or outputs == 0:
            return False
        if number == chain.depthwise and outputs % inputs:
            return False
        inputs = outputs
    return inputs == whole[0]
