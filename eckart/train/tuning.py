"""Fine-tune what a job has replaced, while the rest of the model stays as it is."""

from __future__ import annotations

import operator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from eckart.batches import call_model
from eckart.errors import InputError
from eckart.torch.layers import Compressed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn


def finetune(
    model: nn.Module,
    batches: Iterable[object],
    loss: Callable[[object, object], Tensor],
    *,
    steps: int | None = None,
    rate: float = 1e-4,
    weight_decay: float = 0.0,
) -> list[float]:
    """Train the compressed layers of a model that `load_compressed` has filled; return the loss of each step.

    `loss` is called with what the model returns and the batch. A batch is a mapping (passed as keywords), a
    tuple or list (passed in order) or one argument. `batches` are gone through once, at most to `steps`.
    The `rate` of AdamW falls to zero along half a cosine where the number of steps is known. Only factors
    and the biases of compressed layers change; integers and all other layers do not. Afterwards the model
    has the mode and the frozen parameters that it had, and `save_compressed` stores it. No step is taken on a
    loss that is not finite: that is an `InputError`.
    """
    parameters = _trained(model)
    if not parameters:
        raise InputError("the model has no compressed layer that can be trained; load one by load_compressed")
    total = operator.length_hint(batches) if steps is None else steps
    losses: list[float] = []
    with _training_only(model, parameters):
        descent = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, total) if total else None
        for batch in batches:
            if steps is not None and len(losses) == steps:
                break
            descent.zero_grad()
            value = loss(call_model(model, batch), batch)
            if not bool(value.isfinite()):
                raise InputError(f"the loss of step {len(losses) + 1} is {value.item()}; lower the rate")
            torch.autograd.backward(value)
            descent.step()
            if schedule is not None:
                schedule.step()
            losses.append(value.item())
    if not losses and steps != 0:
        raise InputError("there are no batches; give at least one, and a list if you use them again")
    return losses


def _trained(model: nn.Module) -> list[nn.Parameter]:
    compressed = (module for module in model.modules() if isinstance(module, Compressed))
    found = {id(one): one for module in compressed for one in module.parameters() if one.is_floating_point()}
    return list(found.values())


@contextmanager
def _training_only(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Put a model into training mode with these parameters alone, and back."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        for parameter in model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        model.train()
        stack.enter_context(torch.enable_grad())
        yield
