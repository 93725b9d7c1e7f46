"""Calibration: collect statistics of a model's layers from batches of inputs, and write them."""

from __future__ import annotations

import sys
from contextlib import closing
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from eckart.errors import InputError, missing_extra
from eckart.progress import ProgressLine
from eckart.statistics_file import (
    CODES,
    COUNT,
    GRAD_GRAM,
    GRAM,
    MEAN,
    checked_target,
    metadata_of,
    tensors_of,
    write_statistics,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from eckart.calibration_pass import Collected
    from eckart.probes import Kind
    from eckart.progress import ProgressCallback

DEFAULT_PATH = "calibration.safetensors"


def calibrate(  # noqa: PLR0913 - one verb, whose options are given by name
    model: nn.Module,
    batches: Iterable[object],
    path: str | os.PathLike[str] = DEFAULT_PATH,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    dtype: Literal["float32", "float64"] = "float32",
    spill: bool = False,
    sensitivity: Kind | None = None,
    output: Callable[[Any, Any], Tensor] | None = None,
    probes: int = 4,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Path:
    """Run batches through a model and write what is known of the inputs x of each linear layer.

    The file has `<module>.gram` = Σxxᵀ, `<module>.mean` and `<module>.count`, the number of inputs. With a
    `sensitivity` it also has `<module>.grad_gram` = Σggᵀ of the gradients g at the layer's outputs, the mean
    over some `probes`, each of which costs a backward pass. "output" probes the model's output in random
    directions: its logits, or else its last hidden state. "fisher" draws labels from the model's own softmax
    of its logits. `output` chooses another tensor: it is called with what the model returns and with the
    batch. A layer on which that tensor does not depend has no `grad_gram`, and a warning names it.

    This is one pass in eval mode. The model is left as it was. A batch is a mapping (passed as keywords), a
    tuple or list (passed in order) or one argument. Where it has an `attention_mask` or a
    `decoder_attention_mask` [batch, tokens], padding does not count: each mask follows its own tokens
    through the model. Left out are layers whose weight is another module's too, such as a head tied to the
    embedding. Sums are in float64 and take 8 n² bytes for each distinct input of n features, and 8 m² for
    the gradients at m outputs, for any number of samples; layers that take the same tensor (query, key and
    value) share one sum of inputs. `spill` keeps the sums in files next to `path` instead of in memory. The
    file appears when it is whole; its path is returned. Without a callback for `progress`, stderr
    shows it: a line that changes on a terminal, lines now and then elsewhere.

    Needs torch: `pip install 'eckart[torch]'`.
    """
    try:
        from eckart.calibration_pass import collect, linear_layers  # imports torch
        from eckart.probes import Probes
        from eckart.sums import SumStore
    except ModuleNotFoundError as error:
        raise missing_extra(error, "torch") from error
    target = checked_target(path)
    if dtype not in CODES:
        raise InputError(f"dtype must be float32 or float64, not {dtype!r}")
    if sensitivity is None and output is not None:
        raise InputError("output= is what a sensitivity probes; give sensitivity='output' or 'fisher' too")
    chosen_probes = None
    if sensitivity is not None:
        chosen_probes = Probes(kind=sensitivity, number=probes, seed=seed, output=output)

    def chosen(name: str) -> bool:
        return _matches(name, include) and not _matches(name, exclude)

    layers = linear_layers(model, chosen)
    with SumStore(target if spill else None) as store, closing(ProgressLine(sys.stderr)) as line:
        collected = collect(model, layers, batches, store, progress or line, chosen_probes)
        _write(target, collected, dtype, kind=sensitivity)
    return target


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _write(target: Path, collected: Collected, dtype: str, *, kind: Kind | None) -> None:
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
    first: dict[int, str] = {}
    same_as = {
        name: other for name in moments if (other := first.setdefault(id(moments[name]), name)) != name
    }
    tensors = tensors_of(inputs, outputs, same_as, dtype)
    write_statistics(target, tensors, metadata_of(same_as, kind), value_of)
