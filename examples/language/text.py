"""The docstrings of the standard library, which every Python carries, as bytes in three parts."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

OTHERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
EVERY = 10
CALIBRATION, EVALUATION = 4, 9  # of ten files, these two are not for training
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Text:
    """The bytes of each part, as numbers from 0 to 255; no file and no docstring is in two parts."""

    training: Tensor
    calibration: Tensor
    evaluation: Tensor


def text(folder: Path | None = None) -> Text:
    """Read the docstrings below a folder, by default the standard library of this Python."""
    folder = folder or Path(sysconfig.get_path("stdlib"))
    files = [
        path for path in sorted(folder.rglob("*.py")) if OTHERS.isdisjoint(path.relative_to(folder).parts)
    ]
    parts: list[list[str]] = [[] for _ in range(EVERY)]
    seen: set[str] = set()
    for place, file in enumerate(files):
        for found in docstrings(file):
            if found not in seen:
                seen.add(found)
                parts[place % EVERY].append(found)
    training = [
        found for place in range(EVERY) if place not in {CALIBRATION, EVALUATION} for found in parts[place]
    ]
    return Text(_bytes(training), _bytes(parts[CALIBRATION]), _bytes(parts[EVALUATION]))


def docstrings(file: Path) -> Iterator[str]:
    """Yield the docstrings of a module, none where it is not valid Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the strings of old modules
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (found := ast.get_docstring(node)):
            yield found


def _bytes(found: list[str]) -> Tensor:
    joined = "\n\n".join(found).encode()
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).long()
