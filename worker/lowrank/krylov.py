"""Leading singular vectors from a random block Krylov space, accepted only where their error is certain."""

import math
from contextlib import suppress

import torch

from worker.lowrank.blas import product, self_product
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.lapack import (
    NotConvergedError,
    converging,
    fix_signs,
    leading_eigenpairs,
    past_jacobi,
    thin_qr,
)
from worker.lowrank.scale import squared_norm

# The share by which the error of a truncation may exceed the best possible one.
EXCESS = 1e-3
# The energy that is missed may be this many times the estimate; up to 2.1 times was seen.
SAFETY = 2.5
# The space is checked at this many times the rank, and then after steps that the last checks suggest.
FIRST_CHECK, FIRST_CHECK_FLAT = 1.75, 3.25
LEAST_STEP, FIRST_STEP, MOST_STEP = 0.25, 0.5, 1.0
# A space of more than this share of all dimensions costs more than all eigenpairs.
LARGEST_SPACE = 0.7
# The space is faster from this length of the short side on, and up to a rank of this share of it.
SHORTEST, LARGEST_RANK = 1024, 0.26
# Where the spectrum is flat (Σσ² spread over more than this share of the directions), only up to this rank.
FLAT, LARGEST_FLAT_RANK, PROBES = 0.3, 0.15, 8
# Vectors to a block: a quarter of the rank, in steps that suit the processor.
BLOCK_STEP, BLOCK_LEAST = 16, 32
# The share of Σσ² that rounding may have moved: a Gram matrix in float32, as in the solvers.
ROUNDOFF = 4 * torch.finfo(torch.float32).eps


def krylov_decomposition(matrix: torch.Tensor, rank: int, *, seed: int) -> Decomposition | None:
    """Return leading singular vectors with an excess error of at most 1e-3, or None where that is uncertain.

    Block Lanczos with full reorthogonalization on the smaller Gram matrix, from a random block of rank/4
    vectors, and Rayleigh-Ritz in the space they span (Golub and Underwood 1977; Musco and Musco 2015,
    algorithm 2). The space grows until its residuals show that the error of the truncation is at most 1e-3
    above the best possible one.

    Parameters
    ----------
    matrix : Tensor [m, n]
        A, scaled to order one.
    rank : int
        k ≥ 1.
    seed : int
        ≥ 0; of the random block.

    Returns
    -------
    Decomposition or None
        Of k values and vectors. None where another way is faster, where convergence is slow, where A has
        fewer directions than the space, or where the error left is too small for float32.
    """
    short = min(matrix.shape)
    if matrix.dtype != torch.float32 or short < SHORTEST or rank > LARGEST_RANK * short:
        return None
    with suppress(NotConvergedError), converging(matrix.device):
        return _search(matrix, rank, seed)
    return None


def _search(matrix: torch.Tensor, rank: int, seed: int) -> Decomposition | None:
    short = min(matrix.shape)
    by_columns = matrix.shape[0] >= matrix.shape[1]
    energy = squared_norm(matrix)
    tall = matrix if by_columns else matrix.mT
    flat = energy > 0 and _spread(tall, energy, seed) > FLAT * short
    if energy == 0 or (flat and rank > LARGEST_FLAT_RANK * short):
        return None
    space = _Space(self_product(tall, torch.float32), rank)
    checks: list[tuple[float, float]] = []
    multiple = FIRST_CHECK_FLAT if flat else FIRST_CHECK
    if not space.start(seed):
        return None
    while multiple * rank <= LARGEST_SPACE * short and space.grow(math.ceil(multiple * rank)):
        values, ritz = leading_eigenpairs(space.projected, rank, all_values=False)  # [k], [k, q]
        tail = energy - float(values.sum())
        excess = SAFETY * space.missed(values, ritz) / (2 * tail) if tail > 0 else math.inf
        if excess <= EXCESS:
            return Decomposition(
                singular_values=values.sqrt(),
                basis=fix_signs(product(ritz, space.basis)),
                axis="columns" if by_columns else "rows",
                roundoff=ROUNDOFF,
                tail_energy=tail,
            )
        checks.append((multiple, excess))
        multiple = _next_check(checks)
    return None


def _spread(tall: torch.Tensor, energy: float, seed: int) -> float:
    """Estimate (Σλ)²/Σλ²: the number of directions that the energy would have if it were spread evenly."""
    random = torch.randn(PROBES, tall.shape[1], generator=torch.Generator().manual_seed(seed)).to(tall)
    probed = product(product(random, tall.mT), tall)  # each row has Σλ² as its mean square (Girard 1989)
    return energy**2 * PROBES / squared_norm(probed)


