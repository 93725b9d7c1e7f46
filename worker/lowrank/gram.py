"""The Gram matrix of the inputs of a layer: how to find a fault in one, and its form for computing."""

from dataclasses import dataclass
from typing import Self

import torch

from worker.lowrank.blas import TILE, symmetrize

GRAM_DTYPES = (torch.float64, torch.float32)
# Relative to the size of each input (see `ScaledGram`): below it, the Gram matrix is rounding.
RIDGES = {torch.float64: 1e-10, torch.float32: 1e-6}
# How far rounding, also that of sums in float32 over millions of samples, may take a Gram matrix from being
# symmetric and positive, relative to unit diagonal and largest eigenvalue.
TOLERANCE = 1e-4
# With these limits, squares and sums of squares of scaled entries stay in the range of float64.
SMALLEST, LARGEST = 2.0**-800, 2.0**800


@dataclass(frozen=True)
class ScaledGram:
    """G = D C D with diagonal D, so that C is as well scaled as G can be (van der Sluis 1969).

    Attributes
    ----------
    scale : Tensor [n]
        D: the roots of G's diagonal, or of δ times its mean where that is larger; float64.
    core : Tensor [n, n]
        C: symmetric, its diagonal at most 1; float64.
    ridge : float
        δ: 1e-10, or 1e-6 where G came in float32. What is minimized is ‖(W - Ŵ)X‖² + δ‖(W - Ŵ)D‖², so that
        directions that no input reaches are chosen by the plain error, each input taken by its own size.
    """

    scale: torch.Tensor
    core: torch.Tensor
    ridge: float

    @classmethod
    def of(cls, gram: torch.Tensor) -> Self:
        """Equilibrate G [n, n], float64 or float32, in which :func:`gram_fault` finds no fault."""
        scale = _scale(gram)
        core = gram.to(torch.float64, copy=True).div_(scale[:, None]).div_(scale)
        return cls(scale, symmetrize(core), RIDGES[gram.dtype])


def gram_fault(gram: torch.Tensor) -> str | None:
    """Return why a matrix is not the Gram matrix XXᵀ of inputs X and what to do about it, or None.

    Parameters
    ----------
    gram : Tensor [n, n]
        float64 or float32. At most two copies of it in float64 are made at a time.

    Returns
    -------
    str or None
        The rest of a sentence that begins with the matrix's name. None where it is one within rounding:
        mirrored entries agree to 1e-4 of the roots of their diagonal entries' product, and scaled to a unit
        diagonal no eigenvalue is under -1e-4 of the largest.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.numel() == 0 or gram.dtype not in GRAM_DTYPES:
        return "is no square matrix of float32 or float64; store XXᵀ of the layer's inputs X"
    if not bool(torch.isfinite(gram).all()):
        return "holds NaN or infinity; leave out the batch that brings them, or sum in float64"
    return _diagonal_fault(gram) or _core_fault(gram)


_SYMMETRIC = "store the whole of XXᵀ, not a triangle of it"
_POSITIVE = "store XXᵀ of the inputs as it is, summed in float32 at least"


def _diagonal_fault(gram: torch.Tensor) -> str | None:
    least, largest = (float(extreme) for extreme in torch.aminmax(gram.diagonal()))
    if least < 0:
        return f"is not positive: its diagonal holds {least:.3g}; {_POSITIVE}"
    if largest == 0:
        return "holds zeros alone, as if no input had come; run batches through the layer, or leave it out"
    if not SMALLEST <= largest <= LARGEST:
        return f"is out of range: its diagonal holds {largest:.3g}; scale the inputs by a constant"
    return None


def _core_fault(gram: torch.Tensor) -> str | None:
    scale = _scale(gram)
    core = gram.to(torch.float64, copy=True).div_(scale[:, None]).div_(scale)
    blocks = zip(torch.split(core, TILE), torch.split(core, TILE, dim=1), strict=True)
    worst = max(float((rows - columns.mT).abs().max()) for rows, columns in blocks)
    if worst > TOLERANCE:
        return f"is not symmetric: mirrored entries differ by {worst:.1g} of their size; {_SYMMETRIC}"
    # A Cholesky decomposition costs a tenth of the eigenvalues and decides nearly every case.
    squares = float(torch.linalg.vector_norm(core)) ** 2
    allowed = TOLERANCE * squares / float(core.diagonal().sum())
    core.diagonal().add_(allowed)
    if int(torch.linalg.cholesky_ex(core).info) == 0:
        return None
    core.diagonal().sub_(allowed)
    values = torch.linalg.eigvalsh(core)
    least, most = float(values[0]), float(values[-1])
    if least >= -TOLERANCE * most:
        return None
    return f"is not positive: scaled to a unit diagonal it has the eigenvalue {least:.2g}; {_POSITIVE}"


def _scale(gram: torch.Tensor) -> torch.Tensor:
    diagonal = gram.diagonal().to(torch.float64)  # [n]
    return diagonal.clamp_min(RIDGES[gram.dtype] * float(diagonal.mean())).sqrt()
