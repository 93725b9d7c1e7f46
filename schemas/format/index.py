"""The index of a sharded checkpoint: parse it, build it, and check it against the shards."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.format.errors import CheckpointError, escaped, listed, pointer, quoted
from schemas.format.json_reader import JsonReader, NumberText
from schemas.format.tensor import check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.format.header import Header


# 32 MB hold about 300 000 tensors, as a header of that size does.
MAX_INDEX_BYTES = 32_000_000
CHECKPOINT_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
# A checkpoint id that ends in one of two ways, 128 characters in all. Use both patterns with `fullmatch`.
FILE_NAME = re.compile(
    r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,115}\.safetensors|[A-Za-z0-9._-]{0,104}\.safetensors\.index\.json)$"
)
INDEX_ENDING = ".safetensors.index.json"
_MAX_METADATA_DEPTH = 16


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Which file holds each tensor of a sharded checkpoint."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.weight_map.values())))


def build_index(
    weight_map: Mapping[str, str],
    *,
    metadata: Mapping[str, Any],
    total_size_bytes: int,
    total_parameters: int,
) -> bytes:
    """Build the text of an index: `total_size` is set, `total_parameters` is updated where it exists.

    Raises
    ------
    ValueError
        If the metadata contain NaN, infinity or half of a surrogate pair, which JSON cannot.
    """
    totals = {"total_size": total_size_bytes}
    if "total_parameters" in metadata:
        totals["total_parameters"] = total_parameters
    index = {"metadata": {**metadata, **totals}, "weight_map": dict(weight_map)}
    return json.dumps(index, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def parse_index(raw: bytes | bytearray, *, max_index_bytes: int = MAX_INDEX_BYTES) -> ShardIndex:
    """Check the text of a `*.safetensors.index.json` file."""
    if len(raw) > max_index_bytes:
        raise CheckpointError(
            "index-too-large", f"The index has {len(raw)} bytes; at most {max_index_bytes} are allowed."
        )
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            "not-utf8", f"The index is not UTF-8: byte {error.start} is not part of any character."
        ) from None
    reader = JsonReader(text, base=0)
    fields = _fields(reader)
    reader.end()
    if "weight_map" not in fields:
        raise CheckpointError(
            "missing-key", "The index lacks weight_map, which names the file of each tensor."
        )
    if not fields["weight_map"]:
        raise CheckpointError(
            "no-tensors", "The index names no tensors, so there is nothing to compress.", "/weight_map"
        )
    return ShardIndex(fields["weight_map"], fields.get("metadata", {}))


def _fields(reader: JsonReader) -> dict[str, Any]:
    reader.check_opening()
    fields: dict[str, Any] = {}
    for key in reader.members():
        if key in fields:
            raise reader.error("duplicate-key", f"The index has the key {quoted(key)} twice.", pointer(key))
        if key == "weight_map":
            fields[key] = _weight_map(reader)
        elif key == "metadata":
            fields[key] = _metadata(reader)
        else:
            raise reader.error(
                "unknown-key",
                f"Unknown key {quoted(key)}; only metadata and weight_map are allowed.",
                pointer(key),
            )
    return fields


def _weight_map(reader: JsonReader) -> dict[str, str]:
    if reader.peek() != "{":
        raise reader.error(
            "weight-map-not-strings", "weight_map must be an object of file names.", "/weight_map"
        )
    shards: dict[str, str] = {}
    for name in reader.members():
        check_name(name, reader)
        if name in shards or reader.peek() != '"':
            raise _bad_entry(name, reader, repeated=name in shards)
        shards[name] = shard = reader.string()
        if FILE_NAME.fullmatch(shard) is None or shard.endswith(INDEX_ENDING):
            raise _bad_shard(shard, name, reader)
    return shards


def _bad_entry(name: str, reader: JsonReader, *, repeated: bool) -> CheckpointError:
    place = pointer("weight_map", name)
    if repeated:
        return reader.error("duplicate-name", f"weight_map has tensor {quoted(name)} twice.", place)
    return reader.error(
        "weight-map-not-strings", f"The file of tensor {quoted(name)} must be a string.", place
    )


def _bad_shard(shard: str, name: str, reader: JsonReader) -> CheckpointError:
    entry = f"weight_map puts tensor {quoted(name)} in {quoted(shard)}"
    place = pointer("weight_map", name)
    if re.search(r"[/\\:]|\.\.|^~", shard):
        return reader.error(
            "shard-path", f"{entry}. Name shards without a path, and keep all files in one folder.", place
        )
    if not shard.endswith(".safetensors"):
        return reader.error(
            "shard-extension", f"{entry}. Only .safetensors files can be shards; convert it.", place
        )
    return reader.error(
        "shard-name",
        f"{entry}. A file name has at most 128 letters, digits, dots, underscores and hyphens.",
        place,
    )


def _metadata(reader: JsonReader) -> dict[str, Any]:
    if reader.peek() != "{":
        raise reader.error("metadata-not-object", "metadata must be an object.", "/metadata")
    value = _plain(reader.value(), ("metadata",))
    assert isinstance(value, dict)
    return value


def _plain(value: Any, place: tuple[str | int, ...]) -> Any:
    """Convert to what `json.loads` returns; refuse what could not be written to the output's index."""
    if len(place) > _MAX_METADATA_DEPTH:
        raise CheckpointError(
            "nested-too-deep",
            f"metadata is nested deeper than {_MAX_METADATA_DEPTH} levels.",
            pointer(*place),
        )
    if isinstance(value, tuple):
        plain = {_text(key, place): _plain(entry, (*place, key)) for key, entry in value}
        if len(plain) != len(value):
            raise CheckpointError(
                "duplicate-key", f"The index has a key of {pointer(*place)} twice.", pointer(*place)
            )
        return plain
    if isinstance(value, list):
        return [_plain(entry, (*place, at)) for at, entry in enumerate(value)]
    if isinstance(value, NumberText):
        return _float(value, place)
    return _text(value, place) if isinstance(value, str) else value


