"""The memory that a layer needs at least."""

from schemas.format.tensor import DTYPE_BITS
from schemas.planning.layer import LayerPlan

# All is computed in float32 at least, and needs the weight itself and a workspace of its size.
LEAST_BYTES = 4
COPIES = 2


def least_memory_bytes(layer: LayerPlan) -> int:
    """Return what no solver needs less than: the stored weight, a copy to compute with, and a workspace."""
    bytes_each = max(LEAST_BYTES, DTYPE_BITS[layer.dtype] // 8)
    return layer.bytes_before + COPIES * layer.rows * layer.columns * bytes_each
