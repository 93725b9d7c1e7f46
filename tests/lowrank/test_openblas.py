"""The same bits as scipy.linalg's, and no other thread kept waiting."""

import threading
import time

import numpy as np
import pytest
import scipy.linalg
import torch

from worker.lowrank import openblas
from worker.lowrank.lapack import thin_qr
from worker.lowrank.pivots import qr_pivots

DTYPES = [np.float32, np.float64]
ORDERS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "neither": lambda a: np.repeat(np.repeat(a, 2, axis=0), 3, axis=1)[::2, ::3],
}


def random(m, n, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n)).astype(dtype)


def symmetric(n, dtype=np.float64):
    """Give a symmetric matrix, with something else where nobody should look."""
    matrix = random(n, n, dtype)
    matrix[np.triu_indices(n, 1)] = 1e9
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("second", ORDERS)
@pytest.mark.parametrize(
    ("m", "j", "n"), [(70, 50, 30), (1, 50, 30), (70, 1, 1), (70, 0, 30), (0, 50, 3), (7, 5, 0)]
)
def test_products_are_right_in_every_order_of_memory(dtype, first, second, m, j, n):
    left, right = ORDERS[first](random(m, j, dtype)), ORDERS[second](random(j, n, dtype, seed=1))
    into = np.asfortranarray(random(m, n, dtype, seed=2))
    expected = 3 * into - 2 * (left @ right)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}

    np.testing.assert_allclose(openblas.gemm(1, left, right), left @ right, **tolerance)
    result = openblas.gemm(-2, left, right, beta=3, into=into)
    assert result is into
    np.testing.assert_allclose(into, expected, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("m", "n"), [(70, 30), (30, 70), (1, 1), (0, 4), (4, 0)])
def test_a_gram_matrix_is_added_above_the_diagonal_and_nothing_below(dtype, order, m, n):
    tall, into = ORDERS[order](random(m, n, dtype)), np.asfortranarray(random(n, n, dtype, seed=2))
    expected = np.triu(into + tall.T @ tall) + np.tril(into, -1)
    openblas.syrk(tall, into)

    np.testing.assert_allclose(into, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("n", [1, 2, 60, 200])
def test_eigenpairs_are_scipys_to_the_last_bit(dtype, order, n):
    matrix = ORDERS[order](symmetric(n, dtype))
    before, count = matrix.copy(), (n + 3) // 4

    assert same(openblas.syevd(matrix), scipy.linalg.eigh(matrix, driver="evd"))
    subset = scipy.linalg.eigh(matrix, driver="evr", subset_by_index=(n - count, n - 1))
    assert same(openblas.syevr(matrix, count), subset)
    assert np.array_equal(matrix, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (60, 60), (200, 50), (50, 200)])
@pytest.mark.parametrize("driver", ["gesdd", "gesvd"])
def test_singular_values_and_vectors_are_scipys_to_the_last_bit(dtype, order, shape, driver):
    matrix = ORDERS[order](random(*shape, dtype))
    before = matrix.copy()
    expected = scipy.linalg.svd(matrix, full_matrices=False, lapack_driver=driver)

    assert same(getattr(openblas, driver)(matrix), expected)
    assert np.array_equal(matrix, before)


def same(found, expected):
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("routine", [openblas.gesdd, openblas.gesvd])
def test_what_does_not_converge_raises(routine):
    matrix = np.full((40, 40), np.nan)

    with pytest.raises(np.linalg.LinAlgError, match="did not converge"):
        routine(matrix)


SQUARE, LARGE = random(1000, 1000), random(3000, 3000)
WORK = {
    "gemm": lambda: openblas.gemm(1, LARGE, LARGE),
    "syrk": lambda: openblas.syrk(LARGE, np.zeros((3000, 3000), order="F")),
    "syevd": lambda: openblas.syevd(SQUARE),
    "syevr": lambda: openblas.syevr(SQUARE, 300),
    "gesdd": lambda: openblas.gesdd(SQUARE),
    "gesvd": lambda: openblas.gesvd(SQUARE),
    "thin QR": lambda: thin_qr(torch.from_numpy(LARGE[:, :1200])),
    "pivots": lambda: qr_pivots(torch.from_numpy(SQUARE), 200),
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_other_threads_go_on_meanwhile(work):
    ended, ticks = threading.Event(), []

    def tick():
        while not ended.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    clock = threading.Thread(target=tick)
    clock.start()
    try:
        before = len(ticks)
        work()
        heard = len(ticks) - before
    finally:
        ended.set()
        clock.join()

    # A routine that kept the lock would let one or two through, as it begins and as it ends.
    assert heard > 8
