"""Which layers are factored: the `eckart` entry in a file's metadata, and that of a folder's config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator

from eckart.errors import LoadError
from eckart.model_folder import own_entry
from eckart.model_folder import read_config as read_document

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Size = Annotated[int, Field(ge=1)]

# By the first part of a method's name.
BITS = {"int8": 8, "int4": 4, "int3": 3}
METADATA_KEY = "eckart"
# The dtypes that a weight and its factors can have.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class FactoredLayer(BaseModel):
    """One weight that a file holds as factors, as integers, or as both; a newer version may add fields."""

    # None where a model was saved whose factors came from a file that did not say.
    method: str | None = None
    # 0 where there are no factors.
    rank: Annotated[int, Field(ge=0)]
    # [outputs, inputs], and the sides of a convolution's kernel.
    shape: Annotated[tuple[Size, ...], Field(min_length=2, max_length=5)]
    # The dtype of the factors, and that of the weight where it is another.
    dtype: str | None = None
    weight_dtype: str | None = None
    # The codec that stores the matrices; None where each is one tensor, as it is.
    codec: str | None = None
    # Of the integers that stand for the weight itself: how many bits, and how many columns share a scale.
    bits: Size | None = None
    group: Size | None = None
    # Of a matrix in a stack of experts, whose name and number are the module's name: how many there are.
    experts: Size | None = None
    # What follows in the name of that tensor, if anything.
    ending: str | None = None
    # `shape` is then [inputs, outputs], and so are the factors'.
    transposed: bool = False

    @model_validator(mode="after")
    def _check_rank(self) -> Self:
        if self.rank == 0 and quantized_bits(self.method) is None:
            raise ValueError("only integers are stored without factors, at rank 0")
        return self


def quantized_bits(method: str | None) -> int | None:
    """Return the bits of a method that stores the weight itself as integers; None for any other."""
    return BITS.get((method or "").partition("+")[0])


class Manifest(BaseModel):
    """The factored layers of a file or of a folder, by module name."""

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


def read_config(folder: Path) -> dict[str, FactoredLayer]:
    """Return the factored layers that a folder's config.json lists, as `save_pretrained` writes it."""
    entry = own_entry(read_document(folder))
    return layers_of_config(entry) if entry else {}


def layers_of_config(entry: Mapping[str, Any]) -> dict[str, FactoredLayer]:
    """Return the factored layers that our `quantization_config` lists, by their names in the files."""
    try:
        return Manifest.model_validate(entry).layers
    except ValidationError as error:
        first = error.errors()[0]
        field = "/".join(str(part) for part in first["loc"])
        raise LoadError(
            "this version of eckart does not understand the quantization_config in the folder's "
            f"config.json ({field}: {first['msg']}); upgrade eckart, or compress the checkpoint again"
        ) from error


def manifest_text(layers: Mapping[str, FactoredLayer]) -> str:
    """Write the entry."""
    return Manifest(version=1, layers=dict(layers)).model_dump_json(exclude_none=True)
