"""The JSON document of a stored checkpoint: its files, what is missing, and its tensors."""

from pydantic import Field

from schemas.base import Output


class FileInfo(Output):
    """One file of a checkpoint."""

    name: str = Field(description="Name of the file.", examples=["model.safetensors"])
    size_bytes: int = Field(description="Size of the file.", examples=[90868376])
    sha256: str = Field(description="SHA-256 of the file, in hexadecimal.", examples=["9f86d081884c7d65…"])


class StoredTensor(Output):
    """One tensor of a stored checkpoint."""

    name: str = Field(
        description="Name of the tensor.", examples=["encoder.layer.0.attention.self.query.weight"]
    )
    dtype: str = Field(description="Storage dtype.", examples=["F32"])
    shape: tuple[int, ...] = Field(description="Shape.", examples=[[384, 384]])
    parameters: int = Field(description="Number of elements.", examples=[147456])
    selected: bool = Field(
        description='Whether the spec `{"rank": 1}` would select and factor it. (In plans and reports a '
        "selected weight may also be kept dense.)",
        examples=[True],
    )
    break_even_rank: int | None = Field(
        description="Largest rank at which two factors save a parameter, or bytes where the tensor holds the "
        "values of a quantized weight; null for a tensor that cannot be factored.",
        examples=[191],
    )


class ListedCheckpoint(Output):
    """A stored checkpoint in a list."""

    id: str = Field(description="Id of the checkpoint.", examples=["my-model"])
    stored_at: str = Field(
        description="When its latest file was stored.", examples=["2026-01-02T03:04:05.000000Z"]
    )
    files: tuple[FileInfo, ...] = Field(description="The files stored so far, the index included.")
    complete: bool = Field(
        description="Whether all files are stored, so that a job can run.", examples=[True]
    )
    bytes: int = Field(description="Size of all files stored so far.", examples=[90864192])


class CheckpointList(Output):
    """Stored checkpoints, the latest first."""

    checkpoints: tuple[ListedCheckpoint, ...] = Field(description="The checkpoints of this page.")
    next_cursor: str | None = Field(
        description="Pass it as `cursor` to get the next page; null on the last page.", examples=[None]
    )


class Checkpoint(Output):
    """A stored checkpoint."""

    id: str = Field(description="Id of the checkpoint.", examples=["my-model"])
    files: tuple[FileInfo, ...] = Field(description="The files stored so far, the index included.")
    complete: bool = Field(
        description="Whether all files are stored, so that a job can run.", examples=[True]
    )
    missing: tuple[str, ...] = Field(
        description="Names of the files that are still missing.",
        examples=[["model-00002-of-00002.safetensors"]],
    )
    warnings: tuple[str, ...] = Field(
        description="What is odd about the files, but does no harm.", examples=[[]]
    )
    parameters: int = Field(description="Elements of all tensors stored so far.", examples=[22713216])
    bytes: int = Field(description="Size of all files stored so far.", examples=[90864192])
    tensors: tuple[StoredTensor, ...] = Field(
        description="The tensors of this page, ordered by file and then by offset."
    )
    next_cursor: str | None = Field(
        description="Pass it as `cursor` to get the next page of tensors; null on the last page.",
        examples=[None],
    )
