"""A weight that a file does not hold dense: what its entry and its tensors say of its form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from eckart.checkpoint import listed
from eckart.errors import LoadError
from eckart.torch.forms import (
    INT8,
    MOST_FACTORS,
    PIVOT,
    ROWS,
    WEIGHT,
    Factors,
    Form,
    Pivot,
    Quantized,
    chain_sizes,
    factor_name,
)
from eckart.torch.kernels import CHAINS, Kernels, chain_fits, turned
from eckart.torch.manifest import quantized_bits
from eckart.torch.matrices import PACKED, SCALE, SHAPE, Int8Matrix, Kind, PackedMatrix
from eckart.torch.packing import packed_widths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from eckart.torch.manifest import FactoredLayer

# What any form stores below a module.
BELOW = (
    *(
        matrix + ending
        for matrix in (WEIGHT, *map(factor_name, range(MOST_FACTORS)))
        for ending in ("", SCALE, PACKED, SHAPE)
    ),
    ROWS,
)
DAMAGED = "the file is damaged, compress the checkpoint again"


class Found(NamedTuple):
    """A tensor of a file; the dtype is None where a codec has made it."""

    shape: tuple[int, ...]
    dtype: str | None


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight of a file: its module's name there, its entry, and its form."""

    name: str
    entry: FactoredLayer
    form: Form

    @property
    def tensors(self) -> dict[str, str]:
        """The names in the file, by those below the module."""
        return {below: f"{self.name}.{below}" for below in self.form.tensors}

    @property
    def bias(self) -> str:
        """The name of the bias, where there is one."""
        return f"{self.name}.{self.form.bias}"

    def weight(self, read: Callable[[str], Tensor]) -> Tensor:
        """Return the dense weight, in float32 at least, of tensors that are read by their names."""
        return self.form.wide_weight({below: read(name) for below, name in self.tensors.items()})

    def check_values(self, read: Callable[[str], Tensor]) -> None:
        """Refuse a shape or indices that do not fit."""
        names = self.form.told_by_values
        wrong = names and self.form.wrong_values({below: read(self.tensors[below]) for below in names})
        if wrong:
            raise LoadError(f"{self.name}.{wrong}; {DAMAGED}")


def is_quantized(entry: FactoredLayer) -> bool:
    """Whether a method stores the weight itself as integers."""
    return quantized_bits(entry.method) is not None


def first_tensor(name: str, entry: FactoredLayer) -> str:
    """Return the name of the tensor that says in which file a layer is."""
    bits = quantized_bits(entry.method)
    if bits is None:
        return f"{name}.{factor_name(0)}"
    return f"{name}.{WEIGHT}" if bits == 8 else f"{name}.{WEIGHT}{PACKED}"


def stored_weight(name: str, entry: FactoredLayer, found: Mapping[str, Found]) -> StoredWeight | None:
    """Check that the tensors of a layer are what its entry says; None where its weight is dense."""
    own = {below: found[f"{name}.{below}"] for below in BELOW if f"{name}.{below}" in found}
    if len(entry.shape) > 2:
        form = _convolution(name, entry, own)
    else:
        form = _quantized(name, entry, own) if is_quantized(entry) else _factored(name, entry, own)
    if form is None:
        return None
    _check(name, form, own)
    return StoredWeight(name, entry, form)


def _sizes(entry: FactoredLayer) -> tuple[int, int]:
    """Return outputs and inputs."""
    first, second = entry.shape[:2]
    return (second, first) if entry.transposed else (first, second)


def _codec(entry: FactoredLayer) -> str | None:
    """Return the codec of factors that a layer runs as it is; others have been decoded."""
    return entry.codec if entry.codec == INT8 else None


def _factor_shapes(own: Mapping[str, Found]) -> list[tuple[int, ...]]:
    names = map(factor_name, range(MOST_FACTORS))
    return [own[factor].shape for factor in names if factor in own]


