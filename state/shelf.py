"""The files of one checkpoint as a set: what is missing, and whether they fit together."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from schemas.checkpoint import (
    INDEX_ENDING,
    CheckpointError,
    Header,
    ShardIndex,
    TensorInfo,
    check_shards,
    parse_index,
    read_header,
)
from schemas.report import FileReport

SHARD = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors")
AN_INDEX = "an index file (*.safetensors.index.json)"
MISSING_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint's files as they lie in its folder."""

    id: str
    folder: Path
    files: tuple[FileReport, ...]
    headers: Mapping[str, Header]
    index: ShardIndex | None
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether a job can run on it."""
        return not self.missing

    @property
    def unrelated(self) -> tuple[str, ...]:
        """Files that lie side by side without an index, though their names do not make them shards."""
        return tuple(self.headers) if self.missing == (AN_INDEX,) else ()

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors, in the order of the files' names and then of their bytes."""
        return tuple(info for header in self.headers.values() for info in header.tensors)

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(info.parameters for info in self.tensors)

    def path(self, name: str) -> Path:
        """Where one of its files lies."""
        return self.folder / name


def read_shelf(checkpoint_id: str, folder: Path, files: Mapping[str, FileReport]) -> StoredCheckpoint:
    """Read the headers of published files, which were checked before they were published."""
    index = read_index(folder, files)
    headers = {name: read_header(folder / name) for name in weights(files)}
    missing = tuple(islice(_missing(files, index), MISSING_SHOWN))
    return StoredCheckpoint(checkpoint_id, folder, tuple(files.values()), headers, index, missing)


def read_index(folder: Path, names: Collection[str]) -> ShardIndex | None:
    """Read the index, if there is one."""
    name = next((name for name in names if name.endswith(INDEX_ENDING)), None)
    return parse_index((folder / name).read_bytes()) if name else None


def weights(names: Collection[str]) -> list[str]:
    """Return the names of the safetensors files, in order."""
    return sorted(name for name in names if not name.endswith(INDEX_ENDING))


def check_addition(
    folder: Path, names: Collection[str], *, name: str, sent: Path, index: ShardIndex | None
) -> None:
    """Check that a file fits those that are there; `index` is its content if it is one."""
    others = {other: folder / other for other in names if other != name}
    if index is not None and (second := next((o for o in others if o.endswith(INDEX_ENDING)), None)):
        raise CheckpointError(
            "second-index",
            f"The checkpoint has an index already, {second}. Use one index per checkpoint.",
        )
    index = index or read_index(folder, others)
    if index is None:
        return
    paths = others | {name: sent}
    _check_named(index, weights(paths), sent=name)
    if set(index.shards) <= paths.keys():
        check_shards(index, {shard: read_header(paths[shard]) for shard in index.shards})


def _check_named(index: ShardIndex, names: Collection[str], *, sent: str) -> None:
    for name in names:
        if name not in index.shards:
            whose = "The index" if name == sent else "This index"
            raise CheckpointError(
                "shard-extra",
                f"{whose} does not name the file {name}. Name it there, or use another checkpoint id.",
                "/weight_map",
            )


def _missing(names: Collection[str], index: ShardIndex | None) -> Iterator[str]:
    files = weights(names)
    if index is not None:
        yield from (shard for shard in index.shards if shard not in names)
        return
    shard = next((match for name in files if (match := SHARD.fullmatch(name))), None)
    if shard:
        stem, count = shard["stem"], shard["count"]
        yield f"{stem}{INDEX_ENDING}"
        siblings = (f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1))
        yield from (name for name in siblings if name not in names)
    elif len(files) != 1:
        yield AN_INDEX
