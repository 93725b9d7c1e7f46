"""Layers that run a convolution as a chain of smaller ones, and have what the convolution has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from eckart.torch.forms import factor_name
from eckart.torch.layers import Compressed
from eckart.torch.product import when_used

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eckart.torch.kernels import Kernels

# By the number of the kernel's sides.
CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def stock_class(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class of torch that a layer computes as; None where it has a way of its own."""
    kind: Any = type(layer)
    for stock in (*CONVS.values(), *TRANSPOSED.values()):
        if isinstance(layer, stock):
            same = kind.forward is stock.forward and kind.__call__ is nn.Module.__call__
            inner = getattr(stock, "_conv_forward", None)
            return stock if same and getattr(kind, "_conv_forward", None) is inner else None
    return None


class LowRankConv(Compressed):
    """Convolutions that together are one, but for their error; the last one has the bias of the whole.

    It has the attributes of the convolution in whose place it stands: `stride`, `padding`, `out_channels`.
    """

    _form: Kernels
    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias", "sizes", "form"]

    def __init__(self, form: Kernels, parts: list[nn.Module]) -> None:
        super().__init__(*parts)
        self._form = form

    @property
    def form(self) -> Kernels:
        """The method and the shapes of its kernels."""
        return self._form

    @property
    def weight(self) -> Tensor:
        """The kernel that the parts stand for, differentiable; computed where it is used."""
        first: Any = self[0].weight
        return when_used(self._weight, self.form.shape, first)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last part."""
        bias: Tensor | None = self[-1].bias  # type: ignore[assignment]
        return bias

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of inputs of each kernel, and the number of outputs."""
        return (*(shape[1] for shape in self.form.factors), self.form.factors[-1][0])

    def _weight(self) -> Tensor:
        own: dict[str, Any] = {factor_name(number): part.weight for number, part in enumerate(self)}
        return self.form.weight(own)


class LowRankConvTranspose(LowRankConv):
    """The same in place of a transposed convolution."""

    transposed = True

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Compute the outputs, of a size that may be asked for as of a transposed convolution."""
        if output_size is None:
            return nn.Sequential.forward(self, x)  # type: ignore[no-any-return, no-untyped-call]
        wanted = list(output_size)[-len(self.form.whole[2:]) :]
        for number, part in enumerate(self):
            carried = self.form.chain.sides(number, len(wanted))
            sides = [side if at in carried else x.shape[2 + at] for at, side in enumerate(wanted)]
            x = part(x, output_size=sides)
            wanted = [x.shape[2 + at] if at in carried else side for at, side in enumerate(wanted)]
        return x


class _Shared:
    """A convolution in groups that share its filters; `weight` has those of one group."""

    sharing: int

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self
        repeated = conv.weight.repeat(self.sharing, *(1,) * (conv.weight.dim() - 1))
        result: Tensor = conv._conv_forward(x, repeated, conv.bias)  # noqa: SLF001 - its own
        return result


class SharedConv1d(_Shared, nn.Conv1d):
    """In one dimension."""


class SharedConv2d(_Shared, nn.Conv2d):
    """In two dimensions."""


class SharedConv3d(_Shared, nn.Conv3d):
    """In three dimensions."""


SHARED: dict[int, type[nn.Module]] = {1: SharedConv1d, 2: SharedConv2d, 3: SharedConv3d}


def new_convolution(layer: Any, form: Kernels, bias: nn.Parameter | None, *, trained: bool) -> LowRankConv:
    """Make empty convolutions that run a kernel's form as a layer runs its kernel; the last has the bias."""
    parts = list(_parts(layer, form, trained=trained))
    parts[-1].register_parameter("bias", bias)
    return (LowRankConvTranspose if form.transposed else LowRankConv)(form, parts)


def _parts(layer: Any, form: Kernels, *, trained: bool) -> Iterator[nn.Module]:
    """Make the parts; each takes stride, padding and dilation along the sides that its kernel has."""
    count, groups, last = len(form.whole) - 2, layer.groups, len(form.factors) - 1
    like: Tensor = layer.weight
    for number, shape in enumerate(form.factors):
        carried = form.chain.sides(number, count)
        is_shared = groups > 1 and number < last
        inputs = form.inputs_of(number)
        classes = TRANSPOSED if form.transposed else SHARED if is_shared else CONVS
        own = groups * (inputs if number == form.chain.depthwise else 1)
        part: Any = classes[count](
            inputs * groups,
            shape[0] * groups if is_shared else shape[0],
            shape[2:],
            groups=own,
            bias=False,
            device="meta",
            **_settings(layer, carried, count),
        )
        stored = tuple(form.tensors[factor_name(number)].shape)
        empty = torch.empty(stored, dtype=like.dtype, device=like.device)
        part.weight = nn.Parameter(empty, requires_grad=trained)
        if is_shared:
            part.sharing = groups
        yield part.train(layer.training)


def _settings(layer: Any, carried: Any, count: int) -> dict[str, Any]:
    """Return the stride, padding and dilation of a part that has these sides of the kernel."""

    def along(values: Any, other: int) -> tuple[int, ...]:
        return tuple(values[at] if at in carried else other for at in range(count))

    settings: dict[str, Any] = {
        "stride": along(layer.stride, 1),
        "dilation": along(layer.dilation, 1),
        "padding_mode": layer.padding_mode if carried else "zeros",
    }
    if isinstance(layer.padding, str):
        settings["padding"] = layer.padding if carried else 0
    else:
        settings["padding"] = along(layer.padding, 0)
    if layer.transposed:
        settings["output_padding"] = along(layer.output_padding, 0)
    return settings
