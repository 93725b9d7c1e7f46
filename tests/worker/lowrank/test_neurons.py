"""worker.lowrank.neurons: which neurons stay, and how well the weight behind them makes up for the others."""

import pytest
import torch

from worker.lowrank import Statistics
from worker.lowrank.neurons import ROUND, keep_neurons, narrow


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def loss_without(weight, gram, grad_gram, kept):
    """Return tr((W - Ŵ)ᵀF(W - Ŵ)G) of the best fit Ŵ to the kept neurons."""
    fitted = torch.zeros_like(weight)
    fitted[:, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight.T).T
    lost = weight - fitted
    return float(torch.trace(lost.T @ grad_gram @ lost @ gram))


def ridged(matrix):
    scaled = matrix / matrix.diagonal().mean()
    return scaled + 1e-2 * torch.eye(len(matrix), dtype=matrix.dtype)


def greedy(weight, gram, grad_gram, count):
    """Let go the cheapest neuron again and again, each time by trying all of them."""
    kept = list(range(len(gram)))
    while len(kept) > count:
        tries = [[i for i in kept if i != gone] for gone in kept]
        kept = min(tries, key=lambda some: loss_without(weight, gram, grad_gram, some))
    return kept


@pytest.mark.parametrize("count", [1, 5, 11])
def test_each_neuron_that_goes_is_the_cheapest_of_all(random, count):
    outputs, grads, weight = random(40, 12), random(30, 6), random(6, 12)
    gram, grad_gram = ridged(outputs.T @ outputs), ridged(grads.T @ grads)

    kept = keep_neurons(weight, gram, count, grad_gram=grads.T @ grads)

    assert kept.tolist() == greedy(weight, gram, grad_gram, count)


def test_rounds_of_many_neurons_lose_about_what_single_steps_do(random):
    inner = random(500, 60)
    outputs = torch.tanh(inner @ random(60, 400) / 8)
    gram, weight = ridged(outputs.T @ outputs), random(30, 400)
    identity = torch.eye(30, dtype=torch.float64)

    rounds = keep_neurons(weight, gram, 200)
    inverse, images, left = gram.inverse(), weight.clone(), torch.ones(400, dtype=torch.bool)
    for _ in range(200):
        costs = images.square().sum(0) / inverse.diagonal()
        costs[~left] = torch.inf
        gone = int(costs.argmin())
        share = inverse[gone] / inverse[gone, gone]
        images -= torch.outer(images[:, gone].clone(), share)
        inverse -= torch.outer(share, inverse[gone].clone())
        left[gone] = False
    single = left.nonzero()[:, 0]

    assert 2 * ROUND < 200
    one, other = (loss_without(weight, gram, identity, kept) for kept in (rounds, single))
    assert one == pytest.approx(other, rel=0.02)


def test_of_twins_one_stays_and_does_the_work_of_both(random):
    outputs = random(300, 10)
    twins = torch.cat([outputs, outputs], dim=1)  # 20 neurons, each twice
    weight = random(7, 20)
    result = narrow(weight, 10, Statistics(gram=twins.T @ twins))

    assert sorted(neuron % 10 for neuron in result.neurons) == list(range(10))
    assert result.output_error.relative < 0.01


def test_gradients_decide_which_outputs_the_neurons_are_kept_for(random):
    outputs, weight = random(200, 8), torch.zeros(2, 8, dtype=torch.float64)
    weight[0, :4], weight[1, 4:] = 1.0, 3.0
    gram = outputs.T @ outputs
    grad_gram = torch.diag(torch.tensor([1.0, 1e-4], dtype=torch.float64))

    plain = narrow(weight, 4, Statistics(gram=gram))
    weighted = narrow(weight, 4, Statistics(gram=gram, grad_gram=grad_gram, count=200.0))

    assert plain.neurons == (4, 5, 6, 7)
    assert weighted.neurons == (0, 1, 2, 3)
    assert plain.predicted_loss is None
    lost = weight.clone()
    lost[:, list(weighted.neurons)] -= weighted.weight
    assert weighted.predicted_loss == pytest.approx(
        float(torch.trace(lost.T @ grad_gram @ lost @ gram)) / 200, rel=1e-9
    )


def test_the_bias_takes_over_the_mean_of_what_is_lost(random):
    outputs = random(400, 9) * 0.1 + random(9).abs() * 5
    weight, mean = random(4, 9), outputs.mean(0)
    statistics = Statistics(gram=outputs.T @ outputs, mean=mean, count=400.0)
    result = narrow(weight, 5, statistics)
    whole = torch.zeros_like(weight)
    whole[:, list(result.neurons)] = result.weight

    torch.testing.assert_close(result.shift, (weight - whole) @ mean)
    centred = (outputs - mean) @ (weight - whole).T
    assert result.output_error.squared_error == pytest.approx(float(centred.square().sum()), rel=1e-3)
    with_bias = outputs @ whole.T + result.shift - outputs @ weight.T
    assert float(with_bias.square().sum()) == pytest.approx(float(centred.square().sum()), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_choice_does_not_depend_on_scale(random, scale, dtype):
    outputs, weight = random(50, 8), random(5, 8)
    expected = narrow(weight, 4, Statistics(gram=outputs.T @ outputs)).neurons
    factor = scale if dtype in {torch.float64, torch.bfloat16} else 1.0
    result = narrow((weight * factor).to(dtype), 4, Statistics(gram=outputs.T @ outputs * scale))

    assert result.neurons == expected
    assert result.weight.dtype == dtype


@pytest.mark.parametrize("count", [1, 10, 20])
def test_a_gram_matrix_of_low_rank_gives_finite_fits(random, count):
    outputs = random(3, 20)
    outputs[:, 7] = 0
    result = narrow(random(5, 20), count, Statistics(gram=outputs.T @ outputs))

    assert len(result.neurons) == count
    assert bool(torch.isfinite(result.weight).all())
    if count >= 3:
        assert result.output_error.relative < 0.2


def test_what_cannot_be_fitted_stays_as_it_is(random):
    outputs, weight = random(50, 8), random(5, 8)
    weight[0, 0] = torch.nan

    assert narrow(weight, 4, Statistics(gram=outputs.T @ outputs)).reason == "not_finite"
    indefinite = outputs.T @ outputs
    indefinite[0, 1] = indefinite[1, 0] = 100 * float(indefinite.diagonal().max())
    assert narrow(random(5, 8), 4, Statistics(gram=indefinite)).reason == "not_converged"
