"""The layout of the output files: their tensors in order, their metadata, and their size."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from schemas.format.files import CheckpointFiles
from schemas.format.header import LENGTH_BYTES, NewTensor, aligned_order, build_header
from schemas.format.index import ShardIndex, build_index
from schemas.format.metadata import (
    FactoredLayer,
    with_factored,
    with_format,
    with_renamed,
    without_content_hashes,
)
from schemas.format.tensor import TensorInfo
from schemas.planning.layer import BIAS, LayerPlan

ADAPTER_METADATA = with_format({})


@dataclass(frozen=True, slots=True)
class CopiedTensor:
    """A tensor that is copied byte for byte, maybe under a new name."""

    name: str
    tensor: TensorInfo

    @property
    def new_tensor(self) -> NewTensor:
        return NewTensor(self.name, self.tensor.dtype, self.tensor.shape)


@dataclass(frozen=True, slots=True)
class FactorTensor:
    """A computed tensor: stored tensor `position` of layer `number`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    number: int
    position: int

    @property
    def new_tensor(self) -> NewTensor:
        return NewTensor(self.name, self.dtype, self.shape)


def plan_output(
    tensors: Iterable[TensorInfo], layers: Sequence[LayerPlan], ranks: Mapping[int, int]
) -> tuple[CopiedTensor | FactorTensor, ...]:
    """Lay out one output file in the order of its input file.

    `layers` are those of the entire checkpoint, since a bias may be in another file than its weight. `ranks`
    holds the rank of each factored layer by its number, which is its index in `layers`.
    """
    weights = {layers[number].tensor: number for number in ranks}
    biases = _new_biases(layers, ranks)
    entries: list[CopiedTensor | FactorTensor] = []
    for tensor in tensors:
        number = weights.get(tensor.name)
        if number is None:
            entries.append(CopiedTensor(biases.get(tensor.name, tensor.name), tensor))
        else:
            entries += _factor_tensors(layers[number], number, ranks[number])
    return tuple(entries)


def _new_biases(layers: Sequence[LayerPlan], ranks: Mapping[int, int]) -> dict[str, str]:
    """Return the new name of the bias of each factored layer, whether it has one or not, by the old name."""
    factored = (layers[number] for number in ranks if not layers[number].dense_layout)
    return {layer.name + BIAS: layer.bias_name for layer in factored}


def plan_adapter(layers: Sequence[LayerPlan], ranks: Mapping[int, int]) -> tuple[FactorTensor, ...]:
    """Lay out the one file of an adapter: the factors of all layers that have a rank."""
    return tuple(
        entry for number, rank in ranks.items() for entry in _factor_tensors(layers[number], number, rank)
    )


def _factor_tensors(layer: LayerPlan, number: int, rank: int) -> list[FactorTensor]:
    return [
        FactorTensor(new_tensor.name, new_tensor.dtype, new_tensor.shape, number, position)
        for position, new_tensor in enumerate(layer.stored_tensors(rank))
    ]


def output_metadata(
    metadata: Mapping[str, str],
    entries: Collection[CopiedTensor | FactorTensor],
    layers: Sequence[LayerPlan],
    ranks: Mapping[int, int],
    errors: Mapping[int, float | None],
) -> dict[str, str]:
    """Return the metadata of an output file, with its factored layers, so that a loader needs no other file.

    `errors` holds the relative errors of the layers by number. What no longer holds is left out or renamed.
    """
    copied = {entry.tensor.name for entry in entries if isinstance(entry, CopiedTensor)}
    here = {entry.number for entry in entries if isinstance(entry, FactorTensor)}
    metadata = with_renamed(metadata, _new_biases(layers, ranks), copied)
    if here:
        metadata = without_content_hashes(metadata)
    if here or metadata:
        metadata = with_format(metadata)
    return with_factored(
        metadata,
        {
            layer.name: FactoredLayer(
                method=layer.form.name,
                rank=ranks[number],
                shape=layer.shape,
                dtype=layer.codec.dtype,
                weight_dtype=None if layer.codec.dtype == layer.dtype else layer.dtype,
                relative_error=errors[number],
                codec=layer.codec.name if layer.needs_decoding else None,
                transposed=layer.transposed,
            )
            for number, layer in enumerate(layers)
            if number in here and layer.in_metadata
        },
    )


# No error in the metadata has more characters than this one.
LONGEST_ERROR = 2.2250738585072014e-308


def output_bytes(files: CheckpointFiles, layers: Sequence[LayerPlan], ranks: Mapping[int, int]) -> int:
    """Return an upper bound for the size of all output files, headers and index included.

    Only the errors in the headers are unknown before the work; each counts with its largest size, 23 bytes.
    `ranks` holds the rank of each factored layer by its number.
    """
    if any(layer.in_adapter for layer in layers):
        return _adapter_bytes(layers, ranks)
    errors = dict.fromkeys(ranks, LONGEST_ERROR)
    new_tensors: dict[str, tuple[NewTensor, ...]] = {}
    headers_bytes = 0
    for name, header in files.headers.items():
        entries = plan_output(header.tensors, layers, ranks)
        metadata = output_metadata(header.metadata, entries, layers, ranks, errors)
        new_tensors[name] = aligned_order(entry.new_tensor for entry in entries)
        headers_bytes += LENGTH_BYTES + len(build_header(new_tensors[name], metadata))
    data_bytes = sum(new_tensor.nbytes for several in new_tensors.values() for new_tensor in several)
    return headers_bytes + data_bytes + _index_bytes(files.index, new_tensors, data_bytes)


def _adapter_bytes(layers: Sequence[LayerPlan], ranks: Mapping[int, int]) -> int:
    new_tensors = aligned_order(entry.new_tensor for entry in plan_adapter(layers, ranks))
    header_bytes = LENGTH_BYTES + len(build_header(new_tensors, ADAPTER_METADATA))
    return header_bytes + sum(new_tensor.nbytes for new_tensor in new_tensors)


def _index_bytes(
    index: ShardIndex | None, new_tensors: Mapping[str, Sequence[NewTensor]], data_bytes: int
) -> int:
    if index is None:
        return 0
    text = build_index(
        {new_tensor.name: name for name, several in new_tensors.items() for new_tensor in several},
        source=index,
        total_size_bytes=data_bytes,
        total_parameters=sum(
            prod(new_tensor.shape) for several in new_tensors.values() for new_tensor in several
        ),
    )
    return len(text)
