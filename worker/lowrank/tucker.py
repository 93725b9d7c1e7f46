"""A kernel as a smaller kernel between two mixes of channels: Tucker's decomposition of its channel modes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from schemas.spectrum import smallest_rank_within
from schemas.spectrum_rank import AutoRule, auto_rank
from worker.lowrank.kernel import Kernels, leading_vectors, squares_after

# The alternation ends once a sweep lowers the squared error by less than this share of ‖W‖_F².
TOLERANCE = 1e-10
MOST_SWEEPS = 100
# From a rank to the ranks of outputs and inputs.
Ranks = Callable[[int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Tucker2:
    """W[o, i] ≈ Σ U[o, s]·G[s, r]·V[i, r] with orthonormal U and V, and the core G [s, r, K].

    By higher-order orthogonal iteration (De Lathauwer, De Moor and Vandewalle 2000), begun at the truncated
    higher-order SVD. Each half of a sweep is a truncated SVD, so that the error never rises.
    """

    kernel: torch.Tensor  # [o, i, K]
    ranks: Ranks

    @cached_property
    def _modes(self) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """All left singular vectors and squared values of [o, i·K] and of [i, o·K]."""
        outputs, inputs, _ = self.kernel.shape
        by_inputs = self.kernel.transpose(0, 1)
        return (
            leading_vectors(self.kernel.flatten(1), outputs),
            leading_vectors(by_inputs.flatten(1), inputs),
        )

    @cached_property
    def estimate(self) -> torch.Tensor:
        """Values [p] whose squares after the first k sum up to the error of the truncated HOSVD at rank k.

        The alternation only improves on it.
        """
        (left, _), (right, _) = self._modes
        core = torch.einsum("oik,os,ir->srk", self.kernel, left, right)
        held = core.square().sum(2).cumsum(0).cumsum(1)  # [o, i]: the energy of each leading block
        kept = [0.0]
        for rank in range(1, max(held.shape) + 1):
            outputs, inputs = self.ranks(rank)
            kept.append(max(kept[-1], float(held[outputs - 1, inputs - 1])))
        gained = [after - before for before, after in pairwise(kept)]
        return torch.tensor(gained, dtype=torch.float64).sqrt()

    @property
    def spectrum(self) -> None:
        """The best possible error is not known."""
        return

    def least_rank(self, loss: float) -> int:
        """Return the least rank at which neither mode alone loses more."""
        needs = [
            smallest_rank_within(squares_after(squares.tolist()), loss) or len(squares)
            for _, squares in self._modes
        ]
        return self._rank_for(needs[0], needs[1])

    def auto_rank(self, rule: AutoRule) -> int:
        """Return the least rank with room for what stands out in both modes."""
        outputs, inputs, elements = self.kernel.shape
        shapes = ((outputs, inputs * elements), (inputs, outputs * elements))
        needs = [
            auto_rank(rule, squares.sqrt()[: min(shape)].tolist(), shape) or 0
            for (_, squares), shape in zip(self._modes, shapes, strict=True)
        ]
        return self._rank_for(needs[0], needs[1]) if all(needs) else 0

    def _rank_for(self, outputs: int, inputs: int) -> int:
        """Return the least rank whose two ranks are no less than these, as far as there are such."""
        most = max(self.kernel.shape[:2])
        fits = (self.ranks(rank) for rank in range(1, most))
        return next((n for n, own in enumerate(fits, 1) if own[0] >= outputs and own[1] >= inputs), most)

    def factors(self, rank: int) -> Kernels:
        """Return Vᵀ [r, i, 1], G [s, r, K] and U [o, s, 1]."""
        outputs, inputs = self.ranks(rank)
        (left, _), (right, _) = self._modes
        left, right = left[:, :outputs], right[:, :inputs]
        total, held = float(self.kernel.square().sum()), -math.inf
        for _ in range(MOST_SWEEPS):
            narrow = torch.einsum("oik,ir->ork", self.kernel, right)  # [o, r, K]
            left, _ = leading_vectors(narrow.flatten(1), outputs)
            narrow = torch.einsum("oik,os->isk", self.kernel, left)  # [i, s, K]
            right, squares = leading_vectors(narrow.flatten(1), inputs)
            before, held = held, float(squares[:inputs].sum())
            if held - before <= TOLERANCE * total:
                break
        core = torch.einsum("isk,ir->srk", narrow, right)
        return right.mT[:, :, None], core, left[:, :, None]

    def join(self, factors: Kernels) -> torch.Tensor:
        first, core, last = factors
        return torch.einsum("ri,srk,os->oik", first[:, :, 0], core, last[:, :, 0]).flatten(1)


@dataclass(frozen=True)
class Tucker2Method:
    """Fewer channels before and after a smaller kernel; a :class:`worker.lowrank.kernel.KernelMethod`."""

    ranks: Ranks

    def problem(self, kernel: torch.Tensor, *, seed: int) -> Tucker2:  # noqa: ARG002 - nothing is drawn
        return Tucker2(kernel, self.ranks)
