"""Leading singular vectors from a random block Krylov space, checked before they are believed."""

import math

import torch

from worker.lowrank.blas import gram, product
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.eigen import leading_pairs, oriented
from worker.lowrank.scale import squared_norm

# How far the error of a truncation may lie above the optimum, as a part of it.
EXCESS = 1e-3
# Times what the residuals say is missed: over all spectra of the tests 7.3 times as much was.
SAFETY = 8
# The space is looked at when it has 1.5 times the rank, then after as many more as the last look promises.
FIRST_LOOK = 1.5
NEXT_LOOKS = ((2e-2, 1.0), (5e-3, 0.75), (0.0, 0.5))
# A space larger than this part of the whole costs more than the eigenpairs of the whole.
LARGEST_SPACE = 0.7
# A short side from which on, and a part of it as rank up to which, the space is the faster way.
SHORTEST, LARGEST_RANK = 1024, 0.26
# Vectors to a block: a quarter of the rank, in steps that suit the processor.
BLOCK_STEP, BLOCK_LEAST = 16, 32
# The part of Σσ² that rounding may have moved: a Gram matrix in float32, as in the ladder.
NOISE = 4 * torch.finfo(torch.float32).eps


def sketched(matrix: torch.Tensor, rank: int, *, seed: int) -> Decomposition | None:
    """Return the leading singular vectors to within an excess of 1e-3, or None where that is not certain.

    Block Lanczos with full reorthogonalization on the smaller Gram matrix, from a random block of rank/4
    vectors, and Rayleigh-Ritz in the space they span (Golub and Underwood 1977; Musco and Musco 2015,
    algorithm 2). The space grows until its residuals say that the error of the truncation lies at most 1e-3
    over the optimum.

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
    by_columns = matrix.shape[0] >= matrix.shape[1]
    energy = squared_norm(matrix)
    space = _Space(gram(matrix if by_columns else matrix.mT, torch.float32), rank)
    multiple = FIRST_LOOK
    found = space.start(seed)
    while found and multiple * rank <= LARGEST_SPACE * short:
        if not space.grow(math.ceil(multiple * rank)):
            return None
        values, ritz = leading_pairs(space.projected, rank, whole=False)  # [k], [k, q]
        tail = energy - float(values.sum())
        excess = SAFETY * space.missed(values, ritz) / (2 * tail) if tail > 0 else math.inf
        if excess <= EXCESS:
            return Decomposition(
                singular_values=values.sqrt(),
                basis=oriented(product(ritz, space.basis)),
                side="columns" if by_columns else "rows",
                noise=NOISE,
                rest=tail,
            )
        multiple += next(more for least, more in NEXT_LOOKS if excess > least)
    return None


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
        # The next block, of which nothing is in the space yet, and what it was before it was orthonormal.
        self._next = matrix.new_empty(0, n)
        self._beyond = matrix.new_empty(0, 0)

    def start(self, seed: int) -> bool:
        """Take a random block, once multiplied by G; False where G has too few directions for one."""
        generator = torch.Generator().manual_seed(seed)
        n = len(self._matrix)
        random = torch.randn(self._width, n, generator=generator).to(self._matrix)
        return self._orthonormalize(product(random, self._matrix) / math.sqrt(n))

    def grow(self, size: int) -> bool:
        """Grow to at least that many rows; False where G has no more directions to give."""
        while self._size < size:
            start, stop = self._size, self._size + self._width
            self._rows[start:stop] = self._next
            block, rows = self._next, self._rows[:stop]
            image = product(block, self._matrix)  # [b, n]
            within = product(image, rows.mT)  # [b, stop]
            image -= product(within, rows)
            again = product(image, rows.mT)
            image -= product(again, rows)
            # Farther than one block back, only rounding would stand here.
            near = max(0, start - self._width)
            self._projected[start:stop, near:stop] = (within + again)[:, near:]
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
        """QGQᵀ [q, q], of which the lower triangle counts."""
        return self._projected[: self._size, : self._size].contiguous()

    def missed(self, values: torch.Tensor, ritz: torch.Tensor) -> float:
        """Return Σ‖Gv - θv‖²/θ over the Ritz pairs: to first order what Σθ may lie under Σλ."""
        residuals = ritz[:, -self._width :] @ self._beyond  # [k, b]
        squares = torch.linalg.vector_norm(residuals, dim=1, dtype=torch.float64).square().cpu()
        return float((squares / values).sum())

    def _orthonormalize(self, block: torch.Tensor) -> bool:
        # Cholesky QR, twice (Yamamoto et al. 2015): nearly all of it products.
        self._beyond = torch.eye(self._width, dtype=block.dtype, device=block.device)
        for _ in range(2):
            lower, failed = torch.linalg.cholesky_ex(product(block, block.mT))
            if int(failed) or not bool(torch.isfinite(lower).all()):
                return False
            eye = torch.eye(self._width, dtype=block.dtype, device=block.device)
            block = product(torch.linalg.solve_triangular(lower, eye, upper=False), block)
            self._beyond = self._beyond @ lower
        self._next = block
        return True
