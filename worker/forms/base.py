"""What every form gets and returns at work, and what the low-rank forms share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from schemas.planning.layer import LayerPlan
from schemas.spec import RankRule
from worker.lowrank import EnergyRank, ErrorRank, Factored, FactorRequest, Kept, Method, SolverCache


@dataclass(frozen=True, kw_only=True)
class FormInputs:
    """
    What a form needs to replace one weight.

    Attributes
    ----------
    layer : LayerPlan
        The plan: the form and its options, the rank or rank rule, and which ranks are allowed.
    weight : Tensor [m, n]
        The weight as a map [outputs, inputs], on the device where the work is done.
    gram : Tensor [n, n] or None
        XXᵀ of the layer's inputs X, where the layer is calibrated.
    dtype : torch.dtype
        The dtype of the tensors to return.
    seed : int
        ≥ 0; seeds whatever is sampled.
    num_vectors : int or None
        How many singular vectors a decomposition must hold, so that later jobs can use it too; None: as
        many as this rank needs.
    cached : SolverCache or None
        Decompositions from earlier jobs; new ones are put there.
    """

    layer: LayerPlan
    weight: torch.Tensor
    gram: torch.Tensor | None
    dtype: torch.dtype
    seed: int
    num_vectors: int | None = None
    cached: SolverCache | None = None

    def request(self, method: Method) -> FactorRequest:
        """Return what to ask `worker.lowrank.factor` for, by this method."""
        return FactorRequest(
            method=method,
            rank=self._rank(),
            max_rank=self.layer.break_even_rank,
            dtype=self.dtype,
            seed=self.seed,
            align=self.layer.align,
            min_rank=self.layer.min_rank,
            num_vectors=self.num_vectors,
            gram=self.gram,
        )

    def _rank(self) -> int | EnergyRank | ErrorRank:
        rank = self.layer.rank
        if isinstance(rank, int):
            return rank
        assert isinstance(rank, RankRule)
        if rank.energy is not None:
            return EnergyRank(rank.energy)
        assert rank.error is not None
        return ErrorRank(rank.error)


@dataclass(frozen=True)
class Implementation:
    """
    How one form is computed, and how it is undone.

    Attributes
    ----------
    compute : callable of FormInputs
        Returns a `Factored`, whose tensors are those of the form's `parts` in their order, as maps
        [outputs, inputs], and whose errors are measured on these tensors; or a `Kept` with the reason.
        Numerical trouble is a `Kept`, never an exception.
    expand : callable of a sequence of Tensor
        Returns the approximation [m, n] that these tensors stand for.
    """

    compute: Callable[[FormInputs], Factored | Kept]
    expand: Callable[[Sequence[torch.Tensor]], torch.Tensor]


IMPLEMENTATIONS: dict[str, Implementation] = {}
Compute = Callable[[FormInputs], Factored | Kept]


def register(
    name: str, *, expand: Callable[[Sequence[torch.Tensor]], torch.Tensor]
) -> Callable[[Compute], Compute]:
    """Register the decorated function as the implementation of the form `name`."""

    def add(compute: Compute) -> Compute:
        IMPLEMENTATIONS[name] = Implementation(compute, expand)
        return compute

    return add


def multiply_chain(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Multiply the factors of a chain.

    Parameters
    ----------
    tensors : sequence of Tensor
        At least one, the input side first: [k, n], maybe [k, k], [m, k].

    Returns
    -------
    Tensor [m, n]
        Their product, in their dtype.
    """
    product = tensors[0]  # [k, n]
    for factor in tensors[1:]:
        product = factor @ product  # [k, n], at last [m, n]
    return product
