"""The plan: its layers, in columns since most differ in nothing but their names, and what it leaves out."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, NamedTuple, Self, overload

from schemas.planning.layer import LayerPlan

# All fields but the name, which is the first.
_but_name = attrgetter(*(each.name for each in fields(LayerPlan)[1:]))


class Layers(Sequence[LayerPlan]):
    """Layers in their order; each is made when it is asked for.

    Names are UTF-8, one after another, and end at `_name_ends`. `_values` are the other fields of each kind
    of layer; `numbers` says of which kind each one is.
    """

    def __init__(self) -> None:
        self._values: list[tuple[Any, ...]] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self._names = bytearray()
        self._name_ends = array("I")
        self.numbers = array("I")

    @classmethod
    def of(cls, layers: Iterable[LayerPlan]) -> Self:
        """Return these layers as columns."""
        if isinstance(layers, cls):
            return layers
        made = cls()
        for layer in layers:
            made.append(layer.name, made.kind_of(layer))
        return made

    def kind_of(self, layer: LayerPlan) -> int:
        """Return the number of a layer's kind, for `append`."""
        values = _but_name(layer)
        number = self._known.setdefault(values, len(self._values))
        if number == len(self._values):
            self._values.append(values)
        return number

    def kind(self, number: int) -> LayerPlan:
        """Return a layer of a kind, without a name."""
        return LayerPlan("", *self._values[number])

    @property
    def kinds(self) -> Iterator[LayerPlan]:
        """One layer of each kind, without a name."""
        return map(self.kind, range(self.num_kinds))

    @property
    def num_kinds(self) -> int:
        return len(self._values)

    def append(self, name: str, kind: int) -> None:
        self._names += name.encode()
        self._name_ends.append(len(self._names))
        self.numbers.append(kind)

    def named(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each layer, and the number of its kind."""
        begin = 0
        for end, number in zip(self._name_ends, self.numbers, strict=True):
            yield self._names[begin:end].decode(), number
            begin = end

    def counted(self) -> Iterator[tuple[LayerPlan, int]]:
        """Yield each kind, and how many layers are of it."""
        counts = Counter(self.numbers)
        return ((layer, counts[number]) for number, layer in enumerate(self.kinds))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> LayerPlan: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[LayerPlan, ...]: ...
    def __getitem__(self, at: int | slice) -> LayerPlan | tuple[LayerPlan, ...]:
        places = range(len(self.numbers))[at]
        return self._layer(places) if isinstance(places, int) else tuple(map(self._layer, places))

    def __iter__(self) -> Iterator[LayerPlan]:
        values = self._values
        return (LayerPlan(name, *values[number]) for name, number in self.named())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(map(LayerPlan.__eq__, self, other))
        )

    def __hash__(self) -> int:
        return hash(tuple(self))

    def _layer(self, at: int) -> LayerPlan:
        begin = self._name_ends[at - 1] if at else 0
        name = self._names[begin : self._name_ends[at]].decode()
        return LayerPlan(name, *self._values[self.numbers[at]])


class LeftOut(NamedTuple):
    """The tensors that one rule leaves out: how many, their elements and bytes, and the first names."""

    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All selected weights in the checkpoint's order, and warnings about probable mistakes in the spec.

    `unselected` has all other tensors, by the rule that leaves them out. `adapter` says whether the output
    holds nothing but the factors of a difference.
    """

    layers: Sequence[LayerPlan]
    warnings: tuple[str, ...]
    unselected: Mapping[str, LeftOut] = field(default_factory=dict)
    adapter: bool = False

    def counted(self) -> Iterable[tuple[LayerPlan, int]]:
        """Yield layers and how many there are of each, their names aside: few where they are in columns."""
        if isinstance(self.layers, Layers):
            return self.layers.counted()
        return ((layer, 1) for layer in self.layers)
