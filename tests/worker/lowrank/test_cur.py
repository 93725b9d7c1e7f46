"""worker.lowrank.cur: columns and rows of the weight itself, and the best fit to them."""

import math

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import error, gaussian, optimum, spectrum, with_spectrum
from tests.worker.lowrank.requests import asked
from worker.lowrank import SELECTORS, cur, cx, factor, relative_error, svd
from worker.lowrank.lstsq import PseudoInverse

SHAPES = [(1, 9), (9, 1), (40, 40), (90, 24), (24, 90)]
SPECTRA = [
    "slow",
    "fast",
    "one outlier",
    "rank 3 and noise 1e-3",
    "rank 3 and noise 1e-6",
    "graded over 1e-12",
]
PIVOTED = [selector for selector in SELECTORS if selector not in ("leverage", "linear_time")]
ORDER = [("svd", "two"), ("cx", "two"), ("cur", "two"), ("cur", "three")]


def errors(weight, rank, selector, dtype):
    """Return the relative errors of the four layouts, in the order the theory gives them."""
    return [
        factor(
            weight,
            asked(method=method, rank=rank, max_rank=99, dtype=dtype, selector=selector, storage=storage),
        ).relative_error
        for method, storage in ORDER
    ]


def low_rank(kind, *, rank=12):
    """Return a float32 matrix of exactly this numerical rank, with some rows or columns that add nothing."""
    rows, columns = {"tall": (200, 140), "square": (140, 140)}.get(kind, (140, 200))
    weight = gaussian(rows, rank, seed=1) @ gaussian(rank, columns, seed=2)
    if kind == "duplicates":
        weight[:, 1::2] = weight[:, ::2].clone()
        weight[1::2] = weight[::2].clone()
    elif kind == "zeros":
        weight[:, ::3], weight[::4] = 0, 0
    return weight.float()


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("kind", ["tall", "wide", "square", "duplicates", "zeros"])
def test_a_rank_above_the_numerical_rank_loses_nothing(kind, selector):
    weight = low_rank(kind)
    # Columns and rows that were drawn may be nearly dependent, which costs digits of float32.
    limit = 1e-6 if selector in PIVOTED else 1e-4
    for rank in (13, 24, 70):
        by_columns, by_both = (method(weight, rank, selector=selector) for method in (cx, cur))

        assert relative_error(weight, svd(weight, rank).factors) < 1e-6
        assert relative_error(weight, by_columns.factors) < limit
        assert relative_error(weight, by_both.factors) < limit


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_public_functions_are_what_a_job_runs(selector):
    weight = low_rank("wide")
    for rank in (5, 24):
        chosen = {"selector": selector}
        for name, found in (
            ("svd", svd(weight, rank)),
            ("cx", cx(weight, rank, **chosen)),
            ("cur", cur(weight, rank, **chosen)),
        ):
            job = factor(weight, asked(name, rank, 140, None, **chosen))

            assert all(map(torch.equal, found.factors, job.factors))


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_svd_errs_no_more_than_cx_and_cx_no_more_than_cur(shape, selector):
    for name in SPECTRA if min(shape) > 1 else ["slow"]:
        weight = torch.from_numpy(with_spectrum(*shape, spectrum(name, min(shape))))
        for rank in {1, max(1, min(shape) // 3)}:
            svd_error, cx_error, cur_error, _ = errors(weight, rank, selector, torch.float64)

            assert svd_error <= cx_error * (1 + 1e-9) + 1e-14
            assert cx_error <= cur_error * (1 + 1e-9) + 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPECTRA)
def test_rounding_u_or_x_to_a_narrow_dtype_does_no_great_harm(name, dtype):
    weight = torch.from_numpy(with_spectrum(60, 48, spectrum(name, 48))).to(dtype)
    for selector in SELECTORS:
        reached = errors(weight, 24, selector, dtype)
        exact = errors(weight, 24, selector, torch.float64)

        # Without taming U, bfloat16 would err by more than ‖W‖ itself here.
        assert max(reached) <= max(exact) + 4 * math.sqrt(torch.finfo(dtype).eps)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_columns_and_rows_are_stored_bit_for_bit(dtype, selector):
    weight = gaussian(30, 20).to(dtype)
    for storage in ("two", "three"):
        request = asked(method="cur", rank=6, max_rank=20, dtype=dtype, selector=selector, storage=storage)
        found = factor(weight, request)

        assert torch.equal(found.factors[-1], weight[:, list(found.columns)])
        if storage == "three":
            assert torch.equal(found.factors[0], weight[list(found.rows)])
    by_columns = factor(weight, asked(method="cx", rank=6, max_rank=20, dtype=dtype, selector=selector))
    assert torch.equal(by_columns.factors[-1], weight[:, list(by_columns.columns)])
    assert by_columns.columns == found.columns
    assert by_columns.rows is None


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("shape", [(40, 40), (90, 24), (24, 90)], ids=str)
def test_cx_and_cur_are_the_least_squares_fit_to_what_they_chose(shape, selector):
    weight = gaussian(*shape)
    matrix = weight.numpy()
    by_columns, by_both = cx(weight, 7, selector=selector), cur(weight, 7, selector=selector)
    c, r = matrix[:, by_both.columns], matrix[list(by_both.rows)]
    c_inverse, r_inverse = np.linalg.pinv(c), np.linalg.pinv(r)

    np.testing.assert_allclose(by_columns.x, c_inverse @ matrix, atol=1e-12)
    np.testing.assert_allclose(by_both.u, c_inverse @ matrix @ r_inverse, atol=1e-12)
    assert by_columns.c.shape == (shape[0], 7)
    assert by_both.r.shape == (7, shape[1])
    assert relative_error(weight, by_both.factors) == pytest.approx(
        error(matrix, by_both.factors) / np.linalg.norm(matrix), rel=1e-12
    )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_scaling_the_weight_changes_no_choice_and_no_error(dtype, scale):
    weight = torch.from_numpy(with_spectrum(40, 30, spectrum("slow", 30))).to(dtype)
    power = 2.0 ** round(math.log2(scale))
    for method, storage in ORDER:
        request = asked(method=method, rank=9, max_rank=30, dtype=dtype, storage=storage)
        here, there = factor(weight, request), factor(weight * power, request)

        assert there.relative_error == pytest.approx(here.relative_error, rel=1e-5)
        assert (there.columns, there.rows) == (here.columns, here.rows)


@pytest.mark.parametrize("selector", PIVOTED)
def test_cur_of_the_transpose_swaps_rows_and_columns(selector):
    weight = torch.from_numpy(with_spectrum(40, 25, spectrum("slow", 25)))
    straight, transposed = cur(weight, 6, selector=selector), cur(weight.T, 6, selector=selector)

    assert (transposed.rows, transposed.columns) == (straight.columns, straight.rows)
    torch.testing.assert_close(transposed.u, straight.u.T)


@pytest.mark.parametrize("selector", PIVOTED)
@pytest.mark.parametrize("shape", [(40, 25), (150, 330)], ids=str)
def test_where_a_column_stands_does_not_matter(shape, selector):
    weight = torch.from_numpy(with_spectrum(*shape, spectrum("slow", min(shape))))
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randperm(side, generator=generator) for side in shape)
    straight = cur(weight, 12, selector=selector)
    shuffled = cur(weight[rows][:, columns], 12, selector=selector)

    assert sorted(columns[list(shuffled.columns)].tolist()) == list(straight.columns)
    assert sorted(rows[list(shuffled.rows)].tolist()) == list(straight.rows)


