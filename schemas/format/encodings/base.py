"""The base of all encodings: one weight that several tensors store together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from schemas.format.header import NewTensor

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from schemas.format.encodings.quantization import Quantization
    from schemas.format.stacks import Expert
    from schemas.format.tensor import TensorInfo

# Last parts of the names of tensors.
WEIGHT, BIAS, PACKED = "weight", "bias", "weight_packed"
# What a tensor is to a weight (`Part.role`).
VALUES, SCALE, GLOBAL_SCALE = "values", "scale", "global_scale"
ZERO_POINT, GROUP_INDEX, SHAPE = "zero_point", "group_index", "shape"
# The dtype of a weight whose scales do not tell one.
DECODED_DTYPE = "BF16"
# What a loader reads beside a quantized weight, and has no use for once the weight is not quantized.
INPUT_SCALES = ("input_scale", "input_global_scale", "activation_scale", "qscale_act", "scale_input")


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a quantized weight: what it is, and the last part of its name."""

    role: str
    last: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """How tensors store a weight [m, n], their module's name aside; the same for many weights.

    Attributes
    ----------
    dtype
        What the weight is once decoded; its factors have it unless the spec asks for another.
    encoding
        The name of the encoding, by which the worker finds its decoder.
    parts
        The tensors that the weight is decoded from; the values come first.
    unused
        Other tensors that belong to the encoding, such as the scale of the inputs.
    tile
        How many rows and columns share a scale; those at the end may be fewer.
    bits
        Of a packed integer; 0 where the dtype of the values says all.
    rank
        Of a product of two parts, the values [r, n, …] and the other factor [m, r, …]; 0 of all else.
    """

    dtype: str
    shape: tuple[int, ...]
    encoding: str
    parts: tuple[Part, ...]
    unused: tuple[Part, ...] = ()
    tile: tuple[int, int] = (1, 1)
    bits: int = 0
    rank: int = 0

    def tensors(self, module: str) -> list[NewTensor]:
        """Return all tensors that go once the weight of a module is replaced; that with the values first."""
        found = (*self.parts, *self.unused)
        return [NewTensor(f"{module}.{part.last}", part.dtype, part.shape) for part in found]

    def names(self, module: str) -> dict[str, str]:
        """Return the names of the tensors that the weight of a module is decoded from, by what they are."""
        return {part.role: f"{module}.{part.last}" for part in self.parts}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors(""))

    @property
    def parameters(self) -> int:
        """Elements of the weight, or of the factors whose product it is."""
        return self.rank * sum(self.shape) if self.rank else math.prod(self.shape)

    @property
    def signature(self) -> str:
        """What the decoded values depend on beside the bytes of the parts."""
        return f"{self.encoding} {self.tile[0]}x{self.tile[1]} {self.bits}"


@dataclass(frozen=True, slots=True)
class EncodedWeight:
    """A quantized weight seen as one tensor of floats, `X.weight`, also where no tensor has this name.

    `values` is the tensor in whose place it is seen, with other experts where it is that of one.
    """

    name: str
    encoded: Encoded
    values: TensorInfo
    expert: Expert | None = None
    transposed: bool = False

    @property
    def dtype(self) -> str:
        return self.encoded.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.encoded.shape

    @property
    def module(self) -> str:
        return self.name.removesuffix(f".{WEIGHT}")

    @property
    def nbytes(self) -> int:
        return self.encoded.nbytes

    @property
    def elements(self) -> int:
        """Elements of all tensors, scales included."""
        return sum(math.prod(tensor.shape) for tensor in self.encoded.tensors(self.module))

    @property
    def parameters(self) -> int:
        return self.encoded.parameters


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The tensors directly below one module, by the last part of their names."""

    module: str
    below: Mapping[str, TensorInfo]

    def get(self, last: str, *dtypes: str) -> TensorInfo | None:
        """Return a tensor of one of these dtypes."""
        found = self.below.get(last)
        return found if found is not None and found.dtype in dtypes else None

    def weight(
        self,
        encoding: str,
        shape: tuple[int, ...],
        parts: Mapping[str, TensorInfo | None],
        *,
        tile: tuple[int, int],
        dtype: str = DECODED_DTYPE,
        unused: tuple[str, ...] = INPUT_SCALES,
        bits: int = 0,
    ) -> Encoded | None:
        """Return how a weight with these parts is stored, unless the module has other tensors."""
        given = {role: tensor for role, tensor in parts.items() if tensor is not None}
        others = [self.below[name] for name in unused if name in self.below]
        known = {tensor.name for tensor in (*given.values(), *others)}
        if any(tensor.name not in known for name, tensor in self.below.items() if name != BIAS):
            return None
        return Encoded(
            dtype,
            shape,
            encoding,
            tuple(self._part(role, tensor) for role, tensor in given.items()),
            tuple(self._part("unused", tensor) for tensor in others),
            tile,
            bits,
        )

    def kind(self, quantization: Quantization) -> Hashable:
        """Return all that it depends on how a weight is found: many modules of a model have the same."""
        found = tuple((last, tensor.dtype, tensor.shape) for last, tensor in self.below.items())
        return found, quantization.formats.get(self.module)

    def seen_as(self, encoded: Encoded) -> EncodedWeight:
        """Return the weight of the module, which is stored so."""
        return EncodedWeight(f"{self.module}.{WEIGHT}", encoded, self.below[encoded.parts[0].last])

    def _part(self, role: str, tensor: TensorInfo) -> Part:
        return Part(role, tensor.name.removeprefix(f"{self.module}."), tensor.dtype, tensor.shape)


class Encoding(Protocol):
    """Finds weights of one encoding."""

    @property
    def markers(self) -> frozenset[str]:
        """Last parts of names of which a module of this encoding has at least one."""

    def find(self, near: Neighbours, quantization: Quantization) -> Encoded | None:
        """Return how the weight of a module is stored, or None if nothing tells for certain."""


ENCODINGS: list[Encoding] = []
E = TypeVar("E", bound=type[Encoding])


def register(encoding: E) -> E:
    """Add an encoding to the table."""
    ENCODINGS.append(encoding())
    return encoding


def tiles(shape: tuple[int, ...], tile: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the scales of a weight; the last tiles may be partial."""
    return tuple(-(-size // step) for size, step in zip(shape, tile, strict=True))
