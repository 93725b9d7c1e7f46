"""The size of the output files for chosen forms and ranks, by sums over what each tensor adds.

A budget in bytes asks for the size at several sets of ranks, and to write out the headers of thousands of
layers each time would take most of a plan's time. So each text is measured once, and only offsets, totals and
what depends on a rank are counted again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from json.encoder import encode_basestring
from math import prod
from typing import TYPE_CHECKING, Any

from schemas.format.encodings.quantization import without_formats
from schemas.format.files import CheckpointFiles
from schemas.format.header import LENGTH_BYTES, NewTensor, aligned_order, padded_bytes
from schemas.format.index import build_index
from schemas.format.metadata import ECKART_KEY, FactoredLayers, factored_layers
from schemas.format.stacks import expert_matrices, stem_of
from schemas.format.tensor import BIAS, METADATA_KEY, TensorInfo
from schemas.planning.layer import Chosen, LayerPlan, chosen_rank
from schemas.planning.model_folder import output_names
from schemas.planning.output import ADAPTER_METADATA, describe_factored, kept_metadata

if TYPE_CHECKING:
    from schemas.planning.stored import StoredKind

# No error in the metadata has more characters than this one.
LONGEST_ERROR = 2.2250738585072014e-308
LONGEST_INTEGER = 20


@dataclass(frozen=True, slots=True)
class TensorSize:
    """What a tensor adds to a file: its data, its name in JSON, and its entry but for name and offsets."""

    nbytes: int
    parameters: int
    alignment: int
    name_bytes: int
    entry_bytes: int


@dataclass(frozen=True, slots=True)
class FactoredSize:
    """What a factored layer adds, but for its name: its tensors, and its entry in the metadata."""

    tensors: tuple[TensorSize, ...]
    described_bytes: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a file: a tensor as it is in the input, None in an adapter, and what layers do to it.

    `number` is that of the layer whose weight it is, `part_of` that of the one it goes with.
    Of a stack of experts there is the whole and each matrix; either that counts or these.
    `bias_of` is that of the layer whose bias it is, which has another size once the layer is factored, by its
    new name.
    """

    size: TensorSize | None
    number: int | None = None
    bias_of: int | None = None
    part_of: int | None = None
    stack: str | None = None
    is_whole: bool = False
    renamed: Mapping[str, TensorSize] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileSlots:
    """The slots of one file, and its metadata with the tensors and biases that they mention, by name."""

    slots: tuple[Slot, ...]
    metadata: Mapping[str, str]
    mentioned: Mapping[str, int | None] = field(default_factory=dict)
    mentioned_biases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileSums:
    """The sums over one output file."""

    header_bytes: int
    data_bytes: int
    parameters: int
    tensors: int
    names_bytes: int


