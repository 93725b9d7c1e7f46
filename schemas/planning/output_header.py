"""The headers and the index of the output: refused while planning if longer than any that is read."""

import math
from collections.abc import Mapping
from dataclasses import replace

from schemas.format.errors import quoted
from schemas.format.files import CheckpointFiles
from schemas.format.header import MAX_HEADER_BYTES
from schemas.format.index import MAX_INDEX_BYTES
from schemas.planning.layer import LayerPlan, chosen_rank
from schemas.planning.layers import Layers, Plan
from schemas.planning.output_size import OutputSize, most_bytes_added
from schemas.problem import SpecError

# So many bytes a character of a name may take in JSON within JSON.
_BYTES_PER_CHARACTER = 16
# In a header: of each tensor's offsets, if they get longer, and of metadata that are added.
_OFFSET_BYTES, _METADATA_BYTES = 4, 1_000
# Of a line of an index beside the name of its tensor, and of all that is no line.
_LINE_BYTES = 300
_REST_BYTES = 500_000
# Where almost each layer is of a kind of its own, a bound costs as much as to count.
_MANY_KINDS = 4096


def check_output_headers(
    plan: Plan, files: CheckpointFiles, *, max_header_bytes: int = MAX_HEADER_BYTES
) -> None:
    """Raise a `SpecError` if a result of this plan may have a header that neither it nor a loader could read.

    Layers whose rank depends on a spectrum count with their largest one.
    """
    # The headers of most checkpoints are so much smaller that they need not be counted.
    if header_bound(plan, files) <= max_header_bytes:
        return
    chosen = _chosen(plan)
    sizes = OutputSize(files, plan.layers).header_bytes(chosen)
    name = max(sizes, key=lambda name: sizes[name])
    if sizes[name] > max_header_bytes:
        raise SpecError("", _too_long(name, sizes, len(chosen), max_header_bytes))


def check_output_index(plan: Plan, files: CheckpointFiles, *, max_index_bytes: int = MAX_INDEX_BYTES) -> None:
    """Do the same for the index, if the result has one."""
    if files.index is None:
        return
    bound = _REST_BYTES + sum(_LINE_BYTES + 4 * len(name) for name in files.index.weight_map)
    if bound + _most_bytes_added(plan, line_bytes=_LINE_BYTES) <= max_index_bytes:
        return
    chosen = _chosen(plan)
    nbytes = OutputSize(files, plan.layers).index_bytes(chosen)
    if nbytes > max_index_bytes:
        raise SpecError(
            "",
            f"With {len(chosen)} layers factored, the index takes up to {nbytes} bytes, and at most "
            f"{max_index_bytes} are read. Select fewer layers.",
        )


def header_bound(plan: Plan, files: CheckpointFiles) -> float:
    """Return a bound of the longest header, at little cost."""
    headers = files.headers.values()
    before = max(header.data_start + _OFFSET_BYTES * len(header.tensors) for header in headers)
    return before + _METADATA_BYTES + _most_bytes_added(plan, line_bytes=0)


def _most_bytes_added(plan: Plan, *, line_bytes: int) -> float:
    """Return a bound of what all factored layers add to the texts of headers, or of the index, together."""
    columns = Layers.of(plan.layers)
    if columns.num_kinds > _MANY_KINDS:
        return math.inf
    added = [_kind_adds(kind, line_bytes) for kind in columns.kinds]
    total = 0
    for name, kind in columns.named():
        nbytes, times = added[kind]
        is_plain = name.isascii() and name.isprintable() and '"' not in name and "\\" not in name
        total += nbytes + times * len(name) * (1 if is_plain else _BYTES_PER_CHARACTER)
    return total


def _kind_adds(kind: LayerPlan, line_bytes: int) -> tuple[int, int]:
    if kind.reason is not None:
        return 0, 0
    chosen = _at_most(kind)
    return most_bytes_added(chosen, chosen_rank(chosen), line_bytes=line_bytes)


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
