"""The `eckart` entry in a file's metadata: which of its layers are factored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, Field, ValidationError

from eckart.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Size = Annotated[int, Field(ge=1)]

METADATA_KEY = "eckart"
# The dtypes that a weight and its factors can have.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class FactoredLayer(BaseModel):
    """One weight that a file holds as factors; a newer version may add fields."""

    # None where a model was saved whose factors came from a file that did not say.
    method: str | None = None
    rank: Size
    shape: tuple[Size, Size]
    # The dtype of the factors, and that of the weight where it is another.
    dtype: str | None = None
    weight_dtype: str | None = None
    # The codec that stores the matrices; None where each is one tensor, as it is.
    codec: str | None = None
    # `shape` is then [inputs, outputs], and so are the factors'.
    transposed: bool = False


class Manifest(BaseModel):
    """The factored layers of a file, by module name."""

    version: Literal[1]
    layers: dict[str, FactoredLayer]


def read_manifest(path: Path, metadata: Mapping[str, str]) -> dict[str, FactoredLayer] | None:
    """Return the factored layers that a file's metadata list; None where they have no such entry."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        return Manifest.model_validate_json(text).layers
    except ValidationError as error:
        raise LoadError(
            f"{path}: this version of eckart does not understand the {METADATA_KEY!r} entry of its metadata "
            f"({error.errors()[0]['msg']}); upgrade eckart, or compress the checkpoint again"
        ) from error


def manifest_text(layers: Mapping[str, FactoredLayer]) -> str:
    """Write the entry."""
    return Manifest(version=1, layers=dict(layers)).model_dump_json(exclude_none=True)
