"""Calibration: collect the Gram matrices of a model's layers from batches of inputs, and write them."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eckart.errors import InputError, missing_extra

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

DEFAULT_PATH = "calibration.safetensors"
GRAM = ".gram"
DTYPES = {"float32": ("F32", 4), "float64": ("F64", 8)}


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
    """Run batches through a model and write `<module>.gram` = XXᵀ of the inputs X of each linear layer.

    This is one pass in eval mode and without gradients. A batch is a mapping (passed as keywords), a tuple or
    list (passed in order) or one argument. Where it has an `attention_mask` or a `decoder_attention_mask`
    [batch, tokens], padding does not count: each mask follows its own tokens through the model. Left out are
    layers whose weight is another module's too, such as a head tied to the embedding. Sums are in float64 and
    take 8 n² bytes for each distinct input of n features, for any number of samples; layers that take the
    same tensor (query, key and value) share one sum. `spill` keeps the sums in files next to `path` instead
    of in memory. The file appears when it is whole; its path is returned.

    Needs torch: `pip install 'eckart[torch]'`.
    """
    try:
        from eckart.gram_collector import GramCollector  # imports torch
    except ModuleNotFoundError as error:
        raise missing_extra(error, "torch") from error
    if dtype not in DTYPES:
        raise InputError(f"dtype must be float32 or float64, not {dtype!r}")
    target = Path(path)
    if not target.name.endswith(".safetensors"):
        raise InputError(f"{target}: give a name that ends in .safetensors")
    if not target.parent.is_dir():
        # Said before the pass over the batches, which may take hours.
        raise InputError(f"{target.parent} is not a folder; make it first, or name another file")

    def chosen(name: str) -> bool:
        return _matches(name, include) and not _matches(name, exclude)

    with GramCollector(model, chosen, spill_next_to=target if spill else None) as collector:
        count = collector.run(batches)
        if count == 0:
            raise InputError("there are no batches; give at least one, and a list if you use them again")
        _write(target, collector.finish(), dtype)
    return target


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _write(target: Path, grams: Mapping[str, Tensor], dtype: str) -> None:
    """Write the matrices one at a time, then rename the file.

    The safetensors package writes only tensors that are all there. Here one at a time is cast to the dtype of
    the file, so that spilled sums never fill the memory.
    """
    import torch

    code, size = DTYPES[dtype]
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, gram in grams.items():
        begin, end = end, end + size * gram.numel()
        entries[name + GRAM] = {"dtype": code, "shape": list(gram.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for gram in grams.values():
                stream.write(gram.to(getattr(torch, dtype)).contiguous().numpy().data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
