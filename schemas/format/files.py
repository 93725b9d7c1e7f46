"""The files of one checkpoint: a safetensors file, or shards and their index; and the companions of both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from schemas.format.companion import MODULES_NAME, companions_in, module_folders
from schemas.format.encodings import PlannedTensors, find_weights, read_quantization
from schemas.format.errors import listed, quoted
from schemas.format.header import Header
from schemas.format.header_stream import read_header
from schemas.format.index import ShardIndex, check_shards, index_warnings, parse_index
from schemas.format.metadata import CONTENT_HASHES, aliases_in, factored_names
from schemas.format.model_config import stored_config, with_layers_of
from schemas.format.names import is_index
from schemas.format.stacks import Orientation, known_stacks, split_stacks
from schemas.format.table import JoinedTensors
from schemas.format.tensor import TensorInfo


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The headers of all weight files by name, the index of a sharded checkpoint, and the companions' names.

    The metadata in the headers also list the factored layers that only config.json does. `folder` holds the
    files; it is None where only their headers are known. `config` is what config.json says, if it is there.
    """

    headers: Mapping[str, Header]
    index: ShardIndex | None = None
    index_name: str | None = None
    folder: Path | None = None
    companions: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor, by file and then by offset; each is made anew whenever it is asked for."""
        return JoinedTensors(header.tensors for header in self.headers.values())

    def planned(self, asked: Orientation | None = None, *, packed_stacks: bool = True) -> PlannedTensors:
        """Return the tensors as planning sees them: those that store one quantized weight are that weight.

        A stack of experts is its matrices. `asked` says of stacks that no config.json tells of how they are
        oriented; `packed_stacks` counts those too whose weights are quantized. All are found anew whenever
        they are asked for.
        """
        found = self._decoded(packed_stacks=packed_stacks)
        orientations = [each for each in (asked, known_stacks(self.config)) if each is not None]
        if not orientations:
            return found
        return PlannedTensors(split_stacks(found.tensors, orientations), found.unknown)

    def _decoded(self, *, packed_stacks: bool) -> PlannedTensors:
        if not any(header.tensors.has_codes for header in self.headers.values()):
            return PlannedTensors(self.tensors)
        metadata = (header.metadata for header in self.headers.values())
        said = read_quantization(self.config, metadata)
        return find_weights(self.tensors, said, leave=self.factored, stacks=packed_stacks)

    @property
    def parameters(self) -> int:
        return sum(header.tensors.parameters for header in self.headers.values())

    @property
    def factored(self) -> frozenset[str]:
        """Names of the modules that are factored already."""
        return factored_names(header.metadata for header in self.headers.values())

    @property
    def aliases(self) -> dict[str, str]:
        """Names that are not stored, with the name of the tensor that is stored for each, by the metadata."""
        metadata = [header.metadata for header in self.headers.values()]
        named = set(chain.from_iterable(chain.from_iterable(each.items()) for each in metadata))
        stored = named.intersection(self._names) if named else named
        found = (aliases_in(header.metadata, stored) for header in self.headers.values())
        return {alias: name for several in found for alias, name in several.items()}

    @property
    def content_hashes(self) -> tuple[str, ...]:
        """The metadata entries that are digests of the tensors."""
        return tuple(key for key in CONTENT_HASHES if any(key in h.metadata for h in self.headers.values()))

    @property
    def entry_name(self) -> str:
        """Name of the file that loaders look for: the index, or the only weight file."""
        return self.index_name or next(iter(self.headers))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files: the weights, the index, the companions."""
        return (*self.headers, *([self.index_name] if self.index_name else []), *self.companions)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong without any harm; of an index whose shards are not all there nothing is known yet."""
        found = self._missing_subfolders()
        if self.index is not None and set(self.index.shards) == self.headers.keys():
            found += index_warnings(
                self.index, sum(header.tensors.data_bytes for header in self.headers.values())
            )
        return found

    def _missing_subfolders(self) -> tuple[str, ...]:
        if self.folder is None or MODULES_NAME not in self.companions:
            return ()
        names = module_folders(self.path(MODULES_NAME))
        if not names:
            return ()
        said = (
            f"{MODULES_NAME} names subfolders, which a checkpoint does not hold, but the model needs them: "
            f"{listed([quoted(name) for name in names])}. `eckart compress DIR` copies them into the result; "
            "otherwise copy them from the model's own folder."
        )
        return (said,)

    @property
    def _names(self) -> Iterator[str]:
        return chain.from_iterable(header.tensors.each_name() for header in self.headers.values())

    def path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name


def open_checkpoint(path: Path) -> CheckpointFiles:
    """Read all headers of a checkpoint: a file, an index, or a directory that holds one of them.

    Only a directory has companions.

    Raises
    ------
    CheckpointError
        If a file is malformed, or the files and the index do not agree.
    FileNotFoundError
        If there is no such file, a shard is missing, or a directory does not hold exactly one checkpoint.
    """
    if path.is_dir():
        indexes = sorted(file for file in path.glob("*.json") if is_index(file.name))
        found = indexes or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise FileNotFoundError(f"{path} holds {len(found)} checkpoints; name the file or the index")
        files, companions = open_checkpoint(found[0]), companions_in(path)
        config = stored_config(path, companions)
        headers = with_layers_of(config, files.headers)
        return replace(files, headers=headers, companions=companions, config=config)
    if not is_index(path.name):
        return CheckpointFiles({path.name: read_header(path)}, folder=path.parent)
    index = parse_index(path.read_bytes())
    missing = [name for name in index.shards if not path.with_name(name).is_file()]
    if missing:
        raise FileNotFoundError(f"{path.name} names files that do not exist: {', '.join(missing)}")
    headers = {name: read_header(path.with_name(name)) for name in index.shards}
    check_shards(index, headers)
    return CheckpointFiles(headers, index, path.name, path.parent)
