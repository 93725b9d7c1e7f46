"""Models that were built on the meta device: their tensors have shapes, but no values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eckart.checkpoint import listed
from eckart.errors import LoadError

if TYPE_CHECKING:
    from eckart.torch.matching import Matching, ModelState


def check_all_known(model: nn.Module, state: ModelState, matching: Matching) -> None:
    """Refuse a model on the meta device with tensors that the file does not fill: they would be arbitrary."""
    filled = {matching.places[name].tensor for name in (*matching.given, *matching.products)}
    empty = [name for name in state.meta if name in matching.places]
    unknown = [name for name in empty if matching.places[name].tensor not in filled]
    unknown += [name for name, buffer in state.unsaved_buffers.items() if buffer.is_meta]
    unknown += [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_meta
    ]
    if unknown:
        hint = ", or let from_pretrained load the folder after `import eckart.transformers`"
        raise LoadError(
            f"the model is on the meta device, and the file does not hold {listed(unknown)}, which only the "
            "model's own code can compute; build the model outside of torch.device('meta')"
            + (hint if state.is_pretrained else "")
        )


def give_memory(model: nn.Module) -> None:
    """Replace what is on the meta device by zeros beside the other tensors; what was one tensor stays one."""
    real = (tensor.device for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta)
    device = next(real, torch.device("cpu"))
    # The old ones are kept, since the id of one that is gone may be given again.
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for kind in ("_parameters", "_buffers"):
            for name, old in vars(module)[kind].items():
                if old is None or not old.is_meta:
                    continue
                if id(old) not in made:
                    made[id(old)] = old, _zeros(old, device)
                vars(module)[kind][name] = made[id(old)][1]


def _zeros(old: Tensor, device: torch.device) -> Tensor:
    zeros = torch.zeros_like(old, device=device)
    return nn.Parameter(zeros, old.requires_grad) if isinstance(old, nn.Parameter) else zeros
