"""The index of a sharded checkpoint: parse it, build it, and check it against the shards."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from schemas.format.cursor import decode_all
from schemas.format.errors import CheckpointError, escaped, listed, pointer, quoted
from schemas.format.json_reader import LONG_CHARACTERS, JsonReader, NumberText
from schemas.format.names import FILE_NAME, WEIGHT_ENDING
from schemas.format.plain import read_plain_pairs
from schemas.format.tensor import MAX_TENSORS, check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.format.cursor import Chunk
    from schemas.format.header import Header


# 32 MB hold about 300 000 tensors, as a header of that size does.
MAX_INDEX_BYTES = 32_000_000
# The largest known index names a few hundred.
MAX_SHARDS = 10_000
_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Which file holds each tensor of a sharded checkpoint; `extra` has the keys that mean nothing to us."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.weight_map.values())))


def build_index(
    weight_map: Mapping[str, str],
    *,
    source: ShardIndex,
    total_size_bytes: int,
    total_parameters: int,
) -> bytes:
    """Build the text of an index with what else the index `source` holds.

    `total_size` is set, `total_parameters` is updated where it exists.

    Raises
    ------
    ValueError
        If `source` contains NaN, infinity or half of a surrogate pair, which JSON cannot.
    """
    totals = {"total_size": total_size_bytes}
    if "total_parameters" in source.metadata:
        totals["total_parameters"] = total_parameters
    index = {"metadata": {**source.metadata, **totals}, "weight_map": dict(weight_map), **source.extra}
    return json.dumps(index, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def parse_index(raw: bytes | bytearray, *, max_index_bytes: int = MAX_INDEX_BYTES) -> ShardIndex:
    """Check the text of an index."""
    check_index_size(len(raw), max_index_bytes=max_index_bytes)
    return parse_index_chunks(deque([raw]))


def check_index_size(nbytes: int, *, max_index_bytes: int = MAX_INDEX_BYTES) -> None:
    """Refuse an index of which this much has arrived."""
    if nbytes > max_index_bytes:
        raise CheckpointError(
            "index-too-large", f"The index has {nbytes} bytes; at most {max_index_bytes} are allowed."
        )


def parse_index_chunks(chunks: deque[Chunk]) -> ShardIndex:
    """Do the same for an index in chunks, each of which is taken out once it has been read."""
    reader = JsonReader(decode_all(chunks, base=0, subject="The index"), base=0)
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
    weight_map, metadata = fields.pop("weight_map"), fields.pop("metadata", {})
    return ShardIndex(weight_map, metadata, fields)


def _fields(reader: JsonReader) -> dict[str, Any]:
    reader.check_opening()
    fields: dict[str, Any] = {}
    extra_characters = 0
    for key in reader.members():
        if key in fields:
            raise reader.error("duplicate-key", f"The index has the key {quoted(key)} twice.", pointer(key))
        if key == "weight_map":
            fields[key] = _weight_map(reader)
        elif key == "metadata":
            fields[key] = _metadata(reader)
        else:
            begin = reader.character
            fields[_text(key, ())] = _plain(reader.value(), (key,))
            extra_characters += len(key) + reader.character - begin
            if extra_characters > LONG_CHARACTERS:
                raise reader.error(
                    "value-too-long",
                    f"All keys beside weight_map and metadata have more than {LONG_CHARACTERS} characters; "
                    "no checkpoint needs as many.",
                )
    return fields


def _weight_map(reader: JsonReader) -> dict[str, str]:
    if reader.peek() != "{":
        raise reader.error(
            "weight-map-not-strings", "weight_map must be an object of file names.", "/weight_map"
        )
    shards: dict[str, str] = {}
    # Many tensors share a file, and so the text of its name.
    legal: dict[str, str] = {}
    for name in reader.members():
        check_name(name, reader)
        if name in shards or reader.peek() != '"':
            raise _bad_entry(name, reader, repeated=name in shards)
        shard = reader.string()
        if shard not in legal:
            if not shard.endswith(WEIGHT_ENDING) or FILE_NAME.fullmatch(shard) is None:
                raise _bad_shard(shard, name, reader)
            legal[shard] = shard
        if len(shards) >= MAX_TENSORS or len(legal) > MAX_SHARDS:
            raise _too_many(reader)
        shards[name] = legal[shard]
        read_plain_pairs(reader, shards, legal)
    return shards


def _too_many(reader: JsonReader) -> CheckpointError:
    what = f"{MAX_TENSORS} tensors or {MAX_SHARDS} files"
    return reader.error("too-many-tensors", f"weight_map names more than {what}.", "/weight_map")


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
    if not shard.endswith(WEIGHT_ENDING):
        return reader.error(
            "shard-extension", f"{entry}. Only .safetensors files can be shards; convert it.", place
        )
    return reader.error(
        "shard-name",
        f"{entry}. A file name has at most 128 letters, digits, dots, underscores and hyphens.",
        place,
    )


def _metadata(reader: JsonReader) -> dict[str, Any]:
    if reader.peek() not in {"{", "n"}:
        raise reader.error("metadata-not-object", "metadata must be an object.", "/metadata")
    value = _plain(reader.value(), ("metadata",))
    assert value is None or isinstance(value, dict)
    return value or {}


def _plain(value: Any, place: tuple[str | int, ...]) -> Any:
    """Convert to what `json.loads` returns; refuse what could not be written to the output's index."""
    if len(place) > _MAX_DEPTH:
        raise CheckpointError(
            "nested-too-deep",
            f"{escaped(str(place[0]))} is nested deeper than {_MAX_DEPTH} levels.",
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
            f"{quoted(value)} contains half of a surrogate pair.",
            pointer(*place),
        ) from None
    return value


def _float(text: NumberText, place: tuple[str | int, ...]) -> float:
    number = float(text)
    if not math.isfinite(number) or text.lstrip("-").isdigit():
        raise CheckpointError(
            "integer-too-large", f"The number {escaped(text)} is out of range.", pointer(*place)
        )
    return number


def check_shards(index: ShardIndex, headers: Mapping[str, Header]) -> None:
    """Check that each shard holds exactly the tensors that the index lists for it."""
    _check_files(index, headers)
    found: dict[str, str] = {}
    for shard in index.shards:
        for name in headers[shard].tensors.each_name():
            if name in found:
                raise CheckpointError(
                    "tensor-in-two-shards",
                    f"Tensor {quoted(name)} is in both {found[name]} and {shard}. Remove one.",
                    pointer("weight_map", name),
                )
            found[name] = shard
    _check_places(index, found)


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


def index_warnings(index: ShardIndex, tensor_bytes: int) -> tuple[str, ...]:
    """Say what is wrong in an index without any harm; `tensor_bytes` is what the tensors take."""
    stated = index.metadata.get("total_size")
    # Some writers write the integer as a float.
    if stated is None or (type(stated) in {int, float} and stated == tensor_bytes):
        return ()
    said = (
        f"The index says that total_size is {quoted(str(stated))}, but the tensors take {tensor_bytes} bytes"
    )
    return (f"{said}; nothing depends on it, and the index of a result has the right number.",)
