"""How to find a fault in the statistics of a layer, each with its remedy."""

import math
from dataclasses import dataclass

import torch

from worker.lowrank.blas import TILE
from worker.lowrank.gram import GRAM_DTYPES, RIDGES

# How far rounding, also that of sums in float32 over millions of samples, may take a Gram matrix from being
# symmetric and positive, relative to unit diagonal and largest eigenvalue.
TOLERANCE = 1e-4
# With these limits, squares and sums of squares of scaled entries stay in the range of float64.
SMALLEST, LARGEST = 2.0**-800, 2.0**800


@dataclass(frozen=True)
class _Vectors:
    """The vectors that a Gram matrix is of, in words."""

    product: str
    several: str
    one: str


_INPUTS = _Vectors("XXᵀ of the layer's inputs X", "inputs", "input")
_GRADIENTS = _Vectors("Σggᵀ of the gradients g at the layer's outputs", "gradients", "gradient")


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
    return _fault(gram, _INPUTS)


def grad_gram_fault(grad_gram: torch.Tensor) -> str | None:
    """Return why a matrix [m, m] is not Σggᵀ of the gradients g at the outputs; as :func:`gram_fault`."""
    return _fault(grad_gram, _GRADIENTS)


def count_fault(count: float) -> str | None:
    """Return why a number is not the count of tokens, as the rest of a sentence; None where it is."""
    if math.isfinite(count) and count > 0:
        return None
    return f"is {count:.3g}, not a number above 0; store the number of tokens that the sums are of"


def mean_fault(mean: torch.Tensor, gram: torch.Tensor, count: float) -> str | None:
    """Return why a vector is not the mean of the inputs of this Gram matrix, or None.

    Parameters
    ----------
    mean : Tensor [n]
        μ.
    gram : Tensor [n, n]
        G, in which :func:`gram_fault` finds no fault.
    count : float
        N, in which :func:`count_fault` finds no fault.

    Returns
    -------
    str or None
        The rest of a sentence. None where it can be the mean: no Nμᵢ² is above Gᵢᵢ, within 1e-4 of it.
    """
    if tuple(mean.shape) != (len(gram),) or mean.dtype not in GRAM_DTYPES:
        return f"is no vector of {len(gram)} numbers in float32 or float64; store the mean of the inputs"
    if not bool(torch.isfinite(mean).all()):
        return "holds NaN or infinity; leave out the batch that brings them, or sum in float64"
    diagonal = gram.diagonal().to(torch.float64)
    excess = count * mean.to(gram.device, torch.float64).square() - (1 + TOLERANCE) * diagonal
    worst = int(excess.argmax())
    if float(excess[worst]) <= RIDGES[torch.float32] * float(diagonal.mean()):
        return None
    return (
        f"does not belong to the Gram matrix: N·μ² of input {worst} is above the sum of its squares; "
        "store the mean, and not the sum, over the same tokens that gram and count are of"
    )


_SYMMETRIC = "store the whole of {}, not a triangle of it"
_POSITIVE = "store {} as it is, summed in float32 at least"


def _fault(gram: torch.Tensor, of: _Vectors) -> str | None:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.numel() == 0 or gram.dtype not in GRAM_DTYPES:
        return f"is no square matrix of float32 or float64; store {of.product}"
    if not bool(torch.isfinite(gram).all()):
        return "holds NaN or infinity; leave out the batch that brings them, or sum in float64"
    return _diagonal_fault(gram, of) or _core_fault(gram, of)


def _diagonal_fault(gram: torch.Tensor, of: _Vectors) -> str | None:
    least, largest = (float(extreme) for extreme in torch.aminmax(gram.diagonal()))
    if least < 0:
        return f"is not positive: its diagonal holds {least:.3g}; {_POSITIVE.format(of.product)}"
    if largest == 0:
        return (
            f"holds zeros alone, as if no {of.one} had come; run batches through the layer, or leave it out"
        )
    if not SMALLEST <= largest <= LARGEST:
        return f"is out of range: its diagonal holds {largest:.3g}; scale the {of.several} by a constant"
    return None


def _core_fault(gram: torch.Tensor, of: _Vectors) -> str | None:
    scale = _scale(gram)
    core = gram.to(torch.float64, copy=True).div_(scale[:, None]).div_(scale)
    blocks = zip(torch.split(core, TILE), torch.split(core, TILE, dim=1), strict=True)
    worst = max(float((rows - columns.mT).abs().max()) for rows, columns in blocks)
    if worst > TOLERANCE:
        remedy = _SYMMETRIC.format(of.product)
        return f"is not symmetric: mirrored entries differ by {worst:.1g} of their size; {remedy}"
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
    remedy = _POSITIVE.format(of.product)
    return f"is not positive: scaled to a unit diagonal it has the eigenvalue {least:.2g}; {remedy}"


def _scale(gram: torch.Tensor) -> torch.Tensor:
    diagonal = gram.diagonal().to(torch.float64)  # [n]
    return diagonal.clamp_min(RIDGES[gram.dtype] * float(diagonal.mean())).sqrt()