def _next_check(checks: list[tuple[float, float]]) -> float:
    """Return the multiple of the rank at which the excess is small enough if it keeps falling like this."""
    multiple, better = checks[-1]
    before, worse = checks[-2] if len(checks) > 1 else (0.0, math.inf)
    if worse == math.inf:
        return multiple + FIRST_STEP
    rate = math.log(worse / better) / (multiple - before) if better < worse else 0.0
    step = math.log(better / EXCESS) / rate if rate > 0 else MOST_STEP
    return multiple + min(max(step, LEAST_STEP), MOST_STEP)


class _Space:
    """Orthonormal rows Q [q, n] that span a Krylov space of a symmetric matrix G, and QGQᵀ."""

    def __init__(self, matrix: torch.Tensor, rank: int) -> None:
        n = len(matrix)
        self._matrix = matrix
        self._width = max(BLOCK_LEAST, math.ceil(rank / 4 / BLOCK_STEP) * BLOCK_STEP)
        most = math.ceil(LARGEST_SPACE * n / self._width + 1) * self._width
        self._rows = matrix.new_empty(most, n)
        self._projected = matrix.new_zeros(most, most)
        self._size = 0
        # The next block, orthogonal to the space, G times it, and the factor that made it orthonormal.
        self._next = self._image = matrix.new_empty(0, n)
        self._beyond = matrix.new_empty(0, 0)

    def start(self, seed: int) -> bool:
        """Start with G times a random block; False where G has too few directions for one."""
        generator = torch.Generator().manual_seed(seed)
        n = len(self._matrix)
        random = torch.randn(self._width, n, generator=generator).to(self._matrix)
        return self._orthonormalize(product(random, self._matrix) / math.sqrt(n))

    def grow(self, size: int) -> bool:
        """Grow to at least that many rows; False where G has no more directions."""
        while self._size < size:
            start, stop = self._size, self._size + self._width
            self._rows[start:stop] = self._next
            rows, image = self._rows[:stop], self._image  # [stop, n], [b, n]
            # The image has large components only in the last two blocks; one pass over all leaves only
            # rounding of the others.
            near = max(0, start - self._width)
            within = product(image, rows[near:].mT)  # [b, 2b]
            image -= product(within, rows[near:])
            again = product(image, rows.mT)  # [b, stop]
            image -= product(again, rows)
            self._projected[start:stop, near:stop] = within + again[:, near:]
            self._size = stop
            if not self._orthonormalize(image):
                return False
        return True

    @property
    def basis(self) -> torch.Tensor:
        """Q [q, n]."""
        return self._rows[: self._size]

    @property
    def projected(self) -> torch.Tensor:
        """QGQᵀ [q, q]; only its lower triangle is set."""
        return self._projected[: self._size, : self._size].contiguous()

    def missed(self, values: torch.Tensor, ritz: torch.Tensor) -> float:
        """Return Σ‖Gv - θv‖²/(θ - μ) over the Ritz pairs: to second order Σλ - Σθ.

        μ is the largest eigenvalue outside the space, here estimated from the next block (Parlett 1998, The
        Symmetric Eigenvalue Problem, section 11.7).
        """
        residuals = ritz[:, -self._width :] @ self._beyond  # [k, b]
        squares = torch.linalg.vector_norm(residuals, dim=1, dtype=torch.float64).square().cpu()
        outside = torch.linalg.eigvalsh(past_jacobi(product(self._next, self._image.mT)))
        gaps = values - float(outside[-1])
        return float((squares / gaps).sum()) if float(gaps.min()) > 0 else math.inf

    def _orthonormalize(self, block: torch.Tensor) -> bool:
        found = _by_cholesky(block) or _by_reflections(block)
        if found is None:
            return False
        self._next, self._beyond = found
        self._image = product(self._next, self._matrix)
        return True


Orthonormal = tuple[torch.Tensor, torch.Tensor]


def _by_cholesky(block: torch.Tensor) -> Orthonormal | None:
    """Return Q and L of block = L Q by Cholesky QR, twice (Yamamoto et al. 2015): mostly products."""
    eye = torch.eye(len(block), dtype=block.dtype, device=block.device)
    whole = eye
    for _ in range(2):
        lower, failed = torch.linalg.cholesky_ex(product(block, block.mT))
        if int(failed) or not bool(torch.isfinite(lower).all()):
            return None
        block = product(torch.linalg.solve_triangular(lower, eye, upper=False), block)
        whole = whole @ lower
    return block, whole


def _by_reflections(block: torch.Tensor) -> Orthonormal | None:
    """Return the same of rows that are nearly dependent, or None where they are dependent."""
    q, r = thin_qr(block.mT)
    sizes = r.diagonal().abs()
    dependent = not float(sizes.min()) > torch.finfo(block.dtype).eps * float(sizes.max())
    return None if dependent else (q.mT.contiguous(), r.mT)
