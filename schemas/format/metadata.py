"""The metadata of a file: our entry `eckart`, which lists the factored layers, and what others write."""

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

ECKART_KEY = "eckart"
# Some readers refuse a file whose metadata do not say for whom its tensors are laid out; "pt" is torch.
FORMAT_KEY, FORMAT = "format", "pt"
# What programs for diffusion models keep here: digests of the tensors.
CONTENT_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")

Size = Annotated[int, Field(ge=1)]


class FactoredLayer(BaseModel):
    """One weight that is stored as factors, or in a codec that a reader has to decode."""

    model_config = ConfigDict(frozen=True)

    method: str
    # 0 where the weight is rounded and has no factors.
    rank: Annotated[int, Field(ge=0)]
    shape: tuple[Size, ...]
    dtype: str
    # The dtype of the weight in the input, where the factors have another.
    weight_dtype: str | None = Field(default=None, exclude_if=lambda value: value is None)
    relative_error: float | None = None
    # Name of the codec that stores the factors; absent where each is one tensor of `dtype`.
    codec: str | None = Field(default=None, exclude_if=lambda value: value is None)
    # Of a weight that is rounded to integers: their bits, and how many of a row share a scale, if not all.
    bits: Size | None = Field(default=None, exclude_if=lambda value: value is None)
    group: Size | None = Field(default=None, exclude_if=lambda value: value is None)
    # Of a matrix in a stack of experts, whose name and number are the module's name: how many there are.
    experts: Size | None = Field(default=None, exclude_if=lambda value: value is None)
    # What follows in the name of that tensor, if anything.
    ending: str | None = Field(default=None, exclude_if=lambda value: value is None)
    # `shape` is then [inputs, outputs], and so are the factors'.
    transposed: bool = Field(default=False, exclude_if=lambda value: not value)


class FactoredLayers(BaseModel):
    """The factored layers of one file, by module name; fields that a newer version adds are ignored."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1]
    layers: dict[str, FactoredLayer]


def factored_layers(metadata: Mapping[str, str]) -> dict[str, FactoredLayer]:
    """Return the factored layers that the metadata of a file list; none where the entry is not readable."""
    try:
        return FactoredLayers.model_validate_json(metadata.get(ECKART_KEY, "")).layers
    except ValidationError:
        return {}


def with_factored(metadata: Mapping[str, str], layers: Mapping[str, FactoredLayer]) -> dict[str, str]:
    """Return a file's metadata with these layers added to the factored ones, if there are any."""
    if not layers:
        return dict(metadata)
    entry = FactoredLayers(version=1, layers={**factored_layers(metadata), **layers})
    return {**metadata, ECKART_KEY: entry.model_dump_json()}


def with_format(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a file's metadata with the layout of its tensors, which they may say already."""
    return {FORMAT_KEY: FORMAT, **metadata}


def without_content_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a file whose tensors have changed: without digests of the old ones."""
    return {key: value for key, value in metadata.items() if key not in CONTENT_HASHES}


def with_renamed(
    metadata: Mapping[str, str], renamed: Mapping[str, str], stored: Collection[str]
) -> dict[str, str]:
    """Return a file's metadata whose aliases have the new names of renamed tensors, on both sides.

    `stored` has the old names of the file's tensors.
    """
    old = aliases_in(metadata, stored)
    new = {renamed.get(alias, alias): renamed.get(name, name) for alias, name in old.items()}
    return {key: value for key, value in metadata.items() if key not in old} | new


def aliases_in(metadata: Mapping[str, str], stored: Collection[str]) -> dict[str, str]:
    """Return the entries of a file's metadata that name a tensor in `stored` for one that is not stored.

    `save_model` of safetensors writes them for tensors that share memory.
    """
    return {alias: name for alias, name in metadata.items() if name in stored and alias not in stored}


def factored_names(files: Iterable[Mapping[str, str]]) -> frozenset[str]:
    """Return the names of the modules that are factored in any of the files with these metadata."""
    return frozenset(name for metadata in files for name in factored_layers(metadata))
