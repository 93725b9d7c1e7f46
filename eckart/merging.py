"""Merging statistics files: the sums over parts of the data become the sums over all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eckart.checkpoint import listed
from eckart.errors import InputError, missing_extra
from eckart.statistics_file import (
    COUNT,
    GRAD_GRAM,
    GRAM,
    LEGAL,
    MEAN,
    SHARED,
    StatisticsFile,
    checked_target,
    metadata_of,
    new_tensor,
    read_statistics,
    write_statistics,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from eckart.header import NewTensor


def merge_statistics(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    allow_missing: bool = False,
) -> Path:
    """Merge files of :func:`eckart.calibrate`, made of the same model by parts of the data; return `out`.

    Sums and counts are added, means are weighted by the counts. Files must agree in what they hold: kind of
    gradients, layers and their shapes. With `allow_missing` a layer may be missing in some of them, where it
    then had no input: right for experts that no token reached, and for files that each hold other layers of
    the same data. Layers share a tensor where they do in all files. One tensor is in memory at a time.

    Needs torch: `pip install 'eckart[torch]'`.
    """
    try:
        import torch  # noqa: F401 - what reads and adds the tensors
    except ModuleNotFoundError as error:
        raise missing_extra(error, "torch") from error
    target = checked_target(out)
    files = [read_statistics(Path(path)) for path in paths]
    if not files:
        raise InputError("there are no files to merge; give at least one")
    _check_kinds(files)
    names = list(dict.fromkeys(name for file in files for name in file.layers))
    if not allow_missing:
        _check_missing(names, files)
    for name in names:
        _check_layer(name, files)
    same_as = _common(names, files)
    tensors = [
        _merged(name, ending, files)
        for name in names
        for ending in LEGAL
        if any(ending in file.layers.get(name, {}) for file in files)
        and not (name in same_as and ending in SHARED)
    ]
    write_statistics(target, tensors, metadata_of(same_as, files[0].kind), lambda name: _sum(name, files))
    return target


def _check_kinds(files: Sequence[StatisticsFile]) -> None:
    first = files[0]
    for file in files[1:]:
        if file.kind != first.kind:
            raise InputError(
                f"{first.path} has gradients of kind {first.kind!r} and {file.path} of kind {file.kind!r}; "
                "merge only files that were made with the same sensitivity"
            )


def _check_missing(names: Sequence[str], files: Sequence[StatisticsFile]) -> None:
    """Refuse tensors that only some files have; a missing one could be no input, or a layer left out."""
    for ending in (GRAM, GRAD_GRAM):
        everywhere = [name for name in names if any(ending in file.layers.get(name, {}) for file in files)]
        for file in files:
            if lacking := [name for name in everywhere if ending not in file.layers.get(name, {})]:
                raise InputError(
                    f"{file.path} has no {ending[1:]} of {listed(lacking)}, and another file has: calibrate "
                    "all with the same include and exclude, or give allow_missing=True where it is right "
                    "that nothing came to these layers, as to experts without tokens"
                )


def _check_layer(name: str, files: Sequence[StatisticsFile]) -> None:
    """Refuse means and counts that only some files have, and shapes that differ."""
    having = [file for file in files if name in file.layers]
    for ending in (MEAN, COUNT):
        with_it = [file.path for file in having if ending in file.layers[name]]
        without = [file.path for file in having if ending not in file.layers[name]]
        if with_it and without:
            raise InputError(
                f"{with_it[0]} has {name}{ending} and {without[0]} has not, so they cannot be merged; "
                "calibrate again for the one that has not"
            )
    for ending in LEGAL:
        found = {file.layers[name][ending].shape: file.path for file in having if ending in file.layers[name]}
        if len(found) > 1:
            (shape, path), (other_shape, other) = list(found.items())[:2]
            raise InputError(
                f"{name}{ending} is {list(shape)} in {path} and {list(other_shape)} in {other}; merge only "
                "files of the same model"
            )


def _common(names: Sequence[str], files: Sequence[StatisticsFile]) -> dict[str, str]:
    """Return which layers share their tensors with an earlier one in every file."""
    first: dict[tuple[str | None, ...], str] = {}
    same_as = {}
    for name in names:
        sources = tuple(file.same_as.get(name, name) if name in file.layers else None for file in files)
        other = first.setdefault(sources, name)
        if other != name:
            same_as[name] = other
    return same_as


def _merged(name: str, ending: str, files: Sequence[StatisticsFile]) -> NewTensor:
    parts = [file.layers[name][ending] for file in files if ending in file.layers.get(name, {})]
    is_wide = ending == COUNT or any(part.dtype == "F64" for part in parts)
    return new_tensor(name + ending, "F64" if is_wide else "F32", parts[0].shape)


def _sum(tensor: str, files: Sequence[StatisticsFile]) -> Tensor:
    name, dot, what = tensor.rpartition(".")
    ending = dot + what
    having = [file for file in files if ending in file.layers.get(name, {})]
    if ending != MEAN:
        return _added(having, name, ending)
    weighted = _added(having, name, MEAN, weighted=True)
    return weighted / _added(having, name, COUNT)


def _added(files: Sequence[StatisticsFile], name: str, ending: str, *, weighted: bool = False) -> Tensor:
    total: Tensor | None = None
    for file in files:
        part = file.load(file.layers[name][ending])
        if weighted or ending == COUNT:
            count = file.load(file.layers[name][COUNT])
            if not float(count) > 0:
                raise InputError(f"{file.path}: {name}{COUNT} is {float(count)}; it must be positive")
            part = part * count if weighted else part
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
