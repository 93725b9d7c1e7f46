"""What is known of a layer's inputs and of the gradients at its outputs: it says which errors matter."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch

from worker.lowrank.feedback import Feedback


@dataclass(frozen=True, eq=False, kw_only=True)
class Statistics:
    """Sums over the tokens of a calibration, for a layer with n inputs and m outputs.

    Attributes
    ----------
    gram : Tensor [n, n] or None
        G = Σxxᵀ of the inputs x.
    grad_gram : Tensor [m, m] or None
        F = Σggᵀ of the gradients g at the outputs.
    mean : Tensor [n] or None
        μ, the mean of x.
    count : float or None
        N, the number of tokens.
    """

    gram: torch.Tensor | None = None
    grad_gram: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    count: float | None = None

    @property
    def weighs_errors(self) -> bool:
        """Whether there is a matrix to weigh errors by, of the inputs or of the gradients."""
        return self.gram is not None or self.grad_gram is not None

    @cached_property
    def feedback(self) -> Feedback | None:
        """What rounding needs of G, centred where there is a mean; None without G or where G is zero."""
        if self.gram is None:
            return None
        if self.mean is None or self.count is None:
            return Feedback.of(self.gram)
        return Feedback.of(self.gram, (self.mean, self.count))

    def to(self, device: torch.device) -> Self:
        """Return the statistics on a device; the same object where they are there already."""
        known = [each for each in (self.gram, self.grad_gram, self.mean) if each is not None]
        if all(each.device == device for each in known):
            return self
        gram, grad_gram, mean = (
            None if each is None else each.to(device) for each in (self.gram, self.grad_gram, self.mean)
        )
        return replace(self, gram=gram, grad_gram=grad_gram, mean=mean)
