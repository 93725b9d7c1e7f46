"""schemas/spectrum_rank.py: how many singular values stand out of noise of unknown size."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from schemas.spectrum_rank import auto_rank, hard_threshold_factor, marchenko_pastur_median

RULES = ["hard_threshold", "vbmf"]
# Gavish and Donoho 2014, table IV.
PUBLISHED = {0.05: 1.5194, 0.1: 1.6089, 0.2: 1.7650, 0.3: 1.9061, 0.5: 2.1711, 0.75: 2.5011, 1.0: 2.8582}


def spectrum(m, n, *signals, noise=1.0, seed=0):
    """Return the singular values of Gaussian noise and of signals, these in units of the noise's largest."""
    rng = np.random.default_rng(seed)
    edge = noise * (math.sqrt(m) + math.sqrt(n)) or 1.0
    left, right = (np.linalg.qr(rng.standard_normal((side, len(signals))))[0] for side in (m, n))
    weight = noise * rng.standard_normal((m, n)) + left * (edge * np.array(signals)) @ right.T
    return np.linalg.svd(weight, compute_uv=False).tolist()


@pytest.mark.parametrize("ratio", PUBLISHED)
def test_the_factor_of_the_median_is_the_published_one(ratio):
    assert hard_threshold_factor(ratio) == pytest.approx(PUBLISHED[ratio], abs=4e-4)


@pytest.mark.parametrize("ratio", [1e-4, 0.05, 0.3, 0.9, 0.9999, 1.0])
def test_half_of_the_squared_singular_values_of_noise_are_below_the_median(ratio):
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2

    def density(t):
        return math.sqrt(max((high - t) * (t - low), 0)) / (2 * math.pi * ratio * t)

    median = marchenko_pastur_median(ratio)
    assert low < median < high
    share, _ = scipy.integrate.quad(density, median, high, epsabs=1e-10)
    assert share == pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(200, 200), (100, 400), (400, 100), (50, 800), (384, 96)])
@pytest.mark.parametrize("rank", [0, 1, 7, 20])
def test_strong_signals_in_noise_are_counted(rule, shape, rank):
    strengths = np.linspace(1.5, 10, rank)

    assert auto_rank(rule, spectrum(*shape, *strengths), shape) == rank


@pytest.mark.parametrize("rule", RULES)
def test_the_rank_depends_neither_on_the_scale_nor_on_the_orientation(rule):
    values = spectrum(120, 60, *np.linspace(0.5, 5, 30))
    expected = auto_rank(rule, values, (120, 60))

    assert 0 < expected < 31
    assert auto_rank(rule, values, (60, 120)) == expected
    for scale in (1e-200, 1e-3, 1e150):
        assert auto_rank(rule, [value * scale for value in values], (120, 60)) == expected


@pytest.mark.parametrize("rule", RULES)
def test_a_matrix_of_low_rank_without_noise_has_its_rank(rule):
    values = spectrum(80, 50, *np.linspace(1, 3, 5), noise=0.0)

    assert auto_rank(rule, values, (80, 50)) == 5
    assert auto_rank(rule, [*values[:5], *[0.0] * 45], (80, 50)) == 5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("values", "shape"), [([], (0, 5)), ([0.0, 0.0], (2, 9)), ([3.0], (1, 7)), ([1.0] * 64, (64, 64))]
)
def test_nothing_stands_out_of_nothing_or_of_equal_values(rule, values, shape):
    assert auto_rank(rule, values, shape) == 0


def test_more_signals_than_noise_are_for_vbmf_and_a_rectangular_weight():
    """The median is a signal. vbmf sees up to 1/(1 + β) of all values as signals, here 80 of 100."""
    values = spectrum(400, 100, *np.linspace(5, 9, 60))

    assert auto_rank("hard_threshold", values, (400, 100)) < 60
    assert auto_rank("vbmf", values, (400, 100)) == 60


@pytest.mark.parametrize("shape", [(60, 60), (40, 90), (30, 300)])
@pytest.mark.parametrize("seed", range(4))
def test_vbmf_is_where_the_published_free_energy_is_least(shape, seed):
    """The free energy of Nakajima et al. 2013, written out per component and searched on a fine grid."""
    rows, columns = sorted(shape)
    values = np.array(spectrum(*shape, *np.linspace(0.4, 2 + seed, 8 * seed), seed=seed))
    alpha = rows / columns
    tau_least = scipy.optimize.brentq(
        lambda tau: np.log(tau + 1) / tau + alpha * np.log(tau / alpha + 1) / tau - 1, 1e-9, 1e3
    )
    x_least = (1 + tau_least) * (1 + alpha / tau_least)

    def free_energy(variance):
        x = values**2 / (columns * variance)
        signal = x > x_least
        excess = x[signal] - 1 - alpha
        tau = (excess + np.sqrt(excess**2 - 4 * alpha)) / 2
        gain = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
        return float((x - np.log(x)).sum() + gain.sum())

    mean = float((values**2).mean()) / columns
    grid = np.geomspace(mean / 100, mean, 20_000)
    # Theorem 3: at least a share of the directions is noise.
    most = math.ceil(rows / (1 + alpha)) - 1
    grid = grid[grid >= max(values[most] ** 2 / (columns * x_least), (values[most:] ** 2).mean() / columns)]
    variance = grid[np.argmin([free_energy(one) for one in grid])]

    expected = int((values**2 > columns * variance * x_least).sum())
    assert auto_rank("vbmf", values.tolist(), shape) == expected


@pytest.mark.parametrize("rule", RULES)
def test_a_value_within_rounding_of_the_threshold_is_left_to_a_better_solver(rule):
    values = spectrum(100, 100, *np.linspace(0.7, 3, 20))
    rank = auto_rank(rule, values, (100, 100))

    assert auto_rank(rule, values, (100, 100), roundoff=1e-14) == rank
    assert auto_rank(rule, values, (100, 100), roundoff=0.1) is None
