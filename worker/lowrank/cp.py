"""A kernel as a sum of products of three vectors: one filter for each channel in between."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from schemas.spectrum import smallest_rank_within, squared_tails
from schemas.spectrum_rank import AutoRule, auto_rank
from worker.lowrank.kernel import Kernels, leading_vectors
from worker.lowrank.lapack import NotConvergedError

# The squared norms of all terms together may be this many times ‖W‖_F². Diverging terms, which cancel each
# other, soon exceed it (Phan et al. 2020, "Stable low-rank tensor decomposition").
MOST_CANCELLED = 100.0
# A run ends once a sweep lowers the squared error by less than this share of it.
TOLERANCE = 1e-6
LEAST_SWEEPS, MOST_SWEEPS = 5, 100
# Floating-point operations of all sweeps of one start.
WORK = 1e11
# Share of the mean squared norm by which a new factor is held to the old one; it keeps systems regular.
PROXIMAL = 1e-9
RANDOM_STARTS = 1
# Elements of a product of two factors at once.
BLOCK = 1 << 23
Terms = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # [o, r], [i, r], [K, r]


@dataclass(frozen=True, eq=False)
class CP:
    """W ≈ Σ_r a_r ∘ b_r ∘ c_r by alternating least squares (Carroll and Chang 1970; Harshman 1970).

    A best approximation need not exist: terms may diverge and cancel each other. So there are several starts,
    each run is broken off before its terms cancel too much, and the best that is left is taken. The start
    from slices is a sum of orthogonal terms, so there always is one.
    """

    kernel: torch.Tensor  # [o, i, K]
    seed: int

    @cached_property
    def _unfolded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[o, i·K], [i, o·K] and [K, o·i]."""
        kernel = self.kernel
        return (
            kernel.flatten(1),
            kernel.transpose(0, 1).flatten(1).contiguous(),
            kernel.permute(2, 0, 1).flatten(1).contiguous(),
        )

    @cached_property
    def _modes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [leading_vectors(matrix, len(matrix)) for matrix in self._unfolded]

    @cached_property
    def _energy(self) -> float:
        return float(self.kernel.square().sum())

    @cached_property
    def _slices(self) -> tuple[int, torch.Tensor]:
        """The mode whose slices have the fewest large singular values, and these [s, p]."""
        spectra = [(mode, torch.linalg.svdvals(self.kernel.movedim(mode, 0))) for mode in (1, 2)]
        spectra = [(mode, values) for mode, values in spectra if len(values)]
        middle = self.kernel.numel() // (2 * sum(self.kernel.shape)) + 1

        def left(values: torch.Tensor) -> float:
            return float(values.flatten().sort(descending=True).values[middle:].square().sum())

        return min(spectra, key=lambda found: left(found[1]))

    @property
    def estimate(self) -> torch.Tensor:
        """The singular values [p] of all slices; those after the first k bound the error at rank k."""
        return self._slices[1].flatten().sort(descending=True).values.cpu()

    @property
    def spectrum(self) -> None:
        """The best possible error is not known, if there is one."""
        return

    def least_rank(self, loss: float) -> int:
        """Return the least rank at which no unfolding alone loses more."""
        tails = (squared_tails(squares.sqrt().tolist()) for _, squares in self._modes)
        return max(smallest_rank_within(each, loss) or len(each) - 1 for each in tails)

    def auto_rank(self, rule: AutoRule) -> int:
        """Return the most that stand out in any unfolding, since no fewer terms have as high a rank."""
        found = []
        for matrix, (_, squares) in zip(self._unfolded, self._modes, strict=True):
            shape = (matrix.shape[0], matrix.shape[1])
            found.append(auto_rank(rule, squares.sqrt()[: min(shape)].tolist(), shape) or 0)
        return max(found)

    def factors(self, rank: int) -> Kernels:
        """Return the mix of inputs [r, i, 1], the filters [r, 1, K] and the mix of outputs [o, r, 1]."""
        runs = (self._run(start) for start in self._starts(rank))
        stable = [(error, terms) for error, terms in runs if terms is not None]
        if not stable:
            raise NotConvergedError
        outputs, inputs, filters = balanced(min(stable, key=lambda found: found[0])[1])
        return inputs.mT[:, :, None], filters.mT[:, None, :], outputs[:, :, None]

    def join(self, factors: Kernels) -> torch.Tensor:
        inputs, filters, outputs = factors
        return torch.einsum("or,ri,rk->oik", outputs[:, :, 0], inputs[:, :, 0], filters[:, 0]).flatten(1)

    def _starts(self, rank: int) -> Iterator[Terms]:
        """Yield the terms that the runs begin with; the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        yield self._from_slices(rank)
        yield self._from_modes(rank, generator)
        if rank <= min(self.kernel.shape[:2]) and (found := self._from_pencil(rank, generator)) is not None:
            yield found
        for _ in range(RANDOM_STARTS if self._sweeps(rank) == MOST_SWEEPS else 0):
            yield self._random(rank, generator)

    def _random(self, rank: int, generator: torch.Generator) -> Terms:
        drawn = [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in self.kernel.shape]
        return drawn[0].to(self.kernel), drawn[1].to(self.kernel), drawn[2].to(self.kernel)

    def _from_modes(self, rank: int, generator: torch.Generator) -> Terms:
        """Return the leading singular vectors of each unfolding, and random ones where there are no more."""
        terms = self._random(rank, generator)
        for own, (vectors, _) in zip(terms, self._modes, strict=True):
            count = min(rank, vectors.shape[1])
            own[:, :count] = vectors[:, :count]
        return terms

    def _from_slices(self, rank: int) -> Terms:
        """Return the largest terms of the SVDs of all slices along one mode."""
        mode, values = self._slices
        left, _, right = torch.linalg.svd(self.kernel.movedim(mode, 0), full_matrices=False)
        largest = values.flatten().topk(min(rank, values.numel())).indices
        at, number = largest // values.shape[1], largest % values.shape[1]
        first = left[at, :, number].mT * values[at, number]  # [m, r]
        second = right[at, number].mT  # [n, r]
        third = torch.zeros(len(values), len(largest)).to(self.kernel)
        third[at, torch.arange(len(largest), device=at.device)] = 1.0
        first, second, third = (_widened(each, rank) for each in (first, second, third))
        return (first, third, second) if mode == 1 else (first, second, third)

    def _from_pencil(self, rank: int, generator: torch.Generator) -> Terms | None:
        """Return the terms by two mixes of the slices (Leurgans, Ross and Abel 1993), exact if W has them."""
        left, right = (vectors[:, :rank] for vectors, _ in self._modes[:2])
        core = torch.einsum("oik,or,is->rsk", self.kernel, left, right)
        mixes = torch.randn(self.kernel.shape[2], 2, generator=generator, dtype=torch.float64).to(core)
        first, second = (core @ mixes).unbind(2)
        solved, info = torch.linalg.solve_ex(second.mT, first.mT)
        if int(info) or not bool(solved.isfinite().all()):
            return None
        outputs = left @ torch.linalg.eig(solved.mT).eigenvectors.real
        rows = torch.linalg.lstsq(outputs, self._unfolded[0]).solution  # [r, i·K]
        if not bool(rows.isfinite().all()):
            return None
        slices = rows.reshape(rank, *self.kernel.shape[1:])
        left, values, right = torch.linalg.svd(slices, full_matrices=False)
        return outputs, (left[:, :, 0] * values[:, :1]).mT, right[:, 0].mT

    def _sweeps(self, rank: int) -> int:
        return max(LEAST_SWEEPS, min(MOST_SWEEPS, int(WORK / (6 * self.kernel.numel() * rank))))

    def _run(self, terms: Terms) -> tuple[float, Terms | None]:
        """Alternate from a start; return the squared error and the last terms that do not cancel."""
        factors = list(balanced(terms))
        best, found, before = math.inf, None, math.inf
        for _ in range(self._sweeps(factors[0].shape[1])):
            error = self._sweep(factors)
            if not math.isfinite(error) or self._cancelled(factors) > MOST_CANCELLED:
                break
            best, found = error, (factors[0], factors[1], factors[2])
            if before - error <= TOLERANCE * error:
                break
            factors, before = list(balanced(found)), error
        return best, found

    def _cancelled(self, factors: list[torch.Tensor]) -> float:
        """Return the squared norms of all terms together, relative to ‖W‖_F²."""
        norms = [factor.square().sum(0) for factor in factors]
        return float((norms[0] * norms[1] * norms[2]).sum()) / (self._energy or 1.0)

    def _sweep(self, factors: list[torch.Tensor]) -> float:
        """Fit each factor once to the other two, in place; return the squared error."""
        fitted = torch.zeros(0)
        for mode in range(3):
            one, other = (factors[at] for at in range(3) if at != mode)
            fitted = _times_terms(self._unfolded[mode], one, other)  # [m, r]
            gram = (one.mT @ one) * (other.mT @ other)
            held = PROXIMAL * float(gram.diagonal().mean())
            gram.diagonal().add_(held)
            lower, info = torch.linalg.cholesky_ex(gram)
            if int(info):
                return math.inf
            factors[mode] = torch.cholesky_solve((fitted + held * factors[mode]).mT, lower).mT
        grams = [factor.mT @ factor for factor in factors]
        squared = float((grams[0] * grams[1] * grams[2]).sum())
        return max(0.0, self._energy - 2 * float((fitted * factors[2]).sum()) + squared)


def balanced(terms: Terms) -> Terms:
    """Return the same terms with vectors of equal norms in each."""
    norms = [torch.linalg.vector_norm(factor, dim=0) for factor in terms]
    mean = (norms[0] * norms[1] * norms[2]).pow(1 / 3)
    outputs, inputs, filters = (
        factor * torch.where(norm > 0, mean / norm, 0.0) for factor, norm in zip(terms, norms, strict=True)
    )
    return outputs, inputs, filters


def _times_terms(matrix: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Multiply an unfolding [m, p·q] by the products of the columns of [p, r] and [q, r]: [m, r]."""
    count = max(1, BLOCK // matrix.shape[1])
    parts = [
        matrix @ (first[:, None] * second).flatten(0, 1)
        for first, second in zip(torch.split(one, count, 1), torch.split(other, count, 1), strict=True)
    ]
    return torch.cat(parts, 1)


def _widened(factor: torch.Tensor, rank: int) -> torch.Tensor:
    """Return a factor [m, r] with columns of zeros up to a rank."""
    return torch.nn.functional.pad(factor, (0, rank - factor.shape[1]))


@dataclass(frozen=True)
class CPMethod:
    """One filter for each channel in between; a :class:`worker.lowrank.kernel.KernelMethod`."""

    def problem(self, kernel: torch.Tensor, *, seed: int) -> CP:
        return CP(kernel, seed)
