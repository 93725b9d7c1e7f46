"""worker/lowrank/norms.py: norms are those of the singular values, and one of them is an upper bound."""

import pytest
import torch

from worker.lowrank import Statistics, WeightedNorms

CPU = torch.device("cpu")


def gram_of(vectors):
    return vectors.mT @ vectors


def root(gram):
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0).sqrt()


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (1, 40)])
@pytest.mark.parametrize("sides", ["", "inputs", "outputs", "both", "centred"])
@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30])
@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_norms_are_those_of_the_weighted_singular_values(shape, sides, size, decay, gaussian):
    (m, n), count = shape, 200.0
    matrix = gaussian(m, n).double() * torch.logspace(0, -decay, n) * size
    inputs = gaussian(200, n).double() * torch.logspace(0, -decay, n) + 1
    gram, grad_gram = gram_of(inputs), gram_of(gaussian(200, m).double() * torch.logspace(0, -decay, m))
    statistics, left, right = None, torch.eye(m).double(), torch.eye(n).double()
    if sides:
        statistics = Statistics(
            gram=None if sides == "outputs" else gram,
            grad_gram=grad_gram if sides in {"outputs", "both"} else None,
            mean=inputs.mean(0) if sides == "centred" else None,
            count=count,
        )
    if sides in {"outputs", "both"}:
        left = root(grad_gram / (count if sides == "both" else 1.0))
    if sides in {"inputs", "both", "centred"}:
        mean = inputs.mean(0)
        right = root(gram - count * torch.outer(mean, mean) if sides == "centred" else gram)
    values = torch.linalg.svdvals(left.mT @ (matrix / size) @ right)
    frobenius, schatten4 = (norm / size for norm in WeightedNorms(statistics, CPU).of(matrix))

    assert frobenius == pytest.approx(float(values.square().sum().sqrt()), rel=1e-5)
    assert float(values.pow(4).sum() ** 0.25) <= schatten4
    assert schatten4 == pytest.approx(float(values.pow(4).sum() ** 0.25), rel=1e-3)


def test_the_zero_matrix_has_no_norm():
    statistics = Statistics(gram=torch.eye(4).double())

    assert WeightedNorms(None, CPU).of(torch.zeros(3, 4)) == (0, 0)
    assert WeightedNorms(statistics, CPU).of(torch.zeros(3, 4)) == (0, 0)


def test_a_matrix_is_not_changed(gaussian):
    matrix = gaussian(5, 6).double()
    before = matrix.clone()
    WeightedNorms(Statistics(gram=torch.eye(6).double()), CPU).of(matrix)

    assert torch.equal(matrix, before)
