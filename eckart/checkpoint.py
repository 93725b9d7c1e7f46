"""Checkpoints on this machine: which files to send, and their headers."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.companions import CONFIG_NAME, NO_COMPANIONS, Companions, find_companions
from eckart.errors import InputError
from eckart.header import header_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENDING = ".safetensors"
# The service's own rules for ids and file names.
CHECKPOINT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FILE_NAME = re.compile(
    r"(?!.{129})[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors(?:\.index(?:\.[A-Za-z0-9_-]+)*\.json)?"
)
# `model.safetensors.index.json`, or `model.safetensors.index.fp16.json` of a variant.
INDEX_ENDING = re.compile(r"\.safetensors\.index(?:\.[A-Za-z0-9_-]+)*\.json$")
NAMES_LISTED = 5
PathOrId = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """One safetensors file, or an index and its shards. What is in them, the service checks.

    Only a directory has companions.
    """

    name: str
    index: Path | None
    shards: tuple[Path, ...]
    companions: Companions = NO_COMPANIONS

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files; what is small comes first, so that the service can refuse it before the shards."""
        return (*((self.index,) if self.index else ()), *self.companions.paths, *self.shards)

    def headers(self) -> Iterator[tuple[str, bytes]]:
        """Give the name and the bytes of what a plan reads: config.json, the index, each shard's header."""
        for path in self.companions.paths:
            if path.name == CONFIG_NAME:
                yield path.name, path.read_bytes()
        if self.index is not None:
            yield self.index.name, self.index.read_bytes()
        for shard in self.shards:
            yield shard.name, header_bytes(shard)


def find_checkpoint(given: PathOrId) -> CheckpointFiles | None:
    """Open the checkpoint at a path; return None where this can only be the id of a stored one."""
    text = os.fspath(given)
    if text and Path(text).exists():
        return open_checkpoint(Path(text))
    is_id = isinstance(given, str) and CHECKPOINT_ID.fullmatch(text) is not None
    if not is_id or text.endswith(ENDING) or is_index(text):
        raise InputError(f"{text}: there is no such file or directory")
    return None


def open_checkpoint(path: Path) -> CheckpointFiles:
    """Find the files of a checkpoint from a file, an index or a directory."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file or directory")
    if not path.is_dir():
        return _open_file(path, name=bare_name(path.name))
    found = _open_file(_in_directory(path), name=path.absolute().name)
    strays = sorted(set(path.glob(f"*{ENDING}")) - set(found.shards))
    if strays:
        raise InputError(
            f"{found.index} does not name {listed([file.name for file in strays])}; to leave such files "
            "out, give the index itself instead of its directory"
        )
    return replace(found, companions=find_companions(path, found.paths))


def is_index(name: str) -> bool:
    """Whether a file is an index by its name."""
    return INDEX_ENDING.search(name) is not None


def bare_name(name: str) -> str:
    """Return a file's name without the ending of a checkpoint or an index."""
    return INDEX_ENDING.sub("", name).removesuffix(ENDING)


def listed(names: Sequence[str]) -> str:
    """Name the first five, and count the rest."""
    first = ", ".join(names[:NAMES_LISTED])
    return first if len(names) <= NAMES_LISTED else f"{first} and {len(names) - NAMES_LISTED} more"


def _in_directory(path: Path) -> Path:
    """Return the index, or else the only file."""
    indexes = sorted(file for file in path.glob("*.json") if is_index(file.name))
    found = indexes or sorted(path.glob(f"*{ENDING}"))
    if not found:
        inside = sorted({file.parent.name for file in path.glob(f"*/*{ENDING}")})
        where = f", but its subfolders {listed(inside)} do" if len(inside) > 1 else ""
        where = f", but its subfolder {inside[0]} does" if len(inside) == 1 else where
        advice = "; give such a folder" if inside else ""
        raise InputError(f"{path} holds no {ENDING} file{where}{advice}")
    if len(found) > 1:
        raise InputError(f"{path} holds {listed([file.name for file in found])}; give the one you mean")
    return found[0]


def _open_file(path: Path, *, name: str) -> CheckpointFiles:
    _check_name(path, path.name)
    if not is_index(path.name):
        return CheckpointFiles(name, None, (path,))
    shards = tuple(path.parent / shard for shard in _shard_names(path))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(f"{path} names files that are not in its directory: {listed(missing)}")
    return CheckpointFiles(name, path, shards)


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is no index: it has no weight_map of file names") from error
    for name in names:
        _check_name(index, name)
    return names


def _check_name(path: Path, name: object) -> None:
    if not isinstance(name, str) or FILE_NAME.fullmatch(name) is None:
        raise InputError(
            f"{path}: {name!r} cannot be the name of a checkpoint's file; a name has at most 128 "
            f"letters, digits, dots, underscores and hyphens, and ends in {ENDING}; rename or convert it"
        )