def _convolution(name: str, entry: FactoredLayer, own: Mapping[str, Found]) -> Form | None:
    if WEIGHT in own:
        return None  # multiplied out: `layout: dense`
    if entry.method not in CHAINS:
        raise LoadError(
            f"{name} is a convolution of the method {entry.method!r}, which this version of eckart cannot "
            "run; upgrade it"
        )
    stored = _factor_shapes(own)
    factors = tuple(turned(shape) if entry.transposed and len(shape) > 1 else shape for shape in stored)
    whole = turned(entry.shape) if entry.transposed else entry.shape
    if not chain_fits(entry.method, whole, factors) or entry.rank == 0:
        raise LoadError(
            f"the factors of {name} have the shapes {[list(shape) for shape in stored]}, which do not make "
            f"up {list(entry.shape)} by {entry.method}; {DAMAGED}"
        )
    return Kernels(entry.transposed, entry.method, whole, entry.rank, factors)


def _factored(name: str, entry: FactoredLayer, own: Mapping[str, Found]) -> Form | None:
    if WEIGHT in own:
        return None  # multiplied out: `layout: dense`
    outputs, inputs = _sizes(entry)
    if entry.method == PIVOT:
        if not 0 < entry.rank < outputs:
            raise LoadError(f"{name} has {entry.rank} pivot rows of {outputs}; {DAMAGED}")
        return Pivot(entry.transposed, (inputs, entry.rank, outputs), _codec(entry))
    shapes = _factor_shapes(own)
    sizes = chain_sizes(shapes, transposed=entry.transposed)
    fits = (
        sizes is not None
        and factor_name(len(shapes) - 1) in own
        and (sizes[0], sizes[-1]) == (inputs, outputs)
        and set(sizes[1:-1]) == {entry.rank}
        and entry.rank > 0
    )
    if not fits or sizes is None:
        raise LoadError(
            f"the factors of {name} have the shapes {[list(shape) for shape in shapes]}, which do not make "
            f"up {list(entry.shape)} at rank {entry.rank}; {DAMAGED}"
        )
    return Factors(entry.transposed, sizes, _codec(entry))


def _quantized(name: str, entry: FactoredLayer, own: Mapping[str, Found]) -> Form | None:
    bits, (outputs, inputs) = quantized_bits(entry.method), _sizes(entry)
    whole = own.get(WEIGHT)
    if whole is not None and whole.dtype != "I8" and not {WEIGHT + SCALE, WEIGHT + PACKED} & own.keys():
        return None  # multiplied out: `layout: dense`
    matrix: Int8Matrix | PackedMatrix = Int8Matrix((outputs, inputs))
    if bits is not None and bits < 8:
        matrix = _packed(name, entry, bits, own)
    factors = Factors(entry.transposed, (inputs, entry.rank, outputs), _codec(entry)) if entry.rank else None
    return Quantized(entry.transposed, matrix, factors)


def _packed(name: str, entry: FactoredLayer, bits: int, own: Mapping[str, Found]) -> PackedMatrix:
    outputs, inputs = _sizes(entry)
    widths = packed_widths(inputs, bits)
    width, groups = (_width(own.get(WEIGHT + ending)) for ending in (PACKED, SCALE))
    # A scale for each group: what the entry does not say, their number does.
    group = entry.group or inputs // max(groups, 1)
    if not group or inputs % group:
        raise LoadError(f"{name} has {inputs} columns, which do not come in groups of {group}; {DAMAGED}")
    return PackedMatrix((outputs, inputs), bits, width if width in widths else min(widths), group)


def _width(found: Found | None) -> int:
    return found.shape[-1] if found and found.shape else 0


def _check(name: str, form: Form, own: Mapping[str, Found]) -> None:
    """Refuse what is not there, or has another shape or dtype."""
    if lost := [f"{name}.{below}" for below in form.tensors if below not in own]:
        raise LoadError(f"the checkpoint lacks {listed(lost)}; {DAMAGED}")
    for below, wanted in form.tensors.items():
        found = own[below]
        if found.shape != wanted.shape or found.dtype not in {None, *wanted.dtypes}:
            raise LoadError(
                f"{name}.{below} is {_told(found)}, but {list(form.shape)} at rank {form.rank} needs "
                f"{_told(wanted)}; {DAMAGED}"
            )


def _told(kind: Found | Kind) -> str:
    dtypes = kind.dtypes if isinstance(kind, Kind) else (kind.dtype or "decoded",)
    return f"{' or '.join(dtypes)} {list(kind.shape)}"
