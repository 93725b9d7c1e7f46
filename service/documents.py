"""What the service says of stored checkpoints and of its own health."""

from pydantic import Field

from schemas.base import Output
from schemas.compression import CompressionSpec
from schemas.planning import is_candidate, make_plan
from schemas.ranks import break_even_rank
from schemas.report import FileReport
from state.shelf import StoredCheckpoint

# Selection does not depend on the rank; at rank 1 every weight that can be factored at all is.
DEFAULT_SPEC = CompressionSpec(rank=1)


class TensorDocument(Output):
    """One tensor of a stored checkpoint."""

    name: str = Field(description="The tensor's name.", examples=["encoder.layer.0.output.dense.weight"])
    dtype: str = Field(description="The storage dtype.", examples=["F32"])
    shape: tuple[int, ...] = Field(description="The sizes of its dimensions.", examples=[[384, 1536]])
    parameters: int = Field(description="The number of its elements.", examples=[589824])
    selected: bool = Field(
        description="Whether a spec that says nothing of layers would factor it.", examples=[True]
    )
    break_even_rank: int | None = Field(
        description="The largest rank at which two factors save a parameter; null for no floating matrix.",
        examples=[307],
    )


class CheckpointDocument(Output):
    """A stored checkpoint."""

    id: str = Field(description="The checkpoint's id.", examples=["my-model"])
    files: tuple[FileReport, ...] = Field(description="Its files, the index included.")
    complete: bool = Field(description="Whether jobs can be made of it.", examples=[True])
    missing: tuple[str, ...] = Field(description="What it lacks to be complete.", examples=[[]])
    parameters: int = Field(description="Elements of all tensors.", examples=[22713216])
    bytes: int = Field(description="Size of all files.", examples=[90864192])
    tensors: tuple[TensorDocument, ...] = Field(description="Every tensor, by file and place in it.")


class HealthDocument(Output):
    """That all is well."""

    status: str = Field(description="`ok`.", examples=["ok"])


def checkpoint_document(stored: StoredCheckpoint) -> CheckpointDocument:
    """Describe a checkpoint with all its tensors."""
    layers = make_plan(stored.tensors, DEFAULT_SPEC).layers
    selected = {layer.tensor for layer in layers if layer.reason is None}
    return CheckpointDocument(
        id=stored.id,
        files=stored.files,
        complete=stored.complete,
        missing=stored.missing,
        parameters=stored.parameters,
        bytes=sum(file.size_bytes for file in stored.files),
        tensors=tuple(
            TensorDocument(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                parameters=tensor.parameters,
                selected=tensor.name in selected,
                break_even_rank=break_even_rank(*tensor.shape, factors=2) if is_candidate(tensor) else None,
            )
            for tensor in stored.tensors
        ),
    )
