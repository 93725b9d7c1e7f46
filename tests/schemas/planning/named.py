"""Tensors by name and shape, and their plan, for the tests of planning."""

from dataclasses import dataclass
from math import prod

from schemas.format.tensor import DTYPE_BITS
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec


@dataclass(frozen=True)
class Named:
    name: str
    shape: tuple[int, ...] = (64, 64)
    dtype: str = "F32"

    @property
    def parameters(self):
        return prod(self.shape)

    @property
    def nbytes(self):
        return self.parameters * DTYPE_BITS[self.dtype] // 8


def planned(tensors, *, aliases=None, **spec):
    return make_plan(tensors, CompressionSpec.model_validate({"rank": 4} | spec), aliases=aliases or {})


def selected(*tensors, **spec):
    """Return the names of the modules that are selected and that nothing keeps dense."""
    return [layer.name for layer in planned(tensors, **spec).layers if layer.reason is None]


def reasons(*tensors, **options):
    """Return the reason to keep each selected layer, by module."""
    return {layer.name: layer.reason for layer in planned(tensors, **options).layers}
