"""The headers and the index of the output: refused while planning if longer than any that is read."""

from collections.abc import Mapping
from dataclasses import replace

from schemas.format.errors import quoted
from schemas.format.files import CheckpointFiles
from schemas.format.header import MAX_HEADER_BYTES
from schemas.format.index import MAX_INDEX_BYTES
from schemas.planning.layer import LayerPlan, Plan, chosen_rank
from schemas.planning.output_size import OutputSize
from schemas.problem import SpecError

# No layer adds more to a header or to an index than this, and so many bytes for each character of its name,
# which begins the names of the layer's tensors and an entry of the metadata.
_LAYER_BYTES = 2_000
_BYTES_PER_CHARACTER = 32
# Of a line of the index beside its name, and of all that is no line.
_LINE_BYTES = 150
_REST_BYTES = 500_000


def check_output_headers(
    plan: Plan, files: CheckpointFiles, *, max_header_bytes: int = MAX_HEADER_BYTES
) -> None:
    """Raise a `SpecError` if a result of this plan may have a header that neither it nor a loader could read.

    Layers whose rank depends on a spectrum count with their largest one.
    """
    factored = {number: layer for number, layer in enumerate(plan.layers) if layer.reason is None}
    # The headers of most checkpoints are so much smaller that they need not be counted.
    largest = max(header.data_start for header in files.headers.values())
    bound = largest + sum(
        _LAYER_BYTES + _BYTES_PER_CHARACTER * len(layer.name) for layer in factored.values()
    )
    if bound <= max_header_bytes:
        return
    chosen = _chosen(plan)
    sizes = OutputSize(files, plan.layers).header_bytes(chosen)
    name = max(sizes, key=lambda name: sizes[name])
    if sizes[name] > max_header_bytes:
        raise SpecError("", _too_long(name, sizes, len(factored), max_header_bytes))


def check_output_index(plan: Plan, files: CheckpointFiles, *, max_index_bytes: int = MAX_INDEX_BYTES) -> None:
    """Do the same for the index, if the result has one."""
    if files.index is None:
        return
    factored = [layer for layer in plan.layers if layer.reason is None]
    bound = _REST_BYTES + sum(_LINE_BYTES + 4 * len(name) for name in files.index.weight_map)
    bound += sum(_LAYER_BYTES + _BYTES_PER_CHARACTER * len(layer.name) for layer in factored)
    if bound <= max_index_bytes:
        return
    nbytes = OutputSize(files, plan.layers).index_bytes(_chosen(plan))
    if nbytes > max_index_bytes:
        raise SpecError(
            "",
            f"With {len(factored)} layers factored, the index takes up to {nbytes} bytes, and at most "
            f"{max_index_bytes} are read. Select fewer layers.",
        )


def _chosen(plan: Plan) -> dict[int, LayerPlan]:
    return {number: _at_most(layer) for number, layer in enumerate(plan.layers) if layer.reason is None}


def _at_most(layer: LayerPlan) -> LayerPlan:
    """Return the layer with the form and rank that need the longest header."""
    variants = [replace(each, rank=_largest_rank(each)) for each in layer.variants]
    return max(variants, key=lambda each: len(each.stored_tensors(chosen_rank(each))))


def _largest_rank(layer: LayerPlan) -> int:
    if isinstance(layer.rank, int):
        return layer.rank
    return layer.largest_rank if layer.in_adapter else layer.ranks[-1]


def _too_long(name: str, sizes: Mapping[str, int], layers: int, max_header_bytes: int) -> str:
    which = f"the header of {quoted(name)}" if name else "the adapter's header"
    return (
        f"With {layers} layers factored, {which} takes up to {sizes[name]} bytes, and at most "
        f"{max_header_bytes} are read. Select fewer layers, or split the checkpoint into more files."
    )
