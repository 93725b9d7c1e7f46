"""Match the Gram matrices of a calibration checkpoint with the layers, by their headers alone."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from schemas.format.errors import listed, quoted
from schemas.format.files import CheckpointFiles
from schemas.format.tensor import TensorInfo
from schemas.planning.layer import LayerPlan, Plan
from schemas.planning.references import CalibrationError

GRAM = ".gram"
# What a file of statistics holds of a layer.
STATISTICS = (GRAM, ".grad_gram", ".mean", ".count")
GRAM_DTYPES = ("F64", "F32")


def gram_tensors(calibration: CheckpointFiles) -> dict[str, tuple[str, TensorInfo]]:
    """Return the file's name and the tensor of each Gram matrix, by the name of its layer."""
    return {
        tensor.name.removesuffix(GRAM): (name, tensor)
        for name, header in calibration.headers.items()
        for tensor in header.tensors
        if tensor.name.endswith(GRAM)
    }


class GramInfo(Protocol):
    """The fields of a calibration tensor that the checks need."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def mark_calibrated(plan: Plan, tensors: Sequence[GramInfo], modules: Collection[str]) -> Plan:
    """Mark the layers of a plan that have a Gram matrix among the tensors of the calibration.

    `modules` are all modules of the checkpoint that have a weight, selected or not.

    Raises
    ------
    CalibrationError
        If a Gram matrix does not fit its layer, none belongs to a layer, or there is none at all.
    """
    grams = {info.name.removesuffix(GRAM): info for info in tensors if info.name.endswith(GRAM)}
    if not grams:
        raise CalibrationError(
            "no-grams",
            "The calibration has no tensor named `<module>.gram`. Create it with eckart.calibrate, or store "
            "XXᵀ [n, n] of each layer's inputs X [n, samples] under such names.",
        )
    if not any(name in modules for name in grams):
        raise CalibrationError("unknown-layer", _unknown_layer(next(iter(grams)), modules))
    layers = {layer.name: layer for layer in plan.layers}
    for name, info in grams.items():
        if name in layers:
            _check_gram(layers[name], info)
    marked = tuple(replace(layer, calibrated=layer.name in grams) for layer in plan.layers)
    warnings = (*plan.warnings, *_warnings(tensors, grams, layers, modules))
    return replace(plan, layers=marked, warnings=warnings)


def _unknown_layer(name: str, modules: Iterable[str]) -> str:
    similar = next((m for m in modules if m.endswith("." + name) or name.endswith("." + m)), None)
    hint = f" Is it meant for {quoted(similar)}?" if similar is not None else ""
    return (
        f"The calibration has a Gram matrix for {quoted(name)}, but the checkpoint has no such layer, nor "
        f"one for the others.{hint} Name it like the layer's weight, with .gram in place of .weight, or "
        "leave it out."
    )


def _check_gram(layer: LayerPlan, info: GramInfo) -> None:
    name, n = quoted(layer.name), layer.columns
    if info.dtype not in GRAM_DTYPES:
        raise CalibrationError(
            "gram-dtype",
            f"The Gram matrix of {name} is stored as {info.dtype}. Sum it in float32 or float64 and store it "
            "as F32 or F64.",
        )
    if info.shape == (n, n):
        return
    has_output_shape = info.shape == (layer.rows, layer.rows)
    if has_output_shape and layer.transposed:
        hint = f"Remove {name} from `transposed` if its weight is stored as [outputs, inputs]."
    elif has_output_shape:
        hint = (
            f"Add {name} to `transposed` if its weight is stored as [inputs, outputs], as in GPT-2's Conv1D."
        )
    else:
        hint = "Calibrate again, with the model of this checkpoint."
    raise CalibrationError(
        "gram-shape",
        f"The Gram matrix of {name} is {list(info.shape)}, but the layer has {n} inputs, so it must be "
        f"[{n}, {n}]. {hint}",
    )


def _warnings(
    tensors: Iterable[GramInfo], grams: Collection[str], layers: Collection[str], modules: Collection[str]
) -> Iterator[str]:
    if others := [info.name for info in tensors if not info.name.endswith(STATISTICS)]:
        yield f"calibration: not used, since not named `<module>.gram`: {listed(others)}"
    if unknown := [name for name in grams if name not in modules]:
        yield f"calibration: not used, since the checkpoint has no such layer: {listed(unknown)}"
    if unused := [name for name in grams if name in modules and name not in layers]:
        yield f"calibration: not used, since the layer is not selected: {listed(unused)}"
