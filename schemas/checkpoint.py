"""A stored checkpoint as a client sees it."""

from pydantic import Field

from schemas.base import Output


class FileInfo(Output):
    """One file of a checkpoint."""

    name: str = Field(description="The file's name.", examples=["model.safetensors"])
    size_bytes: int = Field(description="Its size.", examples=[90868376])
    sha256: str = Field(description="The SHA-256 of its bytes, in hex.", examples=["9f86d081884c7d65…"])


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
    files: tuple[FileInfo, ...] = Field(description="The files that are here, the index included.")
    complete: bool = Field(description="Whether a job can run on it.", examples=[True])
    missing: tuple[str, ...] = Field(
        description="What is still to be uploaded.", examples=[["model-00002-of-00002.safetensors"]]
    )
    parameters: int = Field(description="Elements of all tensors that are here.", examples=[22713216])
    bytes: int = Field(description="Size of all files that are here.", examples=[90864192])
    tensors: tuple[StoredTensor, ...] = Field(
        description="Every tensor, by file and then in the order of the bytes."
    )
