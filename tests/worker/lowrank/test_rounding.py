"""worker/lowrank/rounding.py: integers and scales are right, and feedback lowers the error of the outputs."""

import pytest
import torch

from worker.lowrank import Grid, Statistics, output_error, relative_error, round_nearest, round_weight

GRIDS = [Grid(8, None, torch.float32), Grid(4, 64, torch.float32), Grid(3, 32, torch.float32)]


def correlated(gaussian, n, *, samples=1000, decay=1.0):
    """Return a Gram matrix of correlated inputs whose sizes span some decades."""
    mixed = gaussian(samples, n) @ gaussian(n, n) * torch.logspace(0, -decay, n)
    return (mixed.mT @ mixed).double()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"int{grid.bits}")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_weight_is_rounded_to_integers_of_its_grid(grid, dtype, calibrated, gaussian):
    weight = gaussian(40, 192).to(dtype)
    statistics = Statistics(gram=correlated(gaussian, 192)) if calibrated else None
    untouched = weight.clone()

    rounded = round_weight(weight, grid, statistics)

    assert torch.equal(weight, untouched)
    assert rounded.values.dtype == torch.int8
    assert -(2 ** (grid.bits - 1)) <= int(rounded.values.min()) < 0 < int(rounded.values.max())
    assert int(rounded.values.max()) < 2 ** (grid.bits - 1)
    assert rounded.scale.shape == (40, 192 // (grid.group or 192))
    assert relative_error(weight, (rounded.dense(),)) < {8: 0.02, 4: 0.3, 3: 0.6}[grid.bits]
    again = round_weight(weight, grid, statistics)
    assert torch.equal(rounded.values, again.values)
    assert torch.equal(rounded.scale, again.scale)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"int{grid.bits}")
def test_without_statistics_the_search_is_never_worse_than_taking_the_largest_entry_in(grid, gaussian):
    for _ in range(5):
        weight = gaussian(30, 128) ** 3
        nearest = relative_error(weight, (round_nearest(weight, grid).dense(),))
        assert relative_error(weight, (round_weight(weight, grid).dense(),)) <= nearest


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"int{grid.bits}")
@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("samples", [1000, 60])
def test_feedback_lowers_the_error_of_the_outputs(grid, decay, samples, gaussian):
    weight, gram = gaussian(64, 192), correlated(gaussian, 192, samples=samples, decay=decay)

    plain, fed = round_weight(weight, grid), round_weight(weight, grid, Statistics(gram=gram))

    before, after = (output_error(weight, (found.dense(),), gram) for found in (plain, fed))
    assert after < 0.9 * before


def test_feedback_finds_what_rounding_one_column_after_another_finds(gaussian):
    """OBQ as published: with U the upper Cholesky factor of H⁻¹, column by column, without blocks.

    The columns are in descending order of the diagonal, each with the scale of its group in the weight.
    """
    weight, gram = gaussian(9, 320).double(), correlated(gaussian, 320)
    order = gram.diagonal().argsort(descending=True)
    ridged = (gram + 0.01 * gram.diagonal().mean() * torch.eye(320))[order][:, order]
    upper = torch.linalg.cholesky(torch.linalg.inv(ridged), upper=True)
    rounded = round_weight(weight, Grid(4, 32, torch.float32), Statistics(gram=gram))
    scale = rounded.scale.double().repeat_interleave(32, 1)[:, order]

    left, expected = weight[:, order], torch.empty_like(weight)
    for j in range(320):
        expected[:, j] = (left[:, j] / scale[:, j]).round().clamp(-8, 7)
        error = (left[:, j] - expected[:, j] * scale[:, j]) / upper[j, j]
        left[:, j:] -= error[:, None] * upper[j, j:]

    # An entry half way between two integers may fall to either side in float32.
    assert float((rounded.values[:, order] == expected).double().mean()) > 0.98


def test_a_mean_says_that_errors_along_it_do_not_matter(gaussian):
    weight, mean = gaussian(64, 128), 3 * gaussian(128)
    inputs = gaussian(500, 128) * 0.1 + mean
    gram, mean, count = (inputs.mT @ inputs).double(), inputs.mean(0).double(), 500.0
    centred = gram - count * torch.outer(mean, mean)
    grid = Grid(3, 32, torch.float32)

    plain = round_weight(weight, grid, Statistics(gram=gram))
    corrected = round_weight(weight, grid, Statistics(gram=gram, mean=mean, count=count))

    before, after = (output_error(weight, (found.dense(),), centred) for found in (plain, corrected))
    assert after < before


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"int{grid.bits}")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda gram: gram.zero_(),
        lambda gram: gram[:64].zero_() + gram[:, :64].zero_().mT,  # a whole group of dead inputs
        lambda gram: gram.mul_(1e250),
        lambda gram: gram.mul_(1e-250),
        lambda gram: gram.mul_(torch.logspace(-8, 8, 128).outer(torch.logspace(-8, 8, 128))),
        lambda gram: gram.diagonal().sub_(1e-6 * gram.diagonal().mean()),  # slightly indefinite
    ],
    ids=["zero", "dead", "huge", "tiny", "badly scaled", "indefinite"],
)
def test_any_gram_matrix_gives_a_finite_result(grid, spoil, gaussian):
    weight = gaussian(32, 128)
    gram = correlated(gaussian, 128, samples=20)
    spoil(gram)

    rounded = round_weight(weight, grid, Statistics(gram=gram))

    assert bool(rounded.dense().isfinite().all())
    assert relative_error(weight, (rounded.dense(),)) < {8: 0.1, 4: 0.9, 3: 2.0}[grid.bits]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"int{grid.bits}")
def test_zeros_stay_zeros(grid, gaussian):
    weight = gaussian(16, 128)
    weight[3], weight[5, :64] = 0, 0

    dense = round_weight(weight, grid, Statistics(gram=torch.eye(128))).dense()

    assert not bool(dense[3].any())
    assert not bool(dense[5, :64].any())
    assert not bool(round_weight(torch.zeros(4, 128), grid).values.any())


@pytest.mark.parametrize("grid", GRIDS[1:], ids=lambda grid: f"int{grid.bits}")
def test_groups_of_zeros_spoil_no_other_group(grid, gaussian):
    weight, gram = gaussian(16, 256), correlated(gaussian, 256)
    weight[:, 64:128] = 0
    statistics = Statistics(gram=gram)

    plain, fed = round_weight(weight, grid), round_weight(weight, grid, statistics)

    before, after = (output_error(weight, (found.dense(),), gram) for found in (plain, fed))
    assert after < 0.9 * before
    assert not bool(fed.dense()[:, 64:128].any())


@pytest.mark.parametrize(
    ("factor", "scale_dtype", "fits"),
    [
        (1e30, torch.float32, True),
        (1e-30, torch.float32, True),
        (1e-30, torch.float16, False),
        (1e7, torch.float16, False),
        (1e3, torch.float16, True),
        (1e300, torch.float32, False),
        (1e-300, torch.float32, False),
        (1e-30, torch.bfloat16, True),
    ],
)
def test_scales_out_of_range_are_no_result(factor, scale_dtype, fits, gaussian):
    weight = gaussian(8, 64).double() * factor

    rounded = round_weight(weight, Grid(4, 32, scale_dtype))

    assert (rounded is not None) is fits
    assert not fits or relative_error(weight, (rounded.dense(),)) < 0.2


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        round_weight(torch.full((2, 64), torch.nan), GRIDS[1])
