"""A stored checkpoint as a client sees it."""

from collections.abc import Collection, Iterable, Sequence

from pydantic import Field

from schemas.base import Output
from schemas.compression import CompressionSpec
from schemas.plan import Tensor
from schemas.planning import is_candidate, make_plan
from schemas.ranks import break_even_rank
from schemas.report import FileReport

# The defaults of everything but the rank: at rank 1 every weight is factored that can be at any.
DEFAULT_SPEC = CompressionSpec(rank=1)


class StoredTensor(Output):
    """One tensor."""

    name: str = Field(description="Its name.", examples=["encoder.layer.0.attention.self.query.weight"])
    dtype: str = Field(description="Its storage dtype.", examples=["F32"])
    shape: tuple[int, ...] = Field(description="Its shape.", examples=[[384, 384]])
    parameters: int = Field(description="Its elements.", examples=[147456])
    selected: bool = Field(
        description="Whether a spec that says nothing of layers would factor it.", examples=[True]
    )
    break_even_rank: int | None = Field(
        description="The largest rank at which two factors save a parameter; null where no rank can be.",
        examples=[191],
    )


class Checkpoint(Output):
    """A stored checkpoint."""

    id: str = Field(description="Its id.", examples=["my-model"])
    files: tuple[FileReport, ...] = Field(description="The files that are here, the index included.")
    complete: bool = Field(description="Whether a job can run on it.", examples=[True])
    missing: tuple[str, ...] = Field(
        description="What is still to be uploaded.", examples=[["model-00002-of-00002.safetensors"]]
    )
    parameters: int = Field(description="Elements of all tensors that are here.", examples=[22713216])
    bytes: int = Field(description="Size of all files that are here.", examples=[90864192])
    tensors: tuple[StoredTensor, ...] = Field(
        description="Every tensor, by file and then in the order of the bytes."
    )


def checkpoint_document(
    checkpoint_id: str,
    files: Iterable[FileReport],
    missing: Iterable[str],
    tensors: Sequence[Tensor],
    *,
    factored: Collection[str] = frozenset(),
) -> Checkpoint:
    """Describe a checkpoint; nothing missing means that it is complete; `factored` is as in `make_plan`."""
    files, missing = tuple(files), tuple(missing)
    layers = make_plan(tensors, DEFAULT_SPEC, factored=factored).layers
    selected = {layer.tensor for layer in layers if layer.reason is None}
    return Checkpoint(
        id=checkpoint_id,
        files=files,
        complete=not missing,
        missing=missing,
        parameters=sum(tensor.parameters for tensor in tensors),
        bytes=sum(file.size_bytes for file in files),
        tensors=tuple(_tensor(tensor, selected=tensor.name in selected) for tensor in tensors),
    )


def _tensor(tensor: Tensor, *, selected: bool) -> StoredTensor:
    return StoredTensor(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        parameters=tensor.parameters,
        selected=selected,
        break_even_rank=break_even_rank(*tensor.shape, factors=2) if is_candidate(tensor) else None,
    )
