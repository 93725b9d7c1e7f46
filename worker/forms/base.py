"""The inputs and outputs of every form's implementation, and the table of all implementations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from schemas.planning.layer import LayerPlan
from schemas.rank_rule import RankRule
from worker.lowrank import (
    AutoRank,
    EnergyRank,
    ErrorRank,
    Factored,
    FactorRequest,
    Kept,
    Method,
    SolverCache,
    SpectralRank,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class FormInputs:
    """The inputs of a form that replaces one weight.

    Attributes
    ----------
    layer : LayerPlan
        The plan: the form and its options, the rank or rank rule, and which ranks are allowed.
    weight : Tensor [m, n]
        The weight as [outputs, inputs], on the device of the numerics.
    statistics : Statistics or None
        Of the layer's inputs and of the gradients at its outputs; None if the layer is not calibrated.
    correct_bias : bool
        Whether the bias takes up (W - Ŵ)μ (see `worker.lowrank.FactorRequest`).
    dtype : torch.dtype
        The dtype of the tensors to return.
    seed : int
        ≥ 0; seed of the sampling selectors and of the random Krylov space.
    num_vectors : int or None
        Number of singular vectors that a decomposition must have, so that later jobs can use it too; None:
        as many as this rank needs.
    cached : SolverCache or None
        Decompositions from earlier jobs; new ones are added.
    """

    layer: LayerPlan
    weight: torch.Tensor
    statistics: Statistics | None
    dtype: torch.dtype
    seed: int
    num_vectors: int | None = None
    cached: SolverCache | None = None
    correct_bias: bool = False

    def request(self, method: Method) -> FactorRequest:
        """Return the request for `worker.lowrank.factor` with this method."""
        return FactorRequest(
            method=method,
            rank=self._rank(),
            max_rank=self.layer.largest_rank,
            dtype=self.dtype,
            seed=self.seed,
            align=self.layer.align,
            min_rank=self.layer.min_rank,
            num_vectors=self.num_vectors,
            statistics=self.statistics,
            correct_bias=self.correct_bias,
        )

    def _rank(self) -> int | SpectralRank:
        rank = self.layer.rank
        if isinstance(rank, int):
            return rank
        assert isinstance(rank, RankRule)
        if rank.energy is not None:
            return EnergyRank(rank.energy)
        if rank.auto is not None:
            return AutoRank(rank.auto)
        assert rank.error is not None
        return ErrorRank(rank.error)


@dataclass(frozen=True)
class FormImplementation:
    """How one form is computed, and how the weight is reconstructed.

    Attributes
    ----------
    compute : callable of FormInputs
        Returns a `Factored`: its tensors are those of the form's `stored_matrices` in their order, each as
        [outputs, inputs], and its errors are measured on these tensors. Returns a `Kept` with a reason if the
        weight must stay dense; a numerical failure is a `Kept`, not an exception.
    to_dense : callable of a sequence of Tensor
        Returns the approximation [m, n] of the weight that these tensors represent.
    decomposed : callable of FormInputs
        Returns the matrix [m, n] whose singular values say how far off a rank is; or a `Kept` with a reason.
    spectrum : callable of FormInputs, or None
        Returns what those values would be, float64 [p], where no matrix has them: the squares of those after
        the first k sum up to the squared error at rank k, or nearly so.
    """

    compute: Callable[[FormInputs], Factored | Kept]
    to_dense: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    decomposed: Callable[[FormInputs], torch.Tensor | Kept]
    spectrum: Callable[[FormInputs], torch.Tensor | Kept] | None = None


def weight_itself(inputs: FormInputs) -> torch.Tensor:
    """Return the weight, of which most forms store factors."""
    return inputs.weight


FORM_IMPLEMENTATIONS: dict[str, FormImplementation] = {}
Compute = Callable[[FormInputs], Factored | Kept]


def register(
    name: str,
    *,
    to_dense: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    decomposed: Callable[[FormInputs], torch.Tensor | Kept] = weight_itself,
    spectrum: Callable[[FormInputs], torch.Tensor | Kept] | None = None,
) -> Callable[[Compute], Compute]:
    """Register the decorated function as the implementation of the form `name`."""

    def add(compute: Compute) -> Compute:
        FORM_IMPLEMENTATIONS[name] = FormImplementation(compute, to_dense, decomposed, spectrum)
        return compute

    return add


def multiply_chain(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiply the factors of a chain.

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
