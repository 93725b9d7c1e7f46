"""Checkpoints on this machine's disk: one safetensors file, or an index and its shards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.errors import InputError
from schemas.format.errors import CheckpointError, listed
from schemas.format.header_stream import read_header
from schemas.format.index import CHECKPOINT_ID, FILE_NAME, INDEX_ENDING, check_shards, parse_index
from schemas.problem import FieldProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.format.header import Header
    from schemas.format.tensor import TensorInfo

ENDING = ".safetensors"
PathOrId = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Source:
    """A whole checkpoint whose headers and index have passed every check."""

    name: str
    index: Path | None
    shards: tuple[Path, ...]
    headers: Mapping[str, Header]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files; the index comes first, so that a bad one is refused before the shards are sent."""
        return (*((self.index,) if self.index else ()), *self.shards)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors, in the order of the files and of their bytes."""
        return tuple(tensor for shard in self.shards for tensor in self.headers[shard.name].tensors)


def find_source(given: PathOrId) -> Source | None:
    """Open what is given if it is on disk; None where it can only be the id of a stored checkpoint."""
    text = os.fspath(given)
    if text and Path(text).exists():
        return open_source(Path(text))
    is_id = isinstance(given, str) and CHECKPOINT_ID.fullmatch(text) is not None
    if not is_id or text.endswith((ENDING, INDEX_ENDING)):
        raise InputError(f"{text}: there is no such file or directory")
    return None


def open_source(path: Path) -> Source:
    """Find a checkpoint's files from a file, an index or a directory, and check their headers."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file or directory")
    if path.is_dir():
        source = _open_found(_in_directory(path), name=path.absolute().name)
        _refuse_strays(source, path)
        return source
    return _open_found(path, name=path.name.removesuffix(INDEX_ENDING).removesuffix(ENDING))


def _open_found(path: Path, *, name: str) -> Source:
    if not path.name.endswith(INDEX_ENDING):
        return Source(name, None, (path,), {path.name: _header(path)})
    try:
        index = parse_index(path.read_bytes())
        shards = tuple(path.parent / shard for shard in index.shards)
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise InputError(f"{path} names files that are not beside it: {listed(missing)}")
        headers = {shard.name: _header(shard) for shard in shards}
        check_shards(index, headers)
    except CheckpointError as error:
        raise _refusal(path, error) from error
    return Source(name, path, shards, headers)


def _header(path: Path) -> Header:
    if FILE_NAME.fullmatch(path.name) is None:
        raise InputError(
            f"{path}: a checkpoint's file is named with at most 128 letters, digits, dots, underscores and "
            f"hyphens, and ends in {ENDING}; rename or convert it"
        )
    try:
        return read_header(path)
    except CheckpointError as error:
        raise _refusal(path, error) from error


def _in_directory(path: Path) -> Path:
    """Return the index, or else the one file; whatever would have to be guessed is refused."""
    found = sorted(path.glob(f"*{INDEX_ENDING}")) or sorted(path.glob(f"*{ENDING}"))
    if not found:
        raise InputError(f"{path} holds no {ENDING} file")
    if len(found) > 1:
        raise InputError(f"{path} holds {listed([file.name for file in found])}; say which one you mean")
    return found[0]


def _refuse_strays(source: Source, directory: Path) -> None:
    """Refuse to leave out silently what lies beside the shards."""
    strays = sorted(set(directory.glob(f"*{ENDING}")) - set(source.files))
    if strays:
        raise InputError(
            f"{source.index} does not name {listed([file.name for file in strays])}; to leave such files "
            "out, give the index itself instead of its directory"
        )


def _refusal(path: Path, error: CheckpointError) -> InputError:
    fields = (FieldProblem(pointer=error.pointer, detail=error.detail),) if error.pointer else ()
    return InputError(f"{path}: {error.detail}", errors=fields)
