"""worker/lowrank/types.py, AutoRank: jobs that find the rank in the noise, from the spec to the report."""

import pytest
import torch

from tests.worker.lowrank.requests import asked
from worker.lowrank import AutoRank, Factored, Reason, Statistics, factor

RULES = ["hard_threshold", "vbmf"]


def signals_in_noise(rows, columns, rank, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(side, rank, generator=generator) for side in (rows, columns))
    return 2 * left @ right.mT + torch.randn(rows, columns, generator=generator)


@pytest.fixture
def model(save):
    return save(
        {
            "a.weight": signals_in_noise(150, 200, 6),
            "b.weight": signals_in_noise(160, 140, 11, seed=1),
            "noise.weight": signals_in_noise(150, 140, 0, seed=2),
            "full.weight": torch.diag(torch.logspace(0, -12, 40, dtype=torch.float64)).float(),
        }
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["svd", "pivot", "cx"])
def test_a_job_finds_the_ranks_and_keeps_noise_dense(model, compress, rule, method):
    spec = {"method": method, "rank": {"auto": rule}, "exclude": ["full"]}
    report = compress(model, **spec).report

    found = {layer.name: (layer.rank, layer.reason) for layer in report.layers}
    assert found == {"a": (6, None), "b": (11, None), "noise": (None, "rank_zero")}


@pytest.mark.parametrize("rule", RULES)
def test_ranks_are_raised_to_allowed_ones_and_kept_where_none_saves(model, compress, rule):
    overrides = [
        {"match": "a", "rank": {"auto": rule}, "align": 8},
        {"match": "b", "rank": {"auto": rule}, "min_rank": 20},
        {"match": "noise", "rank": {"auto": rule}, "min_rank": 20},
        {"match": "full", "rank": {"auto": rule}, "align": 16},
    ]
    report = compress(model, rank=1, overrides=overrides).report

    found = {layer.name: (layer.rank, layer.reason) for layer in report.layers}
    assert found["a"] == (8, None)
    assert found["b"] == (20, None)
    assert found["noise"] == (None, "rank_zero")
    assert found["full"] in {(16, None), (None, "no_saving")}


@pytest.mark.parametrize("rule", RULES)
def test_a_rank_above_break_even_keeps_the_layer_dense(rule):
    weight = signals_in_noise(30, 40, 12)

    assert factor(weight, asked(rank=AutoRank(rule), max_rank=11)).reason is Reason.NO_SAVING
    assert factor(weight, asked(rank=AutoRank(rule), max_rank=12)).rank == 12


@pytest.mark.parametrize("rule", RULES)
def test_with_a_gram_matrix_the_rank_is_that_of_the_spectrum_that_is_minimized(rule):
    """Inputs in five directions only: of 20 strong signals no more than these five are seen."""
    weight = signals_in_noise(80, 100, 20)
    x = torch.zeros(100, 5, dtype=torch.float64)
    x[:5] = torch.eye(5, dtype=torch.float64)
    statistics = Statistics(gram=x @ x.mT)

    found = factor(weight, asked(rank=AutoRank(rule), max_rank=40, statistics=statistics))
    plain = factor(weight, asked(rank=AutoRank(rule), max_rank=40))

    assert isinstance(found, Factored)
    assert (found.rank, plain.rank) == (5, 20)


@pytest.mark.parametrize("rule", RULES)
def test_zeros_have_rank_zero(rule):
    assert factor(torch.zeros(20, 30), asked(rank=AutoRank(rule))).reason is Reason.RANK_ZERO