class OutputSize:
    """Predicts the bytes of all output files, headers and index included.

    Only the errors in the headers are unknown before the work. Each counts with its largest size, so that the
    prediction is an upper bound.
    """

    def __init__(self, files: CheckpointFiles, layers: Sequence[LayerPlan]) -> None:
        self._source, self._layers = files, layers
        self._in_adapter = any(layer.in_adapter for layer in layers)
        # The names of layers in JSON, and in JSON within JSON.
        self._name_bytes = [_escaped_bytes(layer.name) for layer in layers]
        self._quoted_bytes = [_escaped_bytes(_json(layer.name)) for layer in layers]
        # There are few kinds of layers.
        self._known: dict[tuple[StoredKind, int], FactoredSize] = {}
        if self._in_adapter:
            slots = tuple(Slot(None, number) for number in range(len(layers)))
            self._files = {"": FileSlots(slots, ADAPTER_METADATA)}
        else:
            self._files = self._measured_files()

    def at(self, chosen: Chosen) -> int:
        """Return the bytes where these layers are factored, by number, each with one form and a rank."""
        sums = {name: self._sum(file, chosen) for name, file in self._files.items()}
        total = sum(LENGTH_BYTES + file.header_bytes + file.data_bytes for file in sums.values())
        return total if self._in_adapter else total + self._index_bytes(sums, chosen)

    def header_bytes(self, chosen: Chosen) -> dict[str, int]:
        """Return the bytes of the header of each output file, by the name of its input file."""
        return {name: self._sum(file, chosen).header_bytes for name, file in self._files.items()}

    def index_bytes(self, chosen: Chosen) -> int:
        """Return the bytes of the output's index; 0 without one."""
        if self._in_adapter:
            return 0
        return self._index_bytes(
            {name: self._sum(file, chosen) for name, file in self._files.items()}, chosen
        )

    def _measured_files(self) -> dict[str, FileSlots]:
        numbers = {layer.replaced[0]: number for number, layer in enumerate(self._layers)}
        parts = {name: number for number, layer in enumerate(self._layers) for name in layer.replaced[1:]}
        biases = {
            layer.name + BIAS: number
            for number, layer in enumerate(self._layers)
            if not layer.keeps_bias_name
        }
        stems = {
            stack: stem_of(layer.name)
            for layer in self._layers
            if layer.expert is not None and not layer.dense_layout
            for stack in layer.stacks
        }
        files = {}
        for name, header in self._source.headers.items():
            words = {*header.metadata, *header.metadata.values()}
            files[name] = FileSlots(
                tuple(
                    slot
                    for tensor in header.tensors
                    for slot in self._slots(tensor, numbers, biases, parts, stems)
                ),
                header.metadata,
                {t.name: numbers.get(t.name) for t in header.tensors if t.name in words},
                {bias: biases[bias] for bias in biases.keys() & words},
            )
        return files

    def _slots(
        self,
        tensor: TensorInfo,
        numbers: Mapping[str, int],
        biases: Mapping[str, int],
        parts: Mapping[str, int],
        stems: Mapping[str, str],
    ) -> Iterator[Slot]:
        slot = self._slot(tensor, numbers, biases, parts)
        if tensor.name not in stems:
            yield slot
            return
        yield replace(slot, stack=tensor.name, is_whole=True)
        for matrix in expert_matrices(tensor, stems[tensor.name]):
            yield replace(self._slot(matrix, numbers, biases, parts), stack=tensor.name)

    def _slot(
        self,
        tensor: TensorInfo,
        numbers: Mapping[str, int],
        biases: Mapping[str, int],
        parts: Mapping[str, int],
    ) -> Slot:
        size = _tensor_size(tensor.dtype, tensor.shape, _escaped_bytes(tensor.name))
        number = biases.get(tensor.name)
        if number is None:
            return Slot(size, numbers.get(tensor.name), part_of=parts.get(tensor.name))
        cut = self._layers[number].bias_entries_cut
        shape = (tensor.parameters - cut,) if cut else tensor.shape
        renamed = {
            variant.bias_name: _tensor_size(tensor.dtype, shape, _escaped_bytes(variant.bias_name))
            for variant in self._layers[number].variants
        }
        return Slot(size, bias_of=number, renamed=renamed)

    def _factored(self, number: int, layer: LayerPlan) -> FactoredSize:
        rank = chosen_rank(layer)
        key = layer.stored_kind, rank
        if key not in self._known:
            tensors = tuple(
                _tensor_size(
                    tensor.dtype, tensor.shape, _escaped_bytes(tensor.name) - self._name_bytes[number]
                )
                for tensor in layer.stored_tensors(rank)
            )
            described = describe_factored(layer, rank, LONGEST_ERROR).model_dump_json()
            self._known[key] = FactoredSize(tensors, _escaped_bytes(described))
        return self._known[key]

    def _sum(self, file: FileSlots, chosen: Chosen) -> FileSums:
        sizes: list[TensorSize] = []
        names_bytes, here = 0, []
        split = {
            stack
            for layer in chosen.values()
            if layer.expert is not None and not layer.dense_layout
            for stack in layer.stacks
        }
        for slot in file.slots:
            if slot.stack is not None and slot.is_whole == (slot.stack in split):
                continue
            if slot.number is not None and slot.number in chosen:
                number = slot.number
                here.append(number)
                factors = self._factored(number, chosen[number]).tensors
                names_bytes += len(factors) * self._name_bytes[number]
                sizes += factors
            elif slot.bias_of is not None and slot.bias_of in chosen:
                sizes.append(slot.renamed[chosen[slot.bias_of].bias_name])
            elif slot.size is not None and slot.part_of not in chosen:
                sizes.append(slot.size)
        names_bytes += sum(size.name_bytes for size in sizes)
        ends = list(accumulate(size.nbytes for size in aligned_order(sizes)))
        # Each end is the next one's start, but for the last; the first start is 0.
        offsets_bytes = 2 * sum(len(str(end)) for end in ends) + 1 - len(str(ends[-1])) if ends else 0
        metadata_bytes = self._metadata_bytes(file, here, chosen)
        members = len(sizes) + (metadata_bytes > 0)
        text_bytes = sum(size.entry_bytes for size in sizes) + names_bytes + offsets_bytes + metadata_bytes
        return FileSums(
            header_bytes=padded_bytes(len("{}") + text_bytes + max(0, members - 1)),
            data_bytes=ends[-1] if ends else 0,
            parameters=sum(size.parameters for size in sizes),
            tensors=len(sizes),
            names_bytes=names_bytes,
        )

    def _metadata_bytes(self, file: FileSlots, here: Sequence[int], chosen: Chosen) -> int:
        """Return the bytes of the member with the metadata, 0 if there are none."""
        if self._in_adapter:
            return _member_bytes(METADATA_KEY, file.metadata)
        copied = {name for name, number in file.mentioned.items() if number not in chosen}
        biases = {
            name: chosen[number].bias_name
            for name, number in file.mentioned_biases.items()
            if number in chosen
        }
        is_changed = bool(here) or any(
            slot.bias_of in chosen and chosen[slot.bias_of].replaces_bias
            for slot in file.slots
            if slot.bias_of is not None
        )
        metadata = without_formats(file.metadata, {self._layers[number].name for number in here})
        kept = kept_metadata(metadata, copied, biases, is_changed=is_changed)
        described = [number for number in here if chosen[number].in_metadata]
        if not described:
            return _member_bytes(METADATA_KEY, kept) if kept else 0
        entries_bytes = self._described_bytes(kept, described, chosen)
        return _member_bytes(METADATA_KEY, {**kept, ECKART_KEY: ""}) + entries_bytes

    def _described_bytes(self, metadata: Mapping[str, str], numbers: Sequence[int], chosen: Chosen) -> int:
        """Return the bytes of the text that describes factored layers, in JSON within JSON."""
        new = {self._layers[number].name for number in numbers}
        old = {name: layer for name, layer in factored_layers(metadata).items() if name not in new}
        text = FactoredLayers(version=1, layers=old).model_dump_json()
        entries = sum(
            self._quoted_bytes[number] + len(":") + self._factored(number, chosen[number]).described_bytes
            for number in numbers
        )
        return _escaped_bytes(text) + entries + len(numbers) - (not old)

    def _index_bytes(self, sums: Mapping[str, FileSums], chosen: Chosen) -> int:
        index = self._source.index
        if index is None:
            return 0
        layers = [chosen.get(number, layer) for number, layer in enumerate(self._layers)]
        ranks = {number: chosen_rank(layer) for number, layer in chosen.items()}
        names = output_names(self._source, layers, ranks)
        text = build_index(
            {},
            source=index,
            total_size_bytes=sum(file.data_bytes for file in sums.values()),
            total_parameters=sum(file.parameters for file in sums.values()),
        )
        lines = sum(
            file.names_bytes + file.tensors * (len("\n    : ,") + len(_json(names[name])))
            for name, file in sums.items()
        )
        # The last line has no comma, and the closing brace stands on a line of its own.
        return len(text) + lines - len(",") + len("\n  ")


