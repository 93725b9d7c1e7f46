"""Calibration: collect statistics of the inputs of a model's layers from batches, and write them."""

from __future__ import annotations

import sys
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eckart.errors import InputError, missing_extra
from eckart.progress import ProgressLine, silent
from eckart.statistics_file import (
    CODES,
    COUNT,
    GRAD_GRAM,
    GRAM,
    MEAN,
    metadata_of,
    tensors_of,
    write_statistics,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from eckart.calibration_pass import Collected

DEFAULT_PATH = "calibration.safetensors"


def calibrate(
    model: nn.Module,
    batches: Iterable[object],
    path: str | os.PathLike[str] = DEFAULT_PATH,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    dtype: Literal["float32", "float64"] = "float32",
    spill: bool = False,
) -> Path:
    """Run batches through a model and write what is known of the inputs x of each linear layer.

    The file has `<module>.gram` = Σxxᵀ, `<module>.mean` and `<module>.count`, the number of inputs.

    This is one pass in eval mode and without gradients. A batch is a mapping (passed as keywords), a tuple or
    list (passed in order) or one argument. Where it has an `attention_mask` or a `decoder_attention_mask`
    [batch, tokens], padding does not count: each mask follows its own tokens through the model. Left out are
    layers whose weight is another module's too, such as a head tied to the embedding. Sums are in float64 and
    take 8 n² bytes for each distinct input of n features, for any number of samples; layers that take the
    same tensor (query, key and value) share one sum. `spill` keeps the sums in files next to `path` instead
    of in memory. The file appears when it is whole; its path is returned. On a terminal, a line shows how
    far it is.

    Needs torch: `pip install 'eckart[torch]'`.
    """
    try:
        from eckart.calibration_pass import collect, linear_layers  # imports torch
        from eckart.sums import SumStore
    except ModuleNotFoundError as error:
        raise missing_extra(error, "torch") from error
    target = checked_target(path)
    if dtype not in CODES:
        raise InputError(f"dtype must be float32 or float64, not {dtype!r}")

    def chosen(name: str) -> bool:
        return _matches(name, include) and not _matches(name, exclude)

    layers = linear_layers(model, chosen)
    with SumStore(target if spill else None) as store, closing(ProgressLine(sys.stderr)) as line:
        progress = line if sys.stderr.isatty() else silent
        _write(target, collect(model, layers, batches, store, progress), dtype)
    return target


def checked_target(path: str | os.PathLike[str]) -> Path:
    """Refuse a file that cannot be written, before work that may take hours."""
    target = Path(path)
    if not target.name.endswith(".safetensors"):
        raise InputError(f"{target}: give a name that ends in .safetensors")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a folder; make it first, or name another file")
    return target


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _write(target: Path, collected: Collected, dtype: str) -> None:
    import torch

    moments, grad_grams = collected.moments, collected.grad_grams

    def value_of(tensor: str) -> Tensor:
        name, dot, what = tensor.rpartition(".")
        if dot + what == GRAD_GRAM:
            return grad_grams[name]
        sums = moments[name]
        values = {GRAM: sums.gram, MEAN: sums.mean, COUNT: torch.tensor([sums.count])}
        return values[dot + what]

    inputs = {name: sums.total.shape[0] for name, sums in moments.items()}
    outputs = {name: gram.shape[0] for name, gram in grad_grams.items()}
    tensors = tensors_of(inputs, outputs, {}, dtype)
    write_statistics(target, tensors, metadata_of({}, None), value_of)
