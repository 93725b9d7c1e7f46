"""One pass of a model over batches, in eval mode, while hooks collect the statistics of its layers."""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eckart.batches import call_model
from eckart.checkpoint import listed
from eckart.errors import InputError
from eckart.gradients import GradientCollector
from eckart.gram_collector import GramCollector
from eckart.token_mask import following_masks
from eckart.unfolding import is_convolution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from eckart.probes import Probes
    from eckart.progress import ProgressCallback
    from eckart.sums import Moments, SumStore


@dataclass(frozen=True, eq=False)
class Collected:
    """The sums of each layer; those that layers share are one object."""

    moments: Mapping[str, Moments]
    grad_grams: Mapping[str, Tensor] = field(default_factory=dict)


def linear_layers(model: nn.Module, chosen: Callable[[str], bool]) -> dict[str, nn.Module]:
    """Return the layers whose weight is no other module's, as a head's may be the embedding's.

    They are linear layers, and convolutions without groups.
    """
    uses = Counter(
        id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False)
    )
    layers = {
        name: module
        for name, module in model.named_modules()
        if _is_linear(module) and uses[id(module.weight)] == 1 and chosen(name)
    }
    if not layers:
        raise InputError("the model has no Linear, Conv1D or convolution that is included")
    return layers


def collect(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[object],
    store: SumStore,
    progress: ProgressCallback,
    probes: Probes | None = None,
) -> Collected:
    """Run the model on every batch, and backwards once for each probe; afterwards it is as it was."""
    with ExitStack() as stack:
        stack.enter_context(_in_eval_mode(model))
        inputs = stack.enter_context(GramCollector(layers, store))
        gradients = None
        if probes is not None:
            gradients = stack.enter_context(GradientCollector(model, layers, probes, store))
        _run(model, batches, inputs, gradients, progress)
        moments = inputs.finish()
        if gradients is None:
            return Collected(moments)
        grams = {name: gram for name, gram in gradients.finish().items() if name in moments}
        if without := [name for name in moments if name not in grams]:
            warnings.warn(
                f"no gradient came to {listed(without)}, so there is no grad_gram: the output that is probed "
                "does not depend on them; leave them out, or choose an output that does",
                stacklevel=3,
            )
        return Collected(moments, grams)


def _run(
    model: nn.Module,
    batches: Iterable[object],
    inputs: GramCollector,
    gradients: GradientCollector | None,
    progress: ProgressCallback,
) -> None:
    count, total, has_padding = 0, operator.length_hint(batches), False
    for batch in batches:
        progress(count, total, f"calibrate batch {count + 1}")
        with _gradients(on=gradients is not None):
            with following_masks(model, batch) as is_padded:
                returned = call_model(model, batch)
                output = None if gradients is None else gradients.output_of(returned, batch)
            del returned  # Only what leads to the output has to stay for the gradients.
            inputs.end_batch()
            if gradients is not None and output is not None:
                inputs.paused = True
                gradients.backward(output)
                inputs.paused = False
        has_padding |= is_padded
        count += 1
    if count == 0:
        raise InputError("there are no batches; give at least one, and a list if you use them again")
    progress(count, count, f"calibrate {count} batches")
    if has_padding and not inputs.followed_masks:
        warnings.warn(
            "padding was counted: the masks could not be followed to any layer, as in a compiled model",
            stacklevel=4,
        )


@contextmanager
def _gradients(*, on: bool) -> Iterator[None]:
    """Turn gradients on or off, whatever the caller has chosen."""
    if on:
        with torch.inference_mode(mode=False), torch.enable_grad():
            yield
    else:
        with torch.no_grad():
            yield


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        yield


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    is_conv1d = type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2
    return isinstance(module, nn.Linear) or is_conv1d or is_convolution(module)
