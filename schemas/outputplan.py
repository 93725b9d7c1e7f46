"""What an output file will hold: its tensors in their order, and what it says of itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schemas.arrangement import TensorSpec
from schemas.manifest import FactoredLayer, with_factored
from schemas.plan import BIAS, LayerPlan
from schemas.tensor import TensorInfo


@dataclass(frozen=True, slots=True)
class Copied:
    """A tensor that goes over byte for byte, maybe under a new name."""

    name: str
    tensor: TensorInfo

    @property
    def spec(self) -> TensorSpec:
        """The tensor to be written."""
        return TensorSpec(self.name, self.tensor.dtype, self.tensor.shape)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that was computed: factor `position` of layer `number`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    number: int
    position: int

    @property
    def spec(self) -> TensorSpec:
        """The tensor to be written."""
        return TensorSpec(self.name, self.dtype, self.shape)


def plan_output(
    tensors: Iterable[TensorInfo], layers: Sequence[LayerPlan], ranks: Mapping[int, int]
) -> tuple[Copied | Stored, ...]:
    """Lay out one output file in its input's order.

    `layers` are those of the whole checkpoint, since a bias may lie in another file than its weight; `ranks`
    holds the rank of each layer that is factored, by its number in that order.
    """
    weights = {layers[number].tensor: number for number in ranks}
    factored = (layers[number] for number in ranks if not layers[number].dense_layout)
    biases = {layer.name + BIAS: layer.bias_name() for layer in factored}
    entries: list[Copied | Stored] = []
    for tensor in tensors:
        number = weights.get(tensor.name)
        if number is None:
            entries.append(Copied(biases.get(tensor.name, tensor.name), tensor))
        else:
            entries += _stored(layers[number], number, ranks[number])
    return tuple(entries)


def _stored(layer: LayerPlan, number: int, rank: int) -> list[Stored]:
    if layer.dense_layout:
        return [Stored(layer.tensor, layer.stored_dtype, layer.shape, number, 0)]
    pairs = zip(layer.factor_names(), layer.factor_shapes(rank), strict=True)
    return [
        Stored(name, layer.stored_dtype, shape, number, position)
        for position, (name, shape) in enumerate(pairs)
    ]


def output_metadata(
    metadata: Mapping[str, str],
    entries: Iterable[Copied | Stored],
    layers: Sequence[LayerPlan],
    ranks: Mapping[int, int],
    errors: Mapping[int, float | None],
) -> dict[str, str]:
    """Keep the input's entries and say what is factored in this file, so that it is enough to load itself.

    `errors` are the layers' relative errors, by number.
    """
    here = {entry.number for entry in entries if isinstance(entry, Stored)}
    return with_factored(
        metadata,
        {
            layer.name: FactoredLayer(
                method=layer.method,
                rank=ranks[number],
                shape=layer.shape,
                dtype=layer.stored_dtype,
                relative_error=errors[number],
                transposed=layer.transposed,
            )
            for number, layer in enumerate(layers)
            if number in here and not layer.dense_layout
        },
    )
