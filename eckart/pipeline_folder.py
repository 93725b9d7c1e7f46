"""A whole folder of diffusers: its components, of which some are compressed, and all of its other files."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.checkpoint import ENDING, CheckpointFiles, listed, open_checkpoint
from eckart.companions import REPORT_NAME
from eckart.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INDEX_NAME = "model_index.json"
# Components that stay as they are unless they are named: nearly all of their weights are convolutions, and
# an error of theirs is seen in each pixel or heard in each sample.
LEFT_ALONE = re.compile(r"Autoencoder|VAE|VQModel|SafetyChecker|Watermark|HifiGan|Vocoder")
# Weights that are not in the format of safetensors.
OTHER_WEIGHTS = (".bin", ".msgpack", ".h5", ".ckpt", ".pt", ".pth", ".onnx", ".onnx_data", ".gguf")


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline's folder, and the components of it that are to be compressed, in the order of its index."""

    folder: Path
    components: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.absolute().name

    @cached_property
    def checkpoints(self) -> Mapping[str, CheckpointFiles]:
        """What each component to compress consists of."""
        return {component: self._checkpoint(component) for component in self.components}

    @cached_property
    def left_out(self) -> tuple[Path, ...]:
        """Weights of other formats in the components to compress: with them the folder would not shrink."""
        return tuple(path for path in self._files if self._component(path) and _is_other(path))

    @cached_property
    def copied(self) -> tuple[Path, ...]:
        """The files that are copied byte for byte: all that no job reads, writes or replaces."""
        replaced = {path for files in self.checkpoints.values() for path in files.paths}
        replaced |= {self.folder / component / REPORT_NAME for component in self.components}
        return tuple(path for path in self._files if path not in replaced and path not in self.left_out)

    @property
    def copied_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.copied)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Which weights are not compressed, since they are of another format or of no component."""
        found = []
        if left_out := self._relative(self.left_out):
            found.append(f"left out, since only safetensors files are compressed: {listed(left_out)}")
        if other := self._relative([path for path in self.copied if _is_other(path)]):
            found.append(f"copied as they are, since they are no safetensors files: {listed(other)}")
        if single := self._relative([path for path in self.folder.glob(f"*{ENDING}") if path in self.copied]):
            found.append(f"copied as they are, since they belong to no component: {listed(single)}")
        return tuple(found)

    def copy_rest(self, into: Path) -> None:
        """Copy what the jobs have not written."""
        for path in self.copied:
            target = into / path.relative_to(self.folder)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    @cached_property
    def _files(self) -> tuple[Path, ...]:
        """All files but hidden ones; a link counts as what it leads to, as in the hub's cache."""
        found = []
        for root, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = [
                name for name in sorted(folders) if not (name.startswith(".") or _leads_up(Path(root), name))
            ]
            found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
        return tuple(path for path in found if path.is_file())

    def _component(self, path: Path) -> bool:
        return path.relative_to(self.folder).parts[0] in self.components

    def _relative(self, paths: Sequence[Path]) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in paths]

    def _checkpoint(self, component: str) -> CheckpointFiles:
        try:
            return open_checkpoint(self.folder / component)
        except InputError as error:
            raise InputError(
                f"{error}. A component of a pipeline has one set of weights here; move the others away, or "
                "name the components to compress with --component"
            ) from error


def is_pipeline(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of a whole pipeline, and not that of one model."""
    return (Path(path) / INDEX_NAME).is_file()


def open_pipeline(folder: Path, named: Sequence[str] | None = None) -> PipelineFolder:
    """Find the components to compress: those named, else all that have weights, but no autoencoder."""
    classes = {name: kind for name, kind in component_classes(folder).items() if _has_weights(folder / name)}
    if not classes:
        raise InputError(f"no component that {folder / INDEX_NAME} names has {ENDING} files")
    if strange := [name for name in named or () if name not in classes]:
        raise InputError(
            f"{folder} has no component {listed(strange)} with {ENDING} files; it has {', '.join(classes)}"
        )
    chosen = tuple(
        name
        for name, kind in classes.items()
        if (name in named if named else LEFT_ALONE.search(kind) is None)
    )
    if not chosen:
        raise InputError(f"name the components to compress with --component: {', '.join(classes)}")
    return PipelineFolder(folder, chosen)


def component_classes(folder: Path) -> dict[str, str]:
    """Return the class of each component that the pipeline's index names."""
    path = folder / INDEX_NAME
    try:
        index: dict[str, Any] = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no index of a pipeline") from error
    pairs = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    return {
        name: entry[1]
        for name, entry in pairs.items()
        # The name becomes a path here.
        if isinstance(entry[1], str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name)
    }


def check_spec(spec: Mapping[str, Any], pipeline: PipelineFolder) -> tuple[str, ...]:
    """Refuse a spec that gives no pipeline, or cannot hold for several components; return what to note."""
    if spec.get("base") is not None or spec.get("layout") == "adapter":
        one = pipeline.folder / pipeline.components[0]
        raise InputError(f"an adapter is made of one model: give the folder of a component, such as {one}")
    if len(pipeline.components) == 1:
        return ()
    count = f"{len(pipeline.components)} components"
    rank = spec.get("rank")
    rules = rank if isinstance(rank, dict) else {}
    if "budget_bytes" in rules:
        raise InputError(
            f"budget_bytes is not shared out among {count}; give budget, which holds for each, or compress "
            "one with --component"
        )
    if spec.get("calibration") is not None:
        raise InputError(f"a calibration is of one model, not of {count}; name it with --component")
    if "budget" in rules:
        return (f"the budget holds for each of {count} by itself; it is not shared out among them",)
    return ()


@contextmanager
def published(into: Path, pipeline: PipelineFolder) -> Iterator[Path]:
    """Give a hidden folder to write to, which becomes `into` once it is whole, and goes away otherwise."""
    if into.is_dir() and any(into.iterdir()):
        raise InputError(f"{into} is not empty; choose another directory")
    if into.absolute().is_relative_to(pipeline.folder.absolute()):
        raise InputError(f"{into} lies in the folder to compress; choose another directory")
    into.absolute().parent.mkdir(parents=True, exist_ok=True)
    part = into.absolute().with_name(f".{into.absolute().name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        part.replace(into)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob(f"*{ENDING}"))


def _leads_up(root: Path, name: str) -> bool:
    """Whether a folder is a link to one that holds it."""
    return root.resolve().is_relative_to((root / name).resolve())


def _is_other(path: Path) -> bool:
    return path.name.endswith(OTHER_WEIGHTS)
