"""One pass of a model over batches, in eval mode, while hooks collect the statistics of its layers."""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.gram_collector import GramCollector
from eckart.token_mask import following_masks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from eckart.progress import ProgressCallback
    from eckart.sums import Moments, SumStore


@dataclass(frozen=True, eq=False)
class Collected:
    """The sums of each layer; those that layers share are one object."""

    moments: Mapping[str, Moments]
    grad_grams: Mapping[str, Tensor] = field(default_factory=dict)


def linear_layers(model: nn.Module, chosen: Callable[[str], bool]) -> dict[str, nn.Module]:
    """Return the linear layers whose weight is no other module's, as a head's may be the embedding's."""
    uses = Counter(
        id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False)
    )
    layers = {
        name: module
        for name, module in model.named_modules()
        if _is_linear(module) and uses[id(module.weight)] == 1 and chosen(name)
    }
    if not layers:
        raise InputError("the model has no Linear or Conv1D layer that is included")
    return layers


def collect(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[object],
    store: SumStore,
    progress: ProgressCallback,
) -> Collected:
    """Run the model on every batch; afterwards it is as it was."""
    with _in_eval_mode(model), GramCollector(layers, store) as inputs:
        count, total, has_padding = 0, operator.length_hint(batches), False
        for batch in batches:
            progress(count, total, f"calibrate batch {count + 1}")
            with torch.no_grad(), following_masks(model, batch) as is_padded:
                _call(model, batch)
            inputs.end_batch()
            has_padding |= is_padded
            count += 1
        progress(count, count, f"calibrate {count} batches")
        if count == 0:
            raise InputError("there are no batches; give at least one, and a list if you use them again")
        if has_padding and not inputs.followed_masks:
            warnings.warn(
                "padding was counted: the masks could not be followed to any layer, as in a compiled model",
                stacklevel=3,
            )
        return Collected(inputs.finish())


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
    return isinstance(module, nn.Linear) or is_conv1d


def _call(model: nn.Module, batch: object) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)
