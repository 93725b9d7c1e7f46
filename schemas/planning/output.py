"""The layout of the output files: their tensors in order, and their metadata."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from schemas.format.encodings.quantization import without_formats
from schemas.format.header import NewTensor
from schemas.format.metadata import (
    FactoredLayer,
    with_factored,
    with_format,
    with_renamed,
    without_content_hashes,
)
from schemas.format.stacks import expert_matrices, stem_of
from schemas.format.tensor import BIAS, WEIGHT, TensorInfo
from schemas.planning.layer import LayerPlan

# What kohya's programs say of the rank and the scale of all layers.
ADAPTER_RANKS = ("ss_network_dim", "ss_network_alpha")
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
    """A computed tensor: stored tensor `position` of layer `number`; a new bias comes last."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    number: int
    position: int

    @property
    def new_tensor(self) -> NewTensor:
        return NewTensor(self.name, self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class StackedTensor:
    """A stack of experts of which some matrices are computed and the others copied, in their order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    matrices: "tuple[CopiedTensor | FactorTensor, ...]"

    @property
    def new_tensor(self) -> NewTensor:
        return NewTensor(self.name, self.dtype, self.shape)


OutputTensor = CopiedTensor | FactorTensor | StackedTensor


def plan_output(
    tensors: Iterable[TensorInfo], layers: Sequence[LayerPlan], ranks: Mapping[int, int]
) -> tuple[OutputTensor, ...]:
    """Lay out one output file in the order of its input file.

    `layers` are those of the entire checkpoint, since a bias may be in another file than its weight. `ranks`
    holds the rank of each factored layer by its number, which is its index in `layers`.
    """
    weights = {layers[number].replaced[0]: number for number in ranks}
    dropped = {name for number in ranks for name in layers[number].replaced[1:]}
    biases = _new_biases(layers, ranks)
    replaced = {layers[number].name + BIAS: number for number in ranks if layers[number].replaces_bias}
    entries: list[OutputTensor] = []
    for tensor, is_dense in _with_experts(tensors, layers, ranks):
        if tensor.name in dropped:
            continue
        if is_dense:
            entries.append(_stacked(tensor, layers, weights))
            continue
        name = biases.get(tensor.name, tensor.name)
        if (number := weights.get(tensor.name)) is not None:
            entries += _factor_tensors(layers[number], number, ranks[number])
        elif (number := replaced.get(tensor.name)) is not None:
            position = len(layers[number].stored_tensors(ranks[number]))
            shape = tensor.shape if layers[number].cut_bias is None else (ranks[number],)
            entries.append(FactorTensor(name, tensor.dtype, shape, number, position))
        else:
            entries.append(CopiedTensor(name, tensor))
    return tuple(entries)


def _with_experts(
    tensors: Iterable[TensorInfo], layers: Sequence[LayerPlan], ranks: Mapping[int, int]
) -> Iterator[tuple[TensorInfo, bool]]:
    """Yield the tensors, and in place of a stack with factored experts its matrices.

    In the dense layout it stays one tensor, which is told by True.
    """
    stems = {stack: layers[number] for number in ranks for stack in layers[number].stacks}
    for tensor in tensors:
        layer = stems.get(tensor.name)
        if layer is None or layer.dense_layout:
            yield tensor, layer is not None
        else:
            yield from ((matrix, False) for matrix in expert_matrices(tensor, stem_of(layer.name)))


def _stacked(tensor: TensorInfo, layers: Sequence[LayerPlan], weights: Mapping[str, int]) -> StackedTensor:
    matrices: list[CopiedTensor | FactorTensor] = []
    for matrix in expert_matrices(tensor, tensor.name.removesuffix(WEIGHT)):
        number = weights.get(matrix.name)
        if number is None:
            matrices.append(CopiedTensor(matrix.name, matrix))
        else:
            matrices.append(FactorTensor(matrix.name, layers[number].codec.dtype, matrix.shape, number, 0))
    return StackedTensor(tensor.name, tensor.dtype, tensor.shape, tuple(matrices))


def _new_biases(layers: Sequence[LayerPlan], ranks: Mapping[int, int]) -> dict[str, str]:
    """Return the new name of the bias of each factored layer, whether it has one or not, by the old name."""
    factored = (layers[number] for number in ranks if not layers[number].keeps_bias_name)
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
    entries: Collection[OutputTensor],
    layers: Sequence[LayerPlan],
    ranks: Mapping[int, int],
    errors: Mapping[int, float | None],
) -> dict[str, str]:
    """Return the metadata of an output file, with its factored layers, so that a loader needs no other file.

    `errors` holds the relative errors of the layers by number. What no longer holds is left out or renamed.
    """
    copied = {entry.tensor.name for entry in entries if isinstance(entry, CopiedTensor)}
    # A new bias may be in another file than its layer.
    here = {entry.number for entry in entries if isinstance(entry, FactorTensor) and entry.position == 0}
    is_changed = any(isinstance(entry, FactorTensor | StackedTensor) for entry in entries)
    metadata = without_formats(metadata, {layers[number].name for number in here})
    if any(layers[number].is_lora for number in here):
        metadata = {key: value for key, value in metadata.items() if key not in ADAPTER_RANKS}
    kept = kept_metadata(metadata, copied, _new_biases(layers, ranks), is_changed=is_changed)
    return with_factored(
        kept,
        {
            layers[number].name: describe_factored(layers[number], ranks[number], errors[number])
            for number in sorted(here)
            if layers[number].in_metadata
        },
    )


def kept_metadata(
    metadata: Mapping[str, str], copied: Collection[str], biases: Mapping[str, str], *, is_changed: bool
) -> dict[str, str]:
    """Return the metadata of an output file but for its newly factored layers.

    `is_changed` says whether it holds computed tensors.
    `copied` has the old names of the file's copied tensors, `biases` the new names of renamed ones.
    """
    metadata = with_renamed(metadata, biases, copied)
    if is_changed:
        metadata = without_content_hashes(metadata)
    return with_format(metadata) if is_changed or metadata else metadata


def describe_factored(layer: LayerPlan, rank: int, error: float | None) -> FactoredLayer:
    """Return what the metadata say of a factored layer; all but the error follows from its kind and rank."""
    quantizer = None if layer.dense_layout else layer.form.quantizer
    dtype = layer.codec.dtype if quantizer is None else layer.dtype
    expert = None if layer.dense_layout else layer.expert
    has_codec = layer.needs_decoding and (layer.dense_layout or layer.form.has_ranks)
    return FactoredLayer(
        method=layer.form.name,
        rank=rank,
        shape=layer.shape,
        dtype=dtype,
        weight_dtype=None if dtype == layer.dtype else layer.dtype,
        relative_error=error,
        codec=layer.codec.name if has_codec else None,
        bits=quantizer.bits if quantizer else None,
        group=quantizer.group if quantizer else None,
        experts=expert.experts if expert is not None else None,
        ending=WEIGHT if expert is not None and expert.endings == (WEIGHT,) else None,
        transposed=layer.transposed,
    )
