"""What a compressed file says of itself: the `eckart` entry of its metadata."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eckart.errors import LoadError

METADATA_KEY = "eckart"

Size = Annotated[int, Field(ge=1)]


class FactoredLayer(BaseModel):
    """One weight that is stored as factors."""

    model_config = ConfigDict(frozen=True)

    method: str
    rank: Size
    shape: tuple[Size, Size]
    dtype: str
    relative_error: float | None = None


class Manifest(BaseModel):
    """The factored layers of one file, by module name; fields that a newer version adds are let by."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1]
    layers: dict[str, FactoredLayer]


def read_manifest(file_name: str, metadata: Mapping[str, str]) -> dict[str, FactoredLayer]:
    """Return a file's factored layers; none where it says nothing."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return Manifest.model_validate_json(text).layers
    except ValidationError as error:
        raise LoadError(
            f"{file_name}: the {METADATA_KEY!r} entry of its metadata is not one that this version of eckart "
            f"understands ({error.errors()[0]['msg']}); upgrade eckart, or compress the checkpoint again"
        ) from error
