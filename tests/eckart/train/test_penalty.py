"""Penalties: their values by formula, their gradients by torch's own, and what they do to singular values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from eckart import InputError
from eckart.torch import load_compressed
from eckart.train import LowRankPenalty, nuclear_norm
from tests.eckart.torch.factoring import compress

SHAPES = [(7, 7), (12, 5), (5, 12), (1, 6), (6, 1)]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Conv2d(4, 6, 3, bias=False), nn.LayerNorm(3), Conv1D(5, 7))


def singular_values(matrix):
    return torch.linalg.svdvals(matrix.detach())


# The norm.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_those_of_the_singular_values(shape, dtype):
    ours, theirs = (normal(*shape, dtype=dtype).requires_grad_() for _ in range(2))
    norm, reference = nuclear_norm(ours), torch.linalg.svdvals(theirs).sum()
    torch.autograd.backward([norm, reference])
    torch.testing.assert_close(norm, reference)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 3),
        torch.eye(4),
        torch.outer(torch.arange(4.0), torch.arange(3.0)),
        torch.ones(3, 3) * 1e-20,
        torch.ones(3, 3) * 1e18,
    ],
    ids=["zeros", "equal values", "rank one", "tiny", "huge"],
)
def test_equal_and_vanishing_singular_values_do_no_harm(weight):
    weight = weight.clone().requires_grad_()
    torch.autograd.backward(nuclear_norm(weight))
    u, s, vh = torch.linalg.svd(weight.detach(), full_matrices=False)
    kept = s > 1e-6 * s[0]
    torch.testing.assert_close(weight.grad, u[:, kept] @ vh[kept], atol=1e-6, rtol=1e-5)


def test_the_gradient_is_that_of_a_difference_quotient():
    assert torch.autograd.gradcheck(nuclear_norm, normal(6, 4, dtype=torch.float64).requires_grad_())


# The penalties.


def test_each_kind_is_its_formula():
    network = model()
    matrices = [network[0].weight, network[1].weight.flatten(1), network[3].weight]
    sums = [singular_values(matrix).sum() for matrix in matrices]
    torch.testing.assert_close(LowRankPenalty(network)(), sum(sums))
    hoyer = sum(s**2 / matrix.square().sum() for s, matrix in zip(sums, matrices, strict=True))
    torch.testing.assert_close(LowRankPenalty(network, kind="hoyer")(), hoyer)


@pytest.fixture
def factored(tmp_path):
    network = model()[:1]
    return load_compressed(network, compress(network, tmp_path / "x.safetensors", "0")[0])


def test_the_factors_bound_the_nuclear_norm_and_meet_it_where_they_are_balanced(factored):
    layer = factored[0]
    bound = LowRankPenalty(factored, kind="factors")
    by_formula = (layer[0].weight.square().sum() + layer[1].weight.square().sum()) / 2
    torch.testing.assert_close(bound(), by_formula)
    assert bound() >= LowRankPenalty(factored)() - 1e-5
    u, s, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    rank = layer[0].weight.shape[0]
    with torch.no_grad():
        layer[0].weight.copy_(s[:rank, None].sqrt() * vh[:rank])
        layer[1].weight.copy_(u[:, :rank] * s[:rank].sqrt())
    torch.testing.assert_close(bound(), LowRankPenalty(factored)())


@pytest.mark.parametrize("matrix_rank", [1, 3, 6])
def test_hoyer_is_the_rank_of_equal_singular_values_and_knows_no_scale(matrix_rank):
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.arange(6) < matrix_rank))
    penalty = LowRankPenalty(nn.Sequential(layer), kind="hoyer")
    torch.testing.assert_close(penalty(), torch.tensor(float(matrix_rank)))
    with torch.no_grad():
        layer.weight.mul_(1e-3)
    torch.testing.assert_close(penalty(), torch.tensor(float(matrix_rank)))


def test_a_layer_of_zeros_has_no_penalty():
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    for kind in ("nuclear", "hoyer"):
        value = LowRankPenalty(nn.Sequential(layer), kind=kind)()
        torch.autograd.backward(value)
        assert value == 0
        assert torch.all(layer.weight.grad == 0)


@pytest.mark.parametrize(("kind", "factor"), [("nuclear", 0.02), ("hoyer", 0.2)])
def test_training_with_a_penalty_leaves_fewer_singular_values(kind, factor):
    """A teacher of rank 2 with noise: plain training keeps the start's full rank, a penalty does not."""
    teacher = normal(16, 2) @ normal(2, 16, seed=1)
    inputs = normal(24, 16, seed=2)
    outputs = inputs @ teacher.T + 0.1 * normal(24, 16, seed=3)

    def energy_beyond_two(factor):
        torch.manual_seed(0)
        student = nn.Linear(16, 16, bias=False)
        penalty = LowRankPenalty(nn.Sequential(student), kind=kind)
        descent = torch.optim.Adam(student.parameters(), lr=0.02)
        for _ in range(300):
            descent.zero_grad()
            torch.autograd.backward((student(inputs) - outputs).square().mean() + factor * penalty())
            descent.step()
        squares = singular_values(student.weight).square()
        return (squares[2:].sum() / squares.sum()).item()

    assert energy_beyond_two(factor) < 0.5 * energy_beyond_two(0.0)


# Which layers.


def test_patterns_choose_layers():
    assert LowRankPenalty(model()).layers == ("0", "1", "3")
    assert LowRankPenalty(model(), include=["[01]"], exclude=["0"]).layers == ("1",)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"include": ["nothing"]}, "no linear layer"),
        ({"kind": "factors"}, "no layer of factors"),
        ({"kind": "l1"}, "kind must be one of nuclear, hoyer, factors"),
    ],
)
def test_what_cannot_be_penalized_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        LowRankPenalty(model(), **options)
