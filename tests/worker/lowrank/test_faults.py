"""worker.lowrank.faults: what no layer's statistics can be, each with its remedy."""

import math

import pytest
import torch

from tests.worker.lowrank.matrices import gaussian
from tests.worker.lowrank.test_calibrated import KINDS, inputs
from worker.lowrank import count_fault, grad_gram_fault, gram_fault, mean_fault
from worker.lowrank.faults import TOLERANCE


def spoiled(**changes):
    gram = torch.from_numpy(inputs(12, "correlated") @ inputs(12, "correlated").T)
    for place, value in changes.items():
        row, column = map(int, place.removeprefix("at_").split("_"))
        gram[row, column] = value
    return gram


@pytest.mark.parametrize(
    ("gram", "words"),
    [
        (torch.eye(3)[:2], "no square matrix"),
        (torch.ones(3), "no square matrix"),
        (torch.empty(0, 0), "no square matrix"),
        (torch.eye(3, dtype=torch.float16), "float32 or float64"),
        (torch.eye(3, dtype=torch.int64), "float32 or float64"),
        (spoiled(at_3_4=math.nan), "NaN"),
        (spoiled(at_0_0=math.inf), "NaN or infinity"),
        (spoiled(at_3_4=0.0), "not symmetric"),
        (spoiled().triu(), "not symmetric"),
        (spoiled(at_3_3=-1.0), "not positive"),
        (-spoiled(), "not positive"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "not positive"),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0]]), "not positive"),
        (torch.linalg.inv(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "not positive"),
        (spoiled() - 30 * torch.eye(12), "not positive"),
        (torch.zeros(4, 4), "zeros alone"),
        (torch.full((2, 2), 1e250, dtype=torch.float64), "out of range"),
        (torch.full((2, 2), 1e-250, dtype=torch.float64), "out of range"),
    ],
)
def test_what_is_no_gram_matrix_is_refused_with_its_remedy(gram, words):
    for check, vectors in ((gram_fault, "input"), (grad_gram_fault, "gradient")):
        fault = check(gram)

        assert fault is not None
        assert words in fault
        assert vectors in fault or "NaN" in fault
        assert any(verb in fault for verb in ("store", "leave out", "run batches", "scale"))


@pytest.mark.parametrize("kind", [*KINDS, "tiny", "huge"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gram_matrix_that_rounding_has_touched_is_none_the_worse(kind, dtype):
    x = torch.from_numpy(inputs(60, kind)).to(dtype)

    assert gram_fault(x @ x.T) is None
    assert gram_fault((x @ x.T) * (1 + 0.1 * TOLERANCE * gaussian(60, 60).to(dtype).clamp(-3, 3))) is None


@pytest.mark.parametrize("count", [0.0, -3.0, math.nan, math.inf])
def test_what_is_no_count_is_refused(count):
    assert "store the number of tokens" in count_fault(count)
    assert count_fault(1.0) is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda mean: mean[:3], "vector of 12"),
        (lambda mean: mean[None], "vector of 12"),
        (lambda mean: mean.half(), "float32 or float64"),
        (lambda mean: mean * math.nan, "NaN"),
        (lambda mean: 48 * mean, "the mean, and not the sum"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_no_mean_of_these_inputs_is_refused(spoil, words, dtype):
    x = torch.from_numpy(inputs(12, "correlated")).to(dtype)
    mean, gram, count = x.mean(1), x @ x.T, float(x.shape[1])

    assert mean_fault(mean, gram, count) is None
    assert words in mean_fault(spoil(mean), gram, count)


def test_the_mean_of_inputs_that_never_change_is_none_the_worse():
    x = torch.ones(5, 4000) * torch.tensor([[1.0], [0.0], [1e-3], [300.0], [7.0]])

    assert mean_fault(x.mean(1), x @ x.T, 4000.0) is None
