"""The other files of a model's folder: which are sent with its weights, and which are copied here instead."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

# The service's own rules.
COMPANION_NAME = re.compile(
    r"(?!.{129})(?!.*\.index\.)[A-Za-z0-9][A-Za-z0-9._-]*\.(?:json|txt|model|md|jinja)"
)
ENDINGS = (".json", ".txt", ".model", ".md", ".jinja")
REPORT_NAME = "report.json"
CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 8 * 2**20
MAX_COMPANION_BYTES = 64 * 2**20
MAX_COMPANIONS_BYTES = 256 * 2**20
# The modules of a sentence-transformers model, each with its subfolder.
MODULES_NAME = "modules.json"


@dataclass(frozen=True, slots=True)
class Companions:
    """Files to send with the weights, and the names of those that stay here."""

    paths: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()

    def check_total(self) -> None:
        """Refuse what the service would refuse once the weights are sent."""
        size_bytes = sum(path.stat().st_size for path in self.paths)
        if size_bytes > MAX_COMPANIONS_BYTES:
            raise InputError(
                f"the files beside the weights in {self.paths[0].parent} have {size_bytes} bytes, but the "
                f"limit is {MAX_COMPANIONS_BYTES}; move some away, or give the weights' file itself"
            )


NO_COMPANIONS = Companions()


def is_companion(name: str) -> bool:
    """Whether the service takes a file of this name beside weights."""
    return COMPANION_NAME.fullmatch(name) is not None and name.lower() != REPORT_NAME


def find_companions(folder: Path, weights: Collection[Path]) -> Companions:
    """Sort the files of a folder, apart from its weights and hidden ones, into those to send and the rest."""
    others = [
        path
        for path in sorted(folder.iterdir())
        if path not in weights and path.is_file() and not path.name.startswith(".")
    ]
    taken = tuple(path for path in others if is_companion(path.name) and _fits(path))
    return Companions(taken, tuple(path.name for path in others if path not in taken))


def copy_subfolders(folder: Path, into: Path) -> tuple[Path, ...]:
    """Copy the small files of a model's subfolders, which the service does not take; return their new paths.

    A sentence-transformers model keeps the configuration of its pooling there, for example. The weights of a
    subfolder are copied where `modules.json` names it.
    """
    modules = _module_folders(folder)
    copied: list[Path] = []
    left_bytes = MAX_COMPANIONS_BYTES
    for path in _in_subfolders(folder, into):
        endings = (*ENDINGS, ".safetensors") if path.parent.name in modules else ENDINGS
        if not (path.name.endswith(endings) and _fits(path)):
            continue
        left_bytes -= path.stat().st_size
        if left_bytes < 0:
            raise InputError(f"the files in the subfolders of {folder} exceed {MAX_COMPANIONS_BYTES} bytes")
        copied.append(_copy(path, into / path.parent.name / path.name))
    return tuple(copied)


def _in_subfolders(folder: Path, into: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*/*")):
        is_hidden = path.parent.name.startswith(".") or path.name.startswith(".")
        if path.is_file() and not is_hidden and path.parent.absolute() != into.absolute():
            yield path


def _module_folders(folder: Path) -> frozenset[str]:
    try:
        modules = json.loads((folder / MODULES_NAME).read_bytes())
        return frozenset(str(module["path"]) for module in modules)
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return frozenset()


def _copy(source: Path, target: Path) -> Path:
    if target.exists():
        if not filecmp.cmp(source, target, shallow=False):
            raise InputError(f"{target} exists with other bytes; choose another directory")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    part.replace(target)
    return target


def _fits(path: Path) -> bool:
    limit_bytes = MAX_CONFIG_BYTES if path.name == CONFIG_NAME else MAX_COMPANION_BYTES
    return path.stat().st_size <= limit_bytes
