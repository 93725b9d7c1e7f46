"""The Gram matrices of a calibration checkpoint, held against the layers they are for: by headers alone."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from schemas.format.errors import CheckpointError, listed, quoted
from schemas.format.files import CheckpointFiles, open_checkpoint
from schemas.planning.layer import LayerPlan, Plan

GRAM = ".gram"
GRAM_DTYPES = ("F64", "F32")


class CalibrationError(CheckpointError):
    """A calibration checkpoint that cannot be used; `code` is stable, `detail` names layer and remedy."""


def open_calibration(path: Path) -> CheckpointFiles:
    """Open a calibration checkpoint as `open_checkpoint` does, with a `CalibrationError` if it is bad."""
    try:
        return open_checkpoint(path)
    except CheckpointError as error:
        raise CalibrationError(error.code, error.detail, error.pointer) from error


class GramInfo(Protocol):
    """What there is to know of a tensor of the calibration checkpoint."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def calibrated(plan: Plan, tensors: Sequence[GramInfo], modules: Collection[str]) -> Plan:
    """Mark the layers that have a Gram matrix, or raise a `CalibrationError`.

    `modules` are all those of the checkpoint that have a weight, selected or not.
    """
    grams = {info.name.removesuffix(GRAM): info for info in tensors if info.name.endswith(GRAM)}
    if not grams:
        raise CalibrationError(
            "no-grams",
            "The calibration holds no tensor named `<module>.gram`. Make it with eckart.calibrate, or store "
            "XXᵀ [n, n] of each layer's inputs X [n, samples] under such names.",
        )
    for name in grams:
        if name not in modules:
            raise CalibrationError("unknown-layer", _unknown(name, modules))
    layers = {layer.name: layer for layer in plan.layers}
    for name, info in grams.items():
        if name in layers:
            _check(layers[name], info)
    marked = tuple(replace(layer, calibrated=layer.name in grams) for layer in plan.layers)
    warnings = (*plan.warnings, *_warnings(tensors, grams, layers))
    return replace(plan, layers=marked, warnings=warnings)


def _unknown(name: str, modules: Iterable[str]) -> str:
    like = next((m for m in modules if m.endswith("." + name) or name.endswith("." + m)), None)
    hint = f" Is it meant for {quoted(like)}?" if like is not None else ""
    return (
        f"The calibration has a Gram matrix for {quoted(name)}, but the checkpoint has no such layer.{hint} "
        "Name it after the layer's weight, with .gram in place of .weight, or leave it out."
    )


def _check(layer: LayerPlan, info: GramInfo) -> None:
    name, n = quoted(layer.name), layer.columns
    if info.dtype not in GRAM_DTYPES:
        raise CalibrationError(
            "gram-dtype",
            f"The Gram matrix of {name} is stored as {info.dtype}. Store it as F32 or F64, summed in float32 "
            "at least.",
        )
    if info.shape == (n, n):
        return
    turned = info.shape == (layer.rows, layer.rows)
    if turned and layer.transposed:
        hint = f"Take {name} out of `transposed` if its weight is stored as [outputs, inputs]."
    elif turned:
        hint = (
            f"Name {name} in `transposed` if its weight is stored as [inputs, outputs], as by GPT-2's Conv1D."
        )
    else:
        hint = "Calibrate again, with the model that this checkpoint is of."
    raise CalibrationError(
        "gram-shape",
        f"The Gram matrix of {name} is {list(info.shape)}, but the layer has {n} inputs, so [{n}, {n}] is "
        f"needed. {hint}",
    )


def _warnings(tensors: Iterable[GramInfo], grams: Collection[str], layers: Collection[str]) -> Iterator[str]:
    if others := [info.name for info in tensors if not info.name.endswith(GRAM)]:
        yield f"calibration: not named `<module>.gram`, so not used: {listed(others)}"
    if unused := [name for name in grams if name not in layers]:
        yield f"calibration: not selected, so not used: {listed(unused)}"
