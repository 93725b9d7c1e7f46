"""How many bytes a compression will take, known before any of it is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from schemas.arrangement import TensorSpec, aligned_order, header_json
from schemas.header import Header
from schemas.index import ShardIndex, index_json
from schemas.outputplan import output_metadata, plan_output
from schemas.plan import LayerPlan
from schemas.tensor import TensorInfo

# The header's own length comes first.
LENGTH_BYTES = 8
# No error that is written takes more characters than this one.
LONGEST_ERROR = 2.2250738585072014e-308


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The headers of a whole checkpoint, by file name and in that order, and its index where it has one."""

    headers: Mapping[str, Header]
    index: ShardIndex | None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor, by file and then by offset."""
        return tuple(tensor for header in self.headers.values() for tensor in header.tensors)


def output_bytes(files: InputFiles, layers: Sequence[LayerPlan], ranks: Mapping[int, int]) -> int:
    """Return what all output files take at most, headers and index included.

    Only the errors in the headers are not known before the work: they take up to 23 bytes for each factored
    layer, and that is what is counted. `ranks` holds the rank of each layer that is factored, by its number.
    """
    errors = dict.fromkeys(ranks, LONGEST_ERROR)
    specs: dict[str, tuple[TensorSpec, ...]] = {}
    headers_bytes = 0
    for name, header in files.headers.items():
        entries = plan_output(header.tensors, layers, ranks)
        metadata = output_metadata(header.metadata, entries, layers, ranks, errors)
        specs[name] = aligned_order(entry.spec for entry in entries)
        headers_bytes += LENGTH_BYTES + len(header_json(specs[name], metadata))
    data_bytes = sum(spec.nbytes for several in specs.values() for spec in several)
    return headers_bytes + data_bytes + _index_bytes(files.index, specs, data_bytes)


def _index_bytes(index: ShardIndex | None, specs: Mapping[str, Sequence[TensorSpec]], data_bytes: int) -> int:
    if index is None:
        return 0
    text = index_json(
        {spec.name: name for name, several in specs.items() for spec in several},
        metadata=index.metadata,
        total_size_bytes=data_bytes,
        total_parameters=sum(prod(spec.shape) for several in specs.values() for spec in several),
    )
    return len(text)