def most_bytes_added(layer: LayerPlan, rank: int, *, line_bytes: int) -> tuple[int, int]:
    """Return a bound of what a layer at a rank adds to a header, or to an index with lines of so many bytes.

    That is: so many bytes, and how often its name is written, once of these in JSON within JSON.
    """
    around = 2 * LONGEST_INTEGER + line_bytes
    # The last is that of a bias.
    endings = [tensor.name for tensor in replace(layer, name="").stored_tensors(rank)] + [layer.form.bias]
    entries = sum(_tensor_sums(each.dtype, each.shape)[3] for each in layer.stored_tensors(rank))
    described = describe_factored(layer, rank, LONGEST_ERROR).model_dump_json()
    added = sum(len(ending) + around for ending in endings) + entries + _escaped_bytes(described)
    return added, len(endings) + 1


def _tensor_size(dtype: str, shape: tuple[int, ...], name_bytes: int) -> TensorSize:
    nbytes, parameters, alignment, entry_bytes = _tensor_sums(dtype, shape)
    return TensorSize(nbytes, parameters, alignment, len('""') + name_bytes, entry_bytes)


@lru_cache(maxsize=4096)
def _tensor_sums(dtype: str, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    tensor = NewTensor("", dtype, shape)
    entry = _json({"dtype": dtype, "shape": shape, "data_offsets": []})
    return tensor.nbytes, prod(shape), tensor.alignment, len(entry) + len(":") + len(",")


def _member_bytes(key: str, value: Mapping[str, str]) -> int:
    return len(_json({key: dict(value)}).encode()) - len("{}")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _escaped_bytes(text: str) -> int:
    """Return the bytes of a text as a JSON string without its quotes; those of its parts add up."""
    return len(encode_basestring(text).encode()) - len('""')
