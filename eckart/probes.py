"""Probes of a model's output: vectors whose gradients, seen at a layer, say which of its errors matter.

The gradients of yᵀε for ε ~ N(0, I) have the second moments JᵀJ of the Jacobian J of the output y. Those of
-log p(label), for labels drawn from the model's own softmax, have Fisher's information. Neither needs labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from eckart.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["output", "fisher"]
LOGITS = "logits"
# The fields of a model's output that are probed, the first that is there.
FIELDS = {
    "output": (LOGITS, "last_hidden_state", "pooler_output"),
    "fisher": (LOGITS,),
}
# Of logits [samples, tokens, classes]; with more dimensions the classes may stand elsewhere.
LOGITS_DIMS = 3


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Which output is probed, how, and how often; `output` takes it out of what the model returns."""

    kind: Kind
    number: int = 4
    seed: int = 0
    output: Callable[[object, object], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.kind not in FIELDS:
            raise InputError(f"sensitivity must be 'output', 'fisher' or None, not {self.kind!r}")
        if self.number < 1:
            raise InputError(f"probes must be at least 1, not {self.number}")

    def output_of(self, returned: object, batch: object) -> Tensor:
        """Return the tensor to probe."""
        if self.output is not None:
            chosen = self.output(returned, batch)
            if not _is_floating(chosen):
                raise InputError("output= must return a floating tensor of what the model returned")
            return chosen
        found = _field_of(returned, FIELDS[self.kind])
        if found is None:
            raise InputError(
                f"the model returns no {' or '.join(FIELDS[self.kind])}; give output=, a function of what it "
                "returns and of the batch that returns the tensor to probe"
            )
        if self.kind == "fisher" and found.ndim > LOGITS_DIMS:
            raise InputError(
                f"the logits are {list(found.shape)}; give output=, a function of what the model returns and "
                "of the batch that returns them as [..., classes]"
            )
        return found

    def draw(self, output: Tensor, counted: Tensor | None, generator: torch.Generator) -> Tensor:
        """Draw the gradient at an output; it is zero where a mask of the same shape says so."""
        if self.kind == "fisher":
            return _score(output.detach(), None if counted is None else counted[..., 0], generator)
        noise = torch.randn(output.shape, generator=generator, device=output.device)
        if counted is not None:
            noise[~counted] = 0
        return noise.to(output.dtype)


def _field_of(returned: object, fields: tuple[str, ...]) -> Tensor | None:
    """Return the first of these fields, or, from a model that names none, its first floating tensor."""
    if isinstance(returned, Mapping):
        named = (returned.get(field) for field in fields)
        return next((value for value in named if _is_floating(value)), None)
    values = returned if isinstance(returned, tuple | list) else (returned,)
    return next((value for value in values if _is_floating(value) and value.ndim), None)


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _score(logits: Tensor, counted: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return the gradient of -log p(label) at logits [..., classes] for labels drawn from their softmax."""
    if logits.ndim == 0 or logits.shape[-1] == 1:
        raise InputError("there is one logit and so no label to draw; use sensitivity='output'")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = wide.reshape(-1, logits.shape[-1]).softmax(-1)
    if counted is not None:
        # Padding may hold NaN, from which nothing can be drawn.
        rows[~counted.reshape(-1)] = 1 / rows.shape[-1]
    if not bool(torch.isfinite(rows).all()):
        raise InputError("the logits hold NaN or infinity; leave out that batch")
    labels = torch.multinomial(rows, 1, generator=generator)
    rows.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=rows.dtype))
    if counted is not None:
        rows[~counted.reshape(-1)] = 0
    return rows.reshape(logits.shape).to(logits.dtype)