@pytest.mark.parametrize("selector", PIVOTED)
@pytest.mark.parametrize("name", ["slow", "fast"])
def test_pivoted_choices_come_within_twice_the_optimum(name, selector):
    matrix = with_spectrum(80, 60, spectrum(name, 60))
    found = cx(torch.from_numpy(matrix), 12, selector=selector)

    assert error(matrix, found.factors) < 2 * optimum(matrix, 12)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in [*SHAPES, (160, 400)]),
        *(((90, 24), dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
    ],
    ids=str,
)
def test_osinsky_is_within_the_root_of_k_plus_1_in_any_dtype(shape, name, dtype):
    weight = torch.from_numpy(with_spectrum(*shape, spectrum(name, min(shape)))).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for rank in {1, max(1, min(shape) // 8), max(1, min(shape) // 3)}:
        request = asked(method="cx", rank=rank, max_rank=99, dtype=wide, selector="osinsky")
        found = factor(weight, request)

        promised = math.sqrt(rank + 1) * found.optimal_error * (1 + 1e-4)
        assert found.relative_error <= promised + 10 * torch.finfo(wide).eps


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(
    "weight",
    [torch.zeros(6, 9), torch.ones(6, 9), torch.eye(6, 9) * torch.tensor([1.0, 0, 0, 0, 0, 0])[:, None]],
    ids=["zero", "all ones", "one entry"],
)
def test_as_many_distinct_indices_are_chosen_as_asked_even_beyond_the_rank(weight, selector):
    for rank in (1, 3, 6):
        found = cur(weight, rank, selector=selector)

        for indices, limit in ((found.columns, 9), (found.rows, 6)):
            assert len(set(indices)) == rank
            assert sorted(indices) == list(indices)
            assert set(indices) <= set(range(limit))
        assert relative_error(weight, found.factors) < (1e-6 if rank == 6 or weight.min() == 1 else 1.1)


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_seed_decides_all_that_chance_decides(selector):
    weight = torch.from_numpy(with_spectrum(50, 40, spectrum("slow", 40)))
    torch.manual_seed(1)
    once = cur(weight, 8, selector=selector, seed=3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again = cur(weight, 8, selector=selector, seed=3)
    others = {cur(weight, 8, selector=selector, seed=seed).columns for seed in range(4)}

    assert (again.columns, again.rows) == (once.columns, once.rows)
    assert torch.equal(again.u, once.u)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (len(others) > 1) == (selector in ("leverage", "linear_time"))


@pytest.mark.parametrize("selector", ["leverage", "linear_time"])
def test_rows_are_drawn_independently_of_columns(selector):
    half = gaussian(40, 40)
    found = cur(half + half.T, 8, selector=selector)

    assert found.rows != found.columns


@pytest.mark.parametrize(("selector", "weight_of_0"), [("leverage", 0.5), ("linear_time", 0.2)])
def test_sampling_draws_by_the_weights_of_its_paper(selector, weight_of_0):
    # Column 0 is alone in its direction: one of two singular vectors, but a fifth of the squared norms.
    weight = torch.zeros(3, 30, dtype=torch.float64)
    weight[0, 0] = 1.0
    weight[1, 1:] = 2 / math.sqrt(29)
    drawn = [cx(weight, 2, selector=selector, seed=seed).columns for seed in range(300)]
    other = (1 - weight_of_0) / 29
    expected = weight_of_0 + 29 * other * weight_of_0 / (1 - other)  # Drawn first, or second.

    assert sum(0 in columns for columns in drawn) / len(drawn) == pytest.approx(expected, abs=0.08)


def test_a_fit_that_does_not_converge_is_an_arithmetic_error():
    beyond_lapack = torch.full((6, 3), math.nan)

    with pytest.raises(ArithmeticError, match="did not converge by any method"):
        PseudoInverse.of(beyond_lapack, 0)


@pytest.mark.parametrize("method", [cx, cur])
def test_cx_and_cur_refuse_what_they_cannot_do(method):
    with pytest.raises(ValueError, match="selector must be one of qdeim, deim, cpqr, osinsky"):
        method(torch.ones(4, 6), 2, selector="best")
    with pytest.raises(ValueError, match="rank must lie between"):
        method(torch.ones(4, 6), 5)
    with pytest.raises(ValueError, match="seed must be"):
        method(torch.ones(4, 6), 2, seed=-1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        method(torch.full((4, 6), math.inf), 2)
