"""worker.lowrank.openblas: routines are right, refuse what would crash, and let other threads go on."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg

from worker.lowrank import openblas

DTYPES = [np.float32, np.float64]
ORDERS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "neither": lambda a: np.repeat(np.repeat(a, 2, axis=0), 3, axis=1)[::2, ::3],
}


def random(m, n, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n)).astype(dtype)


def symmetric(n, dtype=np.float64):
    """Return a symmetric matrix with other numbers in the triangle that is not read."""
    matrix = random(n, n, dtype)
    matrix[np.triu_indices(n, 1)] = 1e9
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("m", "j", "n"), [(70, 50, 30), (70, 1, 1), (7, 0, 5), (0, 50, 3)])
def test_products_are_right_in_every_order_of_memory(dtype, order, m, j, n):
    into = np.asfortranarray(random(m, n, dtype, seed=2))
    for second in ORDERS.values():
        left, right = ORDERS[order](random(m, j, dtype)), second(random(j, n, dtype, seed=1))
        result, expected = into.copy(order="F"), 3 * into - 2 * (left @ right)

        np.testing.assert_allclose(openblas.gemm(1, left, right), left @ right, rtol=1e-4, atol=1e-4)
        assert openblas.gemm(-2, left, right, beta=3, into=result) is result
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("m", "n"), [(70, 30), (1, 1), (0, 4), (4, 0)])
def test_a_gram_matrix_is_added_above_the_diagonal_and_nothing_below(order, m, n):
    for dtype in DTYPES:
        tall, into = ORDERS[order](random(m, n, dtype)), np.asfortranarray(random(n, n, dtype, seed=2))
        expected = np.triu(into + tall.T @ tall) + np.tril(into, -1)
        openblas.syrk(tall, into)

        np.testing.assert_allclose(into, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("n", [1, 60])
def test_eigenpairs_are_those_of_scipy_to_the_last_bit(dtype, order, n):
    matrix = ORDERS[order](symmetric(n, dtype))
    before, count = matrix.copy(), (n + 3) // 4

    assert same(openblas.syevd(matrix), scipy.linalg.eigh(matrix, driver="evd"))
    subset = scipy.linalg.eigh(matrix, driver="evr", subset_by_index=(n - count, n - 1))
    assert same(openblas.syevr(matrix, count), subset)
    assert np.array_equal(matrix, before)


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(1, 9), (200, 50), (50, 200)], ids=str)
@pytest.mark.parametrize("driver", ["gesdd", "gesvd"])
def test_singular_values_and_vectors_are_those_of_scipy_to_the_last_bit(order, shape, driver):
    for dtype in DTYPES:
        matrix = ORDERS[order](random(*shape, dtype))
        before = matrix.copy()
        expected = scipy.linalg.svd(matrix, full_matrices=False, lapack_driver=driver)

        assert same(getattr(openblas, driver)(matrix), expected)
        assert np.array_equal(matrix, before)


def same(found, expected):
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("routine", [openblas.gesdd, openblas.gesvd])
def test_a_routine_that_does_not_converge_raises(routine):
    matrix = np.full((40, 40), np.nan)

    with pytest.raises(np.linalg.LinAlgError, match="failed with info"):
        routine(matrix)


@pytest.mark.parametrize(
    ("left", "right", "into"),
    [
        (random(4, 3), random(4, 3), None),
        (random(4, 3), random(3, 2, np.float32), None),
        (random(4, 3), random(3, 2), np.zeros((4, 3), order="F")),
        (random(4, 3), random(3, 2), np.zeros((4, 2), np.float32, order="F")),
        (random(4, 3), random(3, 2), np.zeros((4, 2))),
    ],
)
def test_a_product_out_of_bounds_is_refused(left, right, into):
    with pytest.raises(ValueError, match=r"cannot multiply|cannot hold a result"):
        openblas.gemm(1, left, right, into=into)


@pytest.mark.parametrize(
    "into", [np.zeros((3, 4), order="F"), np.zeros((3, 3)), np.zeros((3, 3), np.float32, order="F")]
)
def test_a_gram_matrix_out_of_bounds_is_refused(into):
    with pytest.raises(ValueError, match="cannot hold a result"):
        openblas.syrk(random(4, 3), into)


@pytest.mark.parametrize("routine", [openblas.syevd, openblas.gesdd, openblas.gesvd])
def test_there_is_no_half_precision(routine):
    with pytest.raises(KeyError, match="e"):
        routine(np.eye(3, dtype=np.float16))


WORK = {
    "gemm": lambda matrix: openblas.gemm(1, matrix, matrix),
    "syrk": lambda matrix: openblas.syrk(matrix, np.zeros_like(matrix, order="F")),
    "syevd": lambda matrix: openblas.syevd(matrix[:800, :800]),
    "syevr": lambda matrix: openblas.syevr(matrix[:800, :800], 200),
    "gesdd": lambda matrix: openblas.gesdd(matrix[:600, :600]),
    "gesvd": lambda matrix: openblas.gesvd(matrix[:400, :400]),
    "scipy's QR": lambda matrix: scipy.linalg.qr(matrix[:, :1000], mode="raw"),
    "scipy's pivots": lambda matrix: scipy.linalg.qr(matrix[:900, :900], mode="raw", pivoting=True),
}


@pytest.fixture(scope="module")
def large():
    return np.asfortranarray(random(2000, 2000))


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_other_threads_go_on_meanwhile(large, work):
    ended, ticks = threading.Event(), []

    def tick():
        while not ended.wait(0.001):
            ticks.append(time.monotonic())

    clock = threading.Thread(target=tick)
    clock.start()
    try:
        began = time.monotonic()
        work(large)
        over = time.monotonic()
    finally:
        ended.set()
        clock.join()

    marks = [began, *(mark for mark in ticks if began < mark < over), over]
    silence = max(later - before for before, later in pairwise(marks))
    assert silence < (over - began) / 2
