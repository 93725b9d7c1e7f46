"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.format.errors import CheckpointError, listed, pointer, printable, quoted
from schemas.format.json_reader import JsonReader, NumberText
from schemas.format.tensor import check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.format.header import Header


# 32 MB hold about 300 000 tensors, as a header of that size does.
MAX_INDEX_BYTES = 32_000_000
CHECKPOINT_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
# A checkpoint id with one of the two endings, 128 characters in all. Use both patterns with `fullmatch`.
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
    """Build the text of an index: `total_size` is set, `total_parameters` is updated where it stands.

    Raises
    ------
    ValueError
        If the metadata hold what JSON cannot: NaN, infinity or half of a surrogate pair.
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
            "not-utf8", f"The index is not UTF-8: byte {error.start} does not belong to any character."
        ) from None
    scan = JsonReader(text, base=0)
    fields = _fields(scan)
    scan.end()
    if "weight_map" not in fields:
        raise CheckpointError(
            "missing-key", "The index lacks weight_map, which names the file of each tensor."
        )
    if not fields["weight_map"]:
        raise CheckpointError(
            "no-tensors", "The index names no tensors, so there is nothing to compress.", "/weight_map"
        )
    return ShardIndex(fields["weight_map"], fields.get("metadata", {}))


def _fields(scan: JsonReader) -> dict[str, Any]:
    scan.check_opening()
    fields: dict[str, Any] = {}
    for key in scan.members():
        if key in fields:
            raise scan.fault("duplicate-key", f"The index holds the key {quoted(key)} twice.", pointer(key))
        if key == "weight_map":
            fields[key] = _weight_map(scan)
        elif key == "metadata":
            fields[key] = _metadata(scan)
        else:
            raise scan.fault(
                "unknown-key",
                f"Unknown key {quoted(key)}; only metadata and weight_map are allowed.",
                pointer(key),
            )
    return fields


def _weight_map(scan: JsonReader) -> dict[str, str]:
    if scan.peek() != "{":
        raise scan.fault(
            "weight-map-not-strings", "weight_map must be an object of file names.", "/weight_map"
        )
    shards: dict[str, str] = {}
    for name in scan.members():
        check_name(name, scan)
        if name in shards or scan.peek() != '"':
            raise _bad_entry(name, scan, repeated=name in shards)
        shards[name] = shard = scan.string()
        if FILE_NAME.fullmatch(shard) is None or shard.endswith(INDEX_ENDING):
            raise _bad_shard(shard, name, scan)
    return shards


def _bad_entry(name: str, scan: JsonReader, *, repeated: bool) -> CheckpointError:
    place = pointer("weight_map", name)
    if repeated:
        return scan.fault("duplicate-name", f"weight_map holds tensor {quoted(name)} twice.", place)
    return scan.fault("weight-map-not-strings", f"The file of tensor {quoted(name)} must be a string.", place)


def _bad_shard(shard: str, name: str, scan: JsonReader) -> CheckpointError:
    told = f"Tensor {quoted(name)} is said to be in {quoted(shard)}"
    place = pointer("weight_map", name)
    if re.search(r"[/\\:]|\.\.|^~", shard):
        return scan.fault(
            "shard-path", f"{told}. A shard is named without a path; keep all files side by side.", place
        )
    if not shard.endswith(".safetensors"):
        return scan.fault(
            "shard-extension", f"{told}. Only .safetensors files can be shards; convert it.", place
        )
    return scan.fault(
        "shard-name",
        f"{told}. Use at most 128 letters, digits, dots, underscores and hyphens for a file's name.",
        place,
    )


def _metadata(scan: JsonReader) -> dict[str, Any]:
    if scan.peek() != "{":
        raise scan.fault("metadata-not-object", "metadata must be an object.", "/metadata")
    value = _plain(scan.value(), ("metadata",))
    assert isinstance(value, dict)
    return value


def _plain(value: Any, place: tuple[str | int, ...]) -> Any:
    """Convert to what `json.loads` gives, refusing what cannot be written again."""
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
                "duplicate-key", f"The index holds a key of {pointer(*place)} twice.", pointer(*place)
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
            "lone-surrogate", f"{quoted(value)} in metadata holds half of a surrogate pair.", pointer(*place)
        ) from None
    return value


def _float(text: NumberText, place: tuple[str | int, ...]) -> float:
    number = float(text)
    if not math.isfinite(number) or text.lstrip("-").isdigit():
        raise CheckpointError(
            "integer-too-large", f"{printable(text)} in metadata is out of range.", pointer(*place)
        )
    return number


def check_shards(index: ShardIndex, headers: Mapping[str, Header]) -> None:
    """Check that the shards hold exactly the tensors that the index says they hold."""
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
            f"The index names files that are not there: {listed(missing)}. Send them too.",
            "/weight_map",
        )
    if extra := sorted(headers.keys() - named):
        raise CheckpointError(
            "shard-extra",
            f"The index does not name these files: {listed(extra)}. Leave them out.",
            "/weight_map",
        )


def _check_places(index: ShardIndex, found: Mapping[str, str]) -> None:
    for name, shard in index.weight_map.items():
        if found.get(name) != shard:
            where = f"is in {found[name]}" if name in found else "is in none of the files"
            raise CheckpointError(
                "tensor-in-other-shard" if name in found else "tensor-missing",
                f"The index says that tensor {quoted(name)} is in {shard}, but it {where}.",
                pointer("weight_map", name),
            )
    if extra := [name for name in found if name not in index.weight_map]:
        raise CheckpointError(
            "tensor-extra",
            f"{found[extra[0]]} holds tensor {quoted(extra[0])}, which weight_map does not name. Add it.",
            pointer("weight_map", extra[0]),
        )


def _check_total(index: ShardIndex, found_bytes: int) -> None:
    said = index.metadata.get("total_size")
    # Some writers count in floating point; a whole number is a whole number.
    if said is None or (type(said) in {int, float} and said == found_bytes):
        return
    raise CheckpointError(
        "total-size",
        f"total_size is {printable(str(said))}, but the tensors take {found_bytes} bytes. Correct it.",
        "/metadata/total_size",
    )
