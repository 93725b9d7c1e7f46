"""worker.lowrank.cur with a Gram matrix: the choice of columns and rows."""

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import gaussian, product
from tests.worker.lowrank.requests import asked
from tests.worker.lowrank.test_calibrated import expected_output_error, inputs
from worker.lowrank import SELECTORS, Statistics, cur, cx, factor

PIVOTED = [selector for selector in SELECTORS if selector not in ("leverage", "linear_time")]


def calibrated(weight, x, method, selector, *, rank=12, gram=None):
    gram = torch.from_numpy(x @ x.T) if gram is None else gram
    request = asked(
        method, rank, max_rank=40, dtype=weight.dtype, selector=selector, statistics=Statistics(gram=gram)
    )
    return factor(weight, request)


def sized_inputs(n, *, seed=2):
    """Return inputs of which a few are far larger than the others, as in language models, and correlated."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0]
    x = turn @ (rng.standard_normal((n, 4 * n)) * (np.arange(1, n + 1) ** -0.5)[:, None])
    sizes = np.exp(rng.standard_normal(n))
    sizes[rng.choice(n, n // 10, replace=False)] *= 15
    return sizes[:, None] * x


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(("m", "n"), [(60, 80), (80, 60)])
def test_columns_and_rows_for_the_inputs_give_better_outputs_than_those_of_the_weight_alone(m, n, selector):
    weight, x = gaussian(m, n), sized_inputs(n)
    exact = weight.numpy()
    for method, alone in (("cx", cx), ("cur", cur)):
        mine = calibrated(weight, x, method, selector)
        plain = product(alone(weight, 12, selector=selector).factors)

        assert expected_output_error(exact, product(mine.factors), x) < 0.9 * expected_output_error(
            exact, plain, x
        )


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_identity_chooses_as_no_calibration_does(selector):
    weight = gaussian(40, 50)
    mine = calibrated(weight, None, "cur", selector, gram=torch.eye(50, dtype=torch.float64))
    plain = cur(weight, 12, selector=selector)

    assert (mine.columns, mine.rows) == (plain.columns, plain.rows)


@pytest.mark.parametrize("selector", PIVOTED)
@pytest.mark.parametrize("kind", ["anisotropic", "correlated", "few samples", "dead inputs", "tiny", "huge"])
def test_choices_are_distinct_and_no_better_than_the_optimum_for_any_inputs(kind, selector):
    weight, x = gaussian(40, 60), inputs(60, kind)
    for rank in (3, 20):
        by_columns, by_both = (calibrated(weight, x, each, selector, rank=rank) for each in ("cx", "cur"))

        assert len(set(by_columns.columns)) == len(set(by_both.rows)) == rank
        assert by_both.columns == by_columns.columns
        least = by_columns.output_error.optimal_error * (1 - 1e-6)
        assert (
            least
            <= by_columns.output_error.relative_error
            <= by_both.output_error.relative_error * (1 + 1e-6) + 1e-9
        )


@pytest.mark.parametrize("selector", PIVOTED)
def test_columns_of_dead_inputs_are_left_where_they_are(selector):
    weight, x = gaussian(40, 60), inputs(60, "dead inputs")
    alive = set(np.flatnonzero(np.arange(60) % 3 != 1))

    assert set(calibrated(weight, x, "cx", selector).columns) <= alive
