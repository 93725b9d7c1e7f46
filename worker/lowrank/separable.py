"""A kernel as some filters for each of its inputs, and a mix of all of them."""

from dataclasses import dataclass
from functools import cached_property

import torch

from schemas.spectrum import smallest_rank_within, squared_tails
from schemas.spectrum_rank import AutoRule, auto_rank
from worker.lowrank.kernel import Kernels


@dataclass(frozen=True, eq=False)
class Separable:
    """W[:, c, :] ≈ Σ_j p_cj d_cjᵀ for each input c, with as many filters d for each.

    The slices of the inputs do not share anything, so that the truncated SVD of each [o, K] is the best in
    least squares (Guo et al. 2018, "Network decoupling").
    """

    kernel: torch.Tensor  # [o, i, K]

    @cached_property
    def _decomposed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U [i, o, p], the singular values [i, p] and Vᵀ [i, p, K] of the slices."""
        left, values, right = torch.linalg.svd(self.kernel.transpose(0, 1), full_matrices=False)
        return left, values, right

    @cached_property
    def spectrum(self) -> torch.Tensor:
        """(Σ_c σ²_cj)^½ [p]: the squares of those after the first r sum up to the squared error at rank r."""
        values: torch.Tensor = torch.linalg.vector_norm(self._decomposed[1], dim=0)
        return values.cpu()

    def least_rank(self, loss: float) -> int:
        return smallest_rank_within(squared_tails(self.spectrum.tolist()), loss) or len(self.spectrum)

    def auto_rank(self, rule: AutoRule) -> int:
        """Return the most that stand out in the slice of any input."""
        shape = (self.kernel.shape[0], self.kernel.shape[2])
        return max(auto_rank(rule, values, shape) or 0 for values in self._decomposed[1].tolist())

    def factors(self, rank: int) -> Kernels:
        """Return filters [i, r, K] and their mix [o, i, r], the singular values split evenly."""
        left, values, right = self._decomposed
        roots = values[:, :rank].sqrt()  # [i, r]
        filters = roots[:, :, None] * right[:, :rank]  # [i, r, K]
        mix = (left[:, :, :rank] * roots[:, None]).transpose(0, 1)  # [o, i, r]
        largest = filters.gather(2, filters.abs().argmax(2, keepdim=True))[:, :, 0]  # [i, r]
        signs = torch.where(largest < 0, -1.0, 1.0).to(filters.dtype)
        return signs[:, :, None] * filters, mix * signs

    def join(self, factors: Kernels) -> torch.Tensor:
        filters, mix = factors
        return torch.einsum("oir,irk->oik", mix, filters).flatten(1)


@dataclass(frozen=True)
class SeparableMethod:
    """Depthwise filters and a pointwise mix; a :class:`worker.lowrank.kernel.KernelMethod`."""

    def problem(self, kernel: torch.Tensor, *, seed: int) -> Separable:  # noqa: ARG002 - nothing is drawn
        return Separable(kernel)