def _text(value: str, place: tuple[str | int, ...]) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            "lone-surrogate",
            f"{quoted(value)} in metadata contains half of a surrogate pair.",
            pointer(*place),
        ) from None
    return value


def _float(text: NumberText, place: tuple[str | int, ...]) -> float:
    number = float(text)
    if not math.isfinite(number) or text.lstrip("-").isdigit():
        raise CheckpointError(
            "integer-too-large", f"{escaped(text)} in metadata is out of range.", pointer(*place)
        )
    return number


def check_shards(index: ShardIndex, headers: Mapping[str, Header]) -> None:
    """Check that each shard holds exactly the tensors that the index lists for it."""
    _check_files(index, headers)
    found: dict[str, str] = {}
    for shard in index.shards:
        for info in headers[shard].tensors:
            if info.name in found:
                raise CheckpointError(
                    "tensor-in-two-shards",
                    f"Tensor {quoted(info.name)} is in both {found[info.name]} and {shard}. Remove one.",
                    pointer("weight_map", info.name),
                )
            found[info.name] = shard
    _check_places(index, found)
    _check_total(index, sum(info.nbytes for header in headers.values() for info in header.tensors))


def _check_files(index: ShardIndex, headers: Mapping[str, Header]) -> None:
    named = set(index.shards)
    if missing := sorted(named - headers.keys()):
        raise CheckpointError(
            "shard-missing",
            f"The index names files that are missing: {listed(missing)}. Send them too.",
            "/weight_map",
        )
    if extra := sorted(headers.keys() - named):
        raise CheckpointError(
            "shard-extra",
            f"The index does not name these files: {listed(extra)}. Do not send them.",
            "/weight_map",
        )


def _check_places(index: ShardIndex, found: Mapping[str, str]) -> None:
    for name, shard in index.weight_map.items():
        if found.get(name) != shard:
            where = f"it is in {found[name]}" if name in found else "no file has it"
            raise CheckpointError(
                "tensor-in-other-shard" if name in found else "tensor-missing",
                f"The index says that tensor {quoted(name)} is in {shard}, but {where}.",
                pointer("weight_map", name),
            )
    if extra := [name for name in found if name not in index.weight_map]:
        raise CheckpointError(
            "tensor-extra",
            f"{found[extra[0]]} holds tensor {quoted(extra[0])}, which weight_map lacks. Add it.",
            pointer("weight_map", extra[0]),
        )


def _check_total(index: ShardIndex, found_bytes: int) -> None:
    stated = index.metadata.get("total_size")
    # Some writers write the integer as a float.
    if stated is None or (type(stated) in {int, float} and stated == found_bytes):
        return
    raise CheckpointError(
        "total-size",
        f"total_size is {escaped(str(stated))}, but the tensors take {found_bytes} bytes. Correct it.",
        "/metadata/total_size",
    )
