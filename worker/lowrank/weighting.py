"""The error that statistics weigh, tr((W - Ŵ)ᵀF(W - Ŵ)G): as a plain norm, and its measurement."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from worker.lowrank.blas import product
from worker.lowrank.error import Residual, as_pair, check_chain, product_rows, row_blocks
from worker.lowrank.gram import RIDGES, ScaledGram
from worker.lowrank.scale import finite_exponent, times_power
from worker.lowrank.statistics import Statistics

# Some rows of a matrix [m, n] in float64, all of them one block after the other.
Rows = Callable[[slice], torch.Tensor]


@dataclass(frozen=True)
class WeightedSums:
    """What weighing a matrix E [m, n] gives.

    Attributes
    ----------
    objective : float
        tr(EᵀFEG), per token where N is known, or with the identity in place of a matrix that is not there;
        G centered where that was asked for.
    outputs : float or None
        tr(EGEᵀ) = ‖EX‖_F², G centered where that was asked for; None without G.
    loss : float or None
        tr(EᵀFEG)/N, G centered where that was asked for; None without F, G or N.
    shift : Tensor [m] or None
        Eμ in float64, where G is centered.
    """

    objective: float
    outputs: float | None
    loss: float | None
    shift: torch.Tensor | None


@dataclass(frozen=True)
class WeightedError:
    """The weighted error of stored factors; see :class:`WeightedSums` for what each is."""

    objective: Residual
    outputs: Residual | None
    loss: float | None
    shift: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Weighting:
    """The statistics of a layer in the form that is computed with.

    Attributes
    ----------
    inputs : ScaledGram or None
        G, centered if `mean` is there.
    outputs : ScaledGram or None
        F, or F/N where G and N are there too: what is minimized is then the loss per token.
    count : float or None
        N.
    mean : Tensor [n] or None
        μ in float64, where G is centered.
    """

    inputs: ScaledGram | None
    outputs: ScaledGram | None
    count: float | None = None
    mean: torch.Tensor | None = None

    @classmethod
    def of(cls, statistics: Statistics, device: torch.device, *, centered: bool = False) -> Self:
        """Prepare statistics of which at least one matrix is there.

        Parameters
        ----------
        statistics : Statistics
            In which no fault was found (see :mod:`worker.lowrank.faults`).
        device : torch.device
            Where to compute.
        centered : bool
            Whether G - Nμμᵀ takes the place of G, since the bias will be corrected. Without a mean or a count
            nothing is centered.
        """
        gram, grad_gram = statistics.gram, statistics.grad_gram
        mean, count = (statistics.mean, statistics.count) if centered else (None, None)
        center = None if gram is None or mean is None or count is None else (mean, count)
        outputs = None if grad_gram is None else ScaledGram.of(grad_gram.to(device))
        if outputs is not None and gram is not None and statistics.count is not None:
            outputs = outputs.divided(statistics.count)
        return cls(
            inputs=None if gram is None else ScaledGram.of(gram.to(device), center=center),
            outputs=outputs,
            count=statistics.count,
            mean=None if center is None else center[0].to(device, torch.float64),
        )

    @property
    def ridge(self) -> float:
        """The larger ridge of the two sides."""
        return max(side.ridge for side in (self.inputs, self.outputs) if side is not None)

    @property
    def weighs_outputs_alone(self) -> bool:
        """Whether the error of the outputs itself is what is minimized."""
        return self.outputs is None and self.inputs is not None

    @property
    def in_float32(self) -> bool:
        """Whether a matrix came in float32, so that its rounding is larger than that of any solver."""
        return self.ridge > RIDGES[torch.float64]

    def scaled(self, matrix: torch.Tensor) -> torch.Tensor:
        """Multiply a float64 matrix [m, n] by the sizes of outputs and inputs in place, and return it."""
        if self.outputs is not None:
            matrix.mul_(self.outputs.scale[:, None])
        return matrix if self.inputs is None else matrix.mul_(self.inputs.scale)

    def weigh_outputs(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return TᵀM for F = TTᵀ and a matrix M [m, j]; M itself without F."""
        return matrix if self.outputs is None else self.outputs.weigh(matrix)

    def weigh_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Return MS for G = SSᵀ and a matrix M [j, n]; M itself without G."""
        return rows if self.inputs is None else self.inputs.weigh(rows.mT).mT.contiguous()

    def times_gram(self, rows: torch.Tensor) -> torch.Tensor:
        """Return MG of a float64 matrix M [j, n]; M itself without G."""
        if self.inputs is None:
            return rows
        scale = self.inputs.scale
        return product(rows * scale, self.inputs.core).mul_(scale)

    def sums(self, rows: Rows, shape: Sequence[int]) -> WeightedSums:
        """Weigh a matrix E [m, n] whose rows are given in blocks; all in float64."""
        blocks = list(row_blocks(*shape))
        whole = None
        if self.outputs is not None:
            whole = self.outputs.core.new_empty(*shape)
            for block in blocks:
                whole[block] = rows(block)
        by_inputs = both = 0.0
        shift = []
        for block in blocks:
            error = rows(block) if whole is None else whole[block]  # E [rows, n]
            if self.mean is not None:
                shift.append(error @ self.mean)
            left = error if whole is None else self._output_weighted(whole, block)  # F E
            right = self.times_gram(error)  # E G
            both += _inner(left, right)
            by_inputs += _inner(error, right)
        known = self.inputs is not None and self.outputs is not None and self.count is not None
        return WeightedSums(
            objective=max(both, 0.0),
            outputs=None if self.inputs is None else max(by_inputs, 0.0),
            loss=max(both, 0.0) if known else None,
            shift=torch.cat(shift) if shift else None,
        )

    def _output_weighted(self, whole: torch.Tensor, block: slice) -> torch.Tensor:
        """Return some rows of FE for E [m, n]."""
        assert self.outputs is not None
        scale = self.outputs.scale
        weights = self.outputs.core[block] * scale * scale[block, None]
        return product(weights, whole)


def _inner(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.linalg.vecdot(left, right).sum())


def sums_of_weight(weight: torch.Tensor, exponent: int, weighting: Weighting) -> WeightedSums:
    """Weigh 2^-exponent · W itself."""

    def rows(block: slice) -> torch.Tensor:
        return times_power(weight[block].to(torch.float64), -exponent)

    return weighting.sums(rows, weight.shape)


def measure_weighted(
    weight: torch.Tensor,
    factors: Sequence[torch.Tensor],
    exponent: int,
    weighting: Weighting,
    *,
    whole: WeightedSums | None = None,
) -> WeightedError:
    """Return the weighted error of factors exactly as they are stored, measured in float64.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; finite, any real floating dtype.
    factors : sequence of Tensor
        As for :func:`worker.lowrank.relative_error`.
    exponent : int
        The scale of the weight.
    weighting : Weighting
        Of its layer.
    whole : WeightedSums or None
        What :func:`sums_of_weight` gives, where that is known already.

    Returns
    -------
    WeightedError
        Residuals of 2^-exponent · W; the loss and the shift are those of W itself. No square is below 0,
        though rounding in F and G could make it so.
    """
    whole = sums_of_weight(weight, exponent, weighting) if whole is None else whole
    pair = as_pair([factor.to(torch.float64) for factor in factors])  # [j, n], [m, j]

    def rows(block: slice) -> torch.Tensor:
        scaled = times_power(weight[block].to(torch.float64), -exponent)
        return scaled.sub_(product_rows(pair, block, exponent))

    found = weighting.sums(rows, weight.shape)
    outputs = None
    if found.outputs is not None and whole.outputs is not None:
        outputs = Residual(found.outputs, whole.outputs, exponent)
    return WeightedError(
        objective=Residual(found.objective, whole.objective, exponent),
        outputs=outputs,
        loss=None if found.loss is None else Residual(found.loss, 0.0, exponent).squared_error,
        shift=None if found.shift is None else times_power(found.shift, exponent),
    )


def weighted_error(
    weight: torch.Tensor, factors: Sequence[torch.Tensor], statistics: Statistics, *, centered: bool
) -> WeightedError:
    """Return the weighted error of factors exactly as stored; see :func:`measure_weighted`.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; finite, any real floating dtype.
    factors : sequence of Tensor
        As for :func:`worker.lowrank.relative_error`.
    statistics : Statistics
        With at least one matrix.
    centered : bool
        Whether the bias takes up (W - Ŵ)μ.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or the weight is not finite.
    """
    check_chain(weight, factors)
    exponent = finite_exponent(weight.detach())
    (m, n), gram, grad_gram = weight.shape, statistics.gram, statistics.grad_gram
    if gram is not None and tuple(gram.shape) != (n, n):
        raise ValueError(f"a weight of shape {(m, n)} has no inputs of {tuple(gram.shape)}")
    if grad_gram is not None and tuple(grad_gram.shape) != (m, m):
        raise ValueError(f"a weight of shape {(m, n)} has no gradients of {tuple(grad_gram.shape)}")
    if not statistics.weighs_errors:
        raise ValueError("the statistics hold no matrix to weigh errors by")
    weighting = Weighting.of(statistics, weight.device, centered=centered)
    return measure_weighted(weight.detach(), factors, exponent, weighting)


def predicted_loss(
    weight: torch.Tensor, factors: Sequence[torch.Tensor], statistics: Statistics, *, centered: bool
) -> float | None:
    """Return tr((W - Ŵ)ᵀF(W - Ŵ)G)/N, the predicted rise of the loss per token, for factors as stored.

    In float64, of F and G as they are, without ridge; with G - Nμμᵀ in place of G where
    `centered` says that the bias is corrected (Martens and Grosse 2015 for the approximation of the Fisher
    matrix by F ⊗ G). None where F, G or N is not known; inf where float64 cannot hold it. Parameters and
    errors raised as for :func:`weighted_error`.
    """
    return weighted_error(weight, factors, statistics, centered=centered).loss


def output_error(weight: torch.Tensor, factors: Sequence[torch.Tensor], gram: torch.Tensor) -> float:
    """Return ‖(W - Ŵ)X‖_F/‖WX‖_F for factors exactly as stored; see :func:`weighted_error`."""
    found = weighted_error(weight, factors, Statistics(gram=gram), centered=False).outputs
    assert found is not None
    return found.relative


def error_floor(
    weighting: Weighting, factors: Sequence[torch.Tensor], measured: Residual, *, rounding: float
) -> float:
    """Return the least relative weighted error that can be told from zero.

    Below it, an error may come from the rounding of F, of G or of the stored factors.

    Parameters
    ----------
    weighting : Weighting
        Of the layer.
    factors : right [k, n], left [m, k]
        As stored.
    measured : Residual
        What is minimized.
    rounding : float
        Of one number of the stored factors, relative to it.
    """
    if measured.scaled_norm == 0:
        return math.inf
    # Each of the k terms of the product has errors of its own; ‖Tᵀ E S‖² ≤ ‖D_F E D_G‖² ‖C_F‖ ‖C_G‖.
    right, left = (factor.to(torch.float64) for factor in factors)
    energy = 1.0
    if weighting.inputs is not None:
        right = right * weighting.inputs.scale
        energy *= weighting.inputs.norm
    if weighting.outputs is not None:
        left = left * weighting.outputs.scale[:, None]
        energy *= weighting.outputs.norm
    lengths = torch.linalg.vector_norm(right, dim=1) * torch.linalg.vector_norm(left, dim=0)  # [k]
    lengths = times_power(lengths, -measured.exponent)
    spread = math.sqrt(energy * float(lengths.square().sum()) / measured.scaled_norm)
    return max(math.sqrt(weighting.ridge), rounding * spread)
