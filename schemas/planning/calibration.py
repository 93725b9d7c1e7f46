"""Match the statistics of a calibration checkpoint with the layers, by its headers alone."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, Self

from schemas.format.errors import listed, quoted
from schemas.format.files import CheckpointFiles
from schemas.format.tensor import BIAS, TensorInfo
from schemas.planning.kernels import without_statistics
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.layers import Layers, Plan
from schemas.planning.references import CalibrationError

FLOATS = ("F64", "F32")
# The entry of a file's metadata that names, for layers with the same inputs, the one that has the tensors.
SAME_AS = "same_as"


class Source(NamedTuple):
    """A tensor, and the name of the file that holds it."""

    file: str
    tensor: TensorInfo


@dataclass(frozen=True, slots=True)
class LayerSources:
    """The stored statistics of one layer, named `<module>.<field>`; None for what there is not.

    `gram` = Σxxᵀ [n, n], `mean` [n] and `count` [1] are those of the inputs x; `grad_gram` = Σggᵀ [m, m] of
    the gradients g at the outputs.
    """

    gram: Source | None = None
    grad_gram: Source | None = None
    mean: Source | None = None
    count: Source | None = None

    def given(self) -> Iterator[tuple[str, Source]]:
        """Yield each name and source that there is."""
        for name in STATISTICS:
            if (source := getattr(self, name)) is not None:
                yield name, source


STATISTICS = tuple(each.name for each in fields(LayerSources))
# What layers with the same inputs have in common.
OF_INPUTS = ("gram", "mean", "count")


@dataclass(frozen=True, slots=True)
class Calibration:
    """The statistics of a calibration checkpoint by layer, and the names of its other tensors."""

    layers: Mapping[str, LayerSources]
    others: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, files: CheckpointFiles) -> Self:
        """Collect the statistics from all files.

        Raises
        ------
        CalibrationError
            If the metadata name layers with the same inputs in a way that cannot be followed.
        """
        found: dict[str, dict[str, Source]] = {}
        others = []
        for name, header in files.headers.items():
            for tensor in header.tensors:
                module, _, kind = tensor.name.rpartition(".")
                if module and kind in STATISTICS:
                    found.setdefault(module, {})[kind] = Source(name, tensor)
                else:
                    others.append(tensor.name)
        copies: dict[str, str] = {}
        for header in files.headers.values():
            copies |= _same_as(header.metadata)
        for copy, original in copies.items():
            if not any(kind in found.get(original, ()) for kind in OF_INPUTS):
                raise CalibrationError(
                    "same-as",
                    f"{SAME_AS} in the calibration's metadata says that {quoted(copy)} has the inputs of "
                    f"{quoted(original)}, but there is no {quoted(original + '.gram')}. Create it again.",
                )
        for copy, original in copies.items():
            shared = {kind: source for kind, source in found[original].items() if kind in OF_INPUTS}
            found[copy] = shared | found.get(copy, {})
        layers = {name: LayerSources(**sources) for name, sources in found.items()}
        return cls(layers, tuple(others), copies)


def _same_as(metadata: Mapping[str, str]) -> dict[str, str]:
    text = metadata.get(SAME_AS)
    if text is None:
        return {}
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or not all(isinstance(name, str) for name in entry.values()):
        raise CalibrationError(
            "same-as",
            f"{SAME_AS} in the calibration's metadata is no JSON object of names. Create the file with "
            'eckart.calibrate, or store {"<module>": "<module with the same inputs>"}.',
        )
    return entry


def mark_calibrated(
    plan: Plan, calibration: Calibration, modules: Collection[str], biases: Mapping[str, Tensor]
) -> Plan:
    """Mark in a plan which layers have which statistics.

    `modules` are all modules of the checkpoint that have a weight, selected or not. `biases` are the biases
    that may be corrected, by name.

    Raises
    ------
    CalibrationError
        If statistics do not fit their layer, none belong to a layer, or there are none at all.
    """
    found = {name: own for name, own in calibration.layers.items() if own.gram or own.grad_gram}
    if not found:
        raise CalibrationError(
            "no-grams",
            "The calibration has no tensor named `<module>.gram`. Create it with eckart.calibrate, or store "
            "XXᵀ [n, n] of each layer's inputs X [n, samples] under such names.",
        )
    if not any(name in modules for name in found):
        raise CalibrationError("unknown-layer", _unknown_layer(next(iter(found)), modules))
    layers = {layer.name: layer for layer in plan.layers}
    unfit = {name: why for name in found if name in layers and (why := without_statistics(layers[name]))}
    fitting = {name: own for name, own in found.items() if name not in unfit}
    for name, own in fitting.items():
        if name in layers:
            _check(layers[name], own)
    marked = Layers.of(_marked(layer, fitting.get(layer.name), biases) for layer in plan.layers)
    warnings = (*plan.warnings, *_warnings(calibration, found, layers, modules), *_unfit_warnings(unfit))
    return replace(plan, layers=marked, warnings=warnings)


def _unfit_warnings(reasons: Mapping[str, str]) -> Iterator[str]:
    for why in dict.fromkeys(reasons.values()):
        names = [name for name, own in reasons.items() if own == why]
        yield f"calibration: not used, since {why}: {listed(names)}"


def _marked(layer: LayerPlan, own: LayerSources | None, biases: Mapping[str, Tensor]) -> LayerPlan:
    if own is None:
        return layer
    bias = biases.get(layer.name + BIAS)
    has_bias = bias is not None and bias.shape == (layer.rows,)
    return replace(
        layer,
        calibrated=own.gram is not None,
        has_gradients=own.grad_gram is not None,
        corrects_bias=has_bias
        and layer.cut_bias is None
        and all(source is not None for source in (own.gram, own.mean, own.count)),
    )


def _unknown_layer(name: str, modules: Iterable[str]) -> str:
    similar = next((m for m in modules if m.endswith("." + name) or name.endswith("." + m)), None)
    hint = f" Is it meant for {quoted(similar)}?" if similar is not None else ""
    return (
        f"The calibration has a Gram matrix for {quoted(name)}, but the checkpoint has no such layer, nor "
        f"one for the others.{hint} Name it like the layer's weight, with .gram in place of .weight, or "
        "leave it out."
    )


def _check(layer: LayerPlan, own: LayerSources) -> None:
    """Check the dtypes and shapes of a layer's statistics."""
    name, inputs, outputs = quoted(layer.name), layer.columns, layer.rows
    if own.gram is not None:
        _check_dtype(f"The Gram matrix of {name}", own.gram, FLOATS)
        _check_gram(layer, own.gram.tensor)
    if own.grad_gram is not None:
        subject = f"The Gram matrix of gradients of {name}"
        _check_dtype(subject, own.grad_gram, FLOATS)
        _check_shape(subject, own.grad_gram, (outputs, outputs), f"the layer has {outputs} outputs")
        if own.count is None:
            raise CalibrationError(
                "no-count",
                f"{subject} needs the number of tokens that it was summed over, since the loss is one per "
                f"token. Store it as {quoted(layer.name + '.count')} [1], or leave out the gradients.",
            )
    if own.mean is not None:
        _check_dtype(f"The mean of {name}", own.mean, FLOATS)
        _check_shape(f"The mean of {name}", own.mean, (inputs,), f"the layer has {inputs} inputs")
    if own.count is not None:
        _check_dtype(f"The count of {name}", own.count, (*FLOATS, "I64"))
        _check_shape(f"The count of {name}", own.count, (1,), "it is one number of tokens")


