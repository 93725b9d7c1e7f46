"""Penalties on the singular values of a model's weights, to add to the loss while it is trained."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.torch.layers import Compressed, LowRank, matrix_of
from eckart.train.nuclear import nuclear_norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Kind = Literal["nuclear", "hoyer", "factors"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Compressed)


class LowRankPenalty:
    """A penalty that makes weights nearly low in rank, so that a later job loses less.

    Call it in each step, and add the result, times a factor of your choice, to the loss. `kind` says what it
    is, summed over the layers W with singular values s:

    - "nuclear": Σs. It shrinks all singular values by the same step, so the small ones vanish.
    - "hoyer": (Σs)² / Σs², which lies between 1 and the rank and is the same for c·W. It makes few of them
      large and does not shrink the weight (Yang et al., 2020, "Learning low-rank deep neural networks via
      singular vector orthogonality regularization and singular value sparsification").
    - "factors": (‖A‖² + ‖B‖²) / 2, for layers that are stored as two factors, as `load_compressed` makes
      them. It is never below the nuclear norm of B·A, equals it at the minimum, and costs no decomposition
      (Srebro, Rennie and Jaakkola, 2004).

    "nuclear" and "hoyer" take linear layers and convolutions, these as matrices [outputs, inputs · kernel].
    `include` and `exclude` are shell patterns for the names of layers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: Kind = "nuclear",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
        self.kind = kind
        kinds = LowRank if kind == "factors" else MATRICES
        self._layers = {
            name: module
            for name, module in _outermost(model)
            if (isinstance(module, kinds) or (kind != "factors" and _is_conv1d(module)))
            and any(fnmatchcase(name, pattern) for pattern in include)
            and not any(fnmatchcase(name, pattern) for pattern in exclude)
        }
        if not self._layers:
            what = "layer of factors" if kind == "factors" else "linear layer or convolution"
            raise InputError(f"the model has no {what} that is included")

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that are penalized."""
        return tuple(self._layers)

    def __call__(self) -> Tensor:
        """Return the sum over all layers, differentiable."""
        return torch.stack(list(self.by_layer().values())).sum()

    def by_layer(self) -> Mapping[str, Tensor]:
        """Return the penalty of each layer."""
        return {name: self._penalty(module) for name, module in self._layers.items()}

    def _penalty(self, module: nn.Module) -> Tensor:
        if self.kind == "factors":
            assert isinstance(module, LowRank)
            return torch.stack([matrix_of(part).square().sum() for part in module]).sum() / 2
        weight = module.weight
        assert isinstance(weight, Tensor)
        matrix = weight.flatten(1)
        norm = nuclear_norm(matrix)
        if self.kind == "nuclear":
            return norm
        # A weight of zeros has no singular value at all.
        return norm.square() / matrix.square().sum().clamp(min=torch.finfo(matrix.dtype).tiny)


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules with their names, but not the factors inside of a compressed layer."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Compressed):
            inside.update(id(part) for part in module.children())
        if id(module) not in inside:
            yield name, module


def _is_conv1d(module: nn.Module) -> bool:
    """Tell GPT-2's linear layer, which is of no class of torch."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2
