"""Whether the files of a checkpoint fit together, and which are missing."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from schemas.checkpoint import FileInfo
from schemas.format.companion import MAX_COMPANIONS_BYTES
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles
from schemas.format.header import Header
from schemas.format.index import ShardIndex, check_shards, parse_index
from schemas.format.names import SHARD, index_of, is_companion, is_index
from state.checkpoints.parsed_header import HeaderSize, PackedHeader, stored_header, stored_header_size
from state.data_dir import DataDir
from state.errors import TooLarge
from state.uploads.upload import Content

A_WEIGHT_FILE = "a .safetensors file"
AN_INDEX = "an index file (*.safetensors.index.json)"


def stored_is_complete(paths: DataDir, checkpoint_id: str, files: Collection[str]) -> bool:
    """Whether nothing is missing of a checkpoint of these files; headers are not read."""
    index = read_index(paths.checkpoint(checkpoint_id), files)
    return next(missing_files(files, index), None) is None


def check_companions(files: Iterable[FileInfo]) -> None:
    """Refuse more companions than a checkpoint may have."""
    if sum(file.size_bytes for file in files if is_companion(file.name)) > MAX_COMPANIONS_BYTES:
        raise TooLarge(MAX_COMPANIONS_BYTES, "What the checkpoint holds beside its weights")


def check_addition(
    folder: Path,
    files: Mapping[str, FileInfo],
    *,
    name: str,
    header: PackedHeader | None,
    index: ShardIndex | None,
) -> None:
    """Check that new weights with this header, or a new index with this content, fit the stored files."""
    others = {other: info for other, info in files.items() if other != name}
    if header is not None:
        check_header_sizes(folder, others, [header.size])
    if index is not None and (second := next(filter(is_index, others), None)):
        raise CheckpointError(
            "second-index",
            f"The checkpoint has an index already, {second}. Use one index per checkpoint.",
        )
    index = index or read_index(folder, others)
    if index is None:
        return
    _check_named(index, weight_files({*others, name}), sent={name})
    if set(index.shards) <= {*others, name}:
        sent = {} if header is None else {name: header.header()}
        stored = {shard: stored_header(folder, others[shard]) for shard in index.shards if shard not in sent}
        check_shards(index, stored | sent)


def check_together(sent: Mapping[str, Content], stored: CheckpointFiles | None) -> None:
    """Refuse before the first of several files is published what `check_addition` would refuse after it."""
    headers = {name: content for name, content in sent.items() if isinstance(content, Header)}
    index = next((content for content in sent.values() if isinstance(content, ShardIndex)), None)
    if stored is not None:
        check_one_index(sorted({*sent, *stored.names}))
        headers = {**stored.headers, **headers}
        index = index or stored.index
    if index is None:
        return
    _check_named(index, sorted(headers), sent=headers)
    if set(index.shards) == headers.keys():
        check_shards(index, headers)


def check_one_index(names: Iterable[str]) -> None:
    """Refuse names of files of which two are indexes."""
    found = [name for name in names if is_index(name)]
    if len(found) > 1:
        raise CheckpointError(
            "second-index", f"{found[0]} and {found[1]} are both indexes. Use one index per checkpoint."
        )


def check_header_sizes(folder: Path, stored: Mapping[str, FileInfo], sent: Iterable[HeaderSize]) -> None:
    """Refuse a checkpoint whose files, stored and sent, have more tensors or headers than one may have."""
    kept = (stored_header_size(folder, stored[name]) for name in weight_files(stored))
    sum((*kept, *sent), start=HeaderSize()).check()


def missing_files(names: Collection[str], index: ShardIndex | None) -> Iterator[str]:
    """Yield the names of the files that a checkpoint of these files and this index lacks."""
    if index is not None:
        yield from (shard for shard in index.shards if shard not in names)
        return
    files = weight_files(names)
    if shard := _first_shard(files):
        stem, count = shard["stem"], shard["count"]
        yield index_of(stem)
        siblings = (f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1))
        yield from (name for name in siblings if name not in names)
    elif not files:
        yield A_WEIGHT_FILE
    elif len(files) != 1:
        yield AN_INDEX


def strays(names: Collection[str]) -> tuple[str, ...]:
    """Return the weight files that are no siblings of the first one that is named like a shard."""
    files = weight_files(names)
    first = _first_shard(files)
    if first is None:
        return ()
    same = first.group("stem", "count")
    found = [(name, SHARD.fullmatch(name)) for name in files]
    return tuple(name for name, shard in found if shard is None or shard.group("stem", "count") != same)


def _first_shard(files: Iterable[str]) -> re.Match[str] | None:
    return next((match for name in files if (match := SHARD.fullmatch(name))), None)


def _check_named(index: ShardIndex, names: Iterable[str], *, sent: Collection[str]) -> None:
    for name in names:
        if name not in index.shards:
            whose = "The index" if name in sent else "This index"
            raise CheckpointError(
                "shard-extra",
                f"{whose} does not name the file {name}. Name it there, or use another checkpoint id.",
                "/weight_map",
            )


def read_index(folder: Path, names: Collection[str]) -> ShardIndex | None:
    name = next(filter(is_index, names), None)
    return parse_index((folder / name).read_bytes()) if name else None


def weight_files(names: Collection[str]) -> list[str]:
    return sorted(name for name in names if not (is_index(name) or is_companion(name)))
