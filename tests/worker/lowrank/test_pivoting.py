"""worker.lowrank.pivoting: the pivots of LAPACK and of the papers, one by one and by blocks."""

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.worker.lowrank.matrices import columns_of, cx_error, leading, spectrum, with_spectrum
from tests.worker.lowrank.test_osinsky import SPECTRA, osinsky_of_the_paper
from worker.lowrank.osinsky import osinsky
from worker.lowrank.pivoting import blocked_qr_pivots, lu_pivots, qr_pivots


def deim_of_the_paper(vectors):
    """Interpolate each singular vector at the indices so far, and take where that is worst."""
    chosen = [int(np.abs(vectors[:, 0]).argmax())]
    for j in range(1, vectors.shape[1]):
        known = vectors[:, :j]
        rest = vectors[:, j] - known @ np.linalg.solve(known[chosen], vectors[chosen, j])
        chosen.append(int(np.abs(rest).argmax()))
    return chosen


@pytest.mark.parametrize("name", ["slow", "fast", "tied in two"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_deim_interpolates_where_the_paper_does(name, dtype):
    vectors = leading(with_spectrum(50, 70, spectrum(name, 50)), 20, dtype=dtype)

    assert lu_pivots(vectors) == deim_of_the_paper(vectors.double().numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(100, 700), (300, 600)], ids=str)
def test_qr_by_blocks_has_the_pivots_of_lapack(shape, dtype):
    vectors = columns_of(with_spectrum(*shape, spectrum("slow", min(shape))), dtype)
    k = min(shape) // 2
    expected = scipy.linalg.qr(vectors.numpy().T, mode="r", pivoting=True)[1][:k].tolist()

    assert qr_pivots(vectors, k) == expected
    assert blocked_qr_pivots(vectors, k) == expected


@pytest.mark.parametrize("name", [*SPECTRA, "one outlier"])
def test_qr_by_blocks_never_takes_a_much_nearer_vector(name):
    vectors = columns_of(with_spectrum(120, 500, spectrum(name, 120)))
    chosen = blocked_qr_pivots(vectors, 100)
    rest = vectors.clone()

    assert len(set(chosen)) == 100
    for pivot in chosen:
        lengths = torch.linalg.vector_norm(rest, dim=1)
        if float(lengths.max()) < 1e-12:
            break
        assert float(lengths[pivot]) >= 0.89 * float(lengths.max())
        direction = rest[pivot] / lengths[pivot]
        rest -= torch.outer(rest @ direction, direction)


@pytest.mark.parametrize("name", ["slow", "fast", "graded over 1e-12"])
def test_choices_by_blocks_are_as_good_as_one_by_one(name):
    matrix = with_spectrum(150, 600, spectrum(name, 150))
    vectors, basis = columns_of(matrix), leading(matrix, 60)
    by_lapack = scipy.linalg.qr(matrix, mode="r", pivoting=True)[1][:60].tolist()
    by_paper = osinsky_of_the_paper(matrix, basis.numpy())

    assert cx_error(matrix, blocked_qr_pivots(vectors, 60)) <= 1.05 * cx_error(matrix, by_lapack)
    assert cx_error(matrix, osinsky(vectors, basis)) <= 1.05 * cx_error(matrix, by_paper)


@pytest.mark.parametrize("rank_of_it", [0, 1, 3])
def test_blocks_choose_distinct_vectors_where_few_or_none_are_independent(rank_of_it):
    matrix = with_spectrum(80, 400, np.where(np.arange(80) < rank_of_it, 1.0, 0.0))
    vectors = columns_of(matrix)

    for chosen in (blocked_qr_pivots(vectors, 70), osinsky(vectors, leading(matrix, 70))):
        assert len(set(chosen)) == 70
        assert cx_error(matrix, chosen) <= 1e-12