def _check_dtype(subject: str, source: Source, dtypes: Collection[str]) -> None:
    if source.tensor.dtype not in dtypes:
        raise CalibrationError(
            "gram-dtype",
            f"{subject} is stored as {source.tensor.dtype}. Sum it in float32 or float64 and store it as F32 "
            "or F64.",
        )


def _check_shape(subject: str, source: Source, shape: tuple[int, ...], why: str) -> None:
    if source.tensor.shape != shape:
        raise CalibrationError(
            "gram-shape",
            f"{subject} is {list(source.tensor.shape)}, but {why}, so it must be {list(shape)}. Calibrate "
            "again, with the model of this checkpoint.",
        )


def _check_gram(layer: LayerPlan, tensor: TensorInfo) -> None:
    name, n = quoted(layer.name), layer.columns
    if tensor.shape == (n, n):
        return
    has_output_shape = tensor.shape == (layer.rows, layer.rows)
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
        f"The Gram matrix of {name} is {list(tensor.shape)}, but the layer has {n} inputs, so it must be "
        f"[{n}, {n}]. {hint}",
    )


def _warnings(
    calibration: Calibration, found: Collection[str], layers: Collection[str], modules: Collection[str]
) -> Iterator[str]:
    incomplete = [
        f"{name}.{kind}"
        for name, own in calibration.layers.items()
        if name not in found
        for kind, _ in own.given()
    ]
    if others := [*calibration.others, *incomplete]:
        yield f"calibration: not used, since not named `<module>.gram`: {listed(others)}"
    if unknown := [name for name in found if name not in modules]:
        yield f"calibration: not used, since the checkpoint has no such layer: {listed(unknown)}"
    if unused := [name for name in found if name in modules and name not in layers]:
        yield f"calibration: not used, since the layer is not selected: {listed(unused)}"
