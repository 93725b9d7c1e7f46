"""The study of the language model: its text, its network, and a small one all the way."""

import math

import pytest
import torch

from eckart import Client
from eckart.calibrate import calibrate
from examples.language.network import BYTES, Language
from examples.language.study import LAYERS, NAME, HeldOut, weight_bytes
from examples.language.text import CALIBRATION, EVALUATION, EVERY, docstrings, text
from examples.language.training import CONTEXT, fit, perplexity, trained, windows
from examples.recipes import Recipe
from examples.trial import Trial

MODULE = '''"""Module {0} of a library, whose docstring says at length what it is about, {0} times over."""

class One:
    """Class {0}."""

    def do(self):
        """Do {0} things that nobody else does."""

    def again(self):
        """Said in every file."""
'''


def small(neurons=64):
    return Language(width=32, heads=2, neurons=neurons, blocks=1)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for number in range(3 * EVERY):
        (folder / f"m{number:02}.py").write_text(MODULE.format(number))
    (folder / "old.py").write_text("print 'not Python any more'")
    (folder / "test").mkdir()
    (folder / "test" / "m.py").write_text('"""A test."""')
    return folder


@pytest.fixture(scope="module")
def network(library, tmp_path_factory):
    """Train a small network for a few steps."""
    file = tmp_path_factory.mktemp("trained") / NAME
    return trained(small(), text(library).training, file, steps=5), file


def as_text(part):
    return bytes(part.tolist()).decode()


def test_the_docstrings_are_those_of_modules_classes_and_functions(library):
    found = list(docstrings(library / "m07.py"))

    assert [one.split()[0] for one in found] == ["Module", "Class", "Do", "Said"]
    assert list(docstrings(library / "old.py")) == []


def test_no_file_and_no_docstring_is_in_two_parts(library):
    parts = text(library)
    training, calibration, evaluation = map(as_text, (parts.training, parts.calibration, parts.evaluation))

    for number in range(3 * EVERY):
        whose = {CALIBRATION: calibration, EVALUATION: evaluation}.get(number % EVERY, training)
        assert [f"Class {number}." in part for part in (training, calibration, evaluation)] == [
            part is whose for part in (training, calibration, evaluation)
        ]
    assert (training + calibration + evaluation).count("Said in every file.") == 1
    assert "A test." not in training + calibration + evaluation


def test_a_score_sees_no_later_byte():
    network = small()
    network.start(0)
    one = torch.randint(BYTES, (1, 24))
    other = one.clone()
    other[0, 16] = (other[0, 16] + 1) % BYTES
    before, after = network(one), network(other)

    assert torch.allclose(before[:, :16], after[:, :16], atol=1e-6)
    assert not torch.allclose(before[:, 16:], after[:, 16:], atol=1e-4)


def test_the_order_of_the_bytes_before_matters():
    network = small()
    network.start(0)
    scores = network(torch.tensor([[1, 2, 3], [2, 1, 3]]))

    assert not torch.allclose(scores[0, -1], scores[1, -1], atol=1e-5)


def test_equal_scores_have_the_perplexity_of_all_bytes():
    network = small()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    held_out = torch.randint(BYTES, (3, CONTEXT + 1))

    assert perplexity(network, held_out) == pytest.approx(BYTES, rel=1e-5)


def test_windows_lie_evenly_in_the_text():
    cut = windows(torch.arange(1000), 3)

    assert cut.shape == (3, CONTEXT + 1)
    assert cut[:, 0].tolist() == [0, 371, 743]
    assert cut[-1, -1] == 999


def test_training_lowers_the_perplexity_and_says_how_far_it_is(library):
    parts, said = text(library), []
    network = small()
    network.start(0)
    held_out = windows(parts.evaluation, 2)
    before = perplexity(network, held_out)
    fit(network, parts.training, steps=50, say=said.append)

    assert perplexity(network, held_out) < before / 2
    assert len(said) == 1
    assert "step 50 of 50" in said[0]


def test_a_trained_network_is_taken_from_its_file(network, library):
    one, file = network
    again = trained(small(), text(library).training, file)

    assert not again.training
    assert all(mine.equal(its) for mine, its in zip(one.parameters(), again.parameters(), strict=True))
    assert weight_bytes(one) == 4 * (4 * 32 * 32 + 3 * 32 * 64)


def test_a_job_on_the_network_is_judged_by_its_perplexity(network, library, tmp_path, url):
    one, file = network
    parts = text(library)
    batches = [window[None, :-1] for window in windows(parts.calibration, 4)]
    both = calibrate(
        one,
        batches,
        tmp_path / "both.safetensors",
        include=[LAYERS],
        sensitivity="fisher",
        output=lambda scores, _: scores,
    )
    held_out = windows(parts.evaluation, 4)

    with Client(url) as client:
        trial = Trial(client, client.upload(file), tmp_path / "result", HeldOut(held_out, small).judge)
        spec = {"include": [LAYERS], "method": "int8", "calibration": client.upload(both)}
        found = trial.measure(Recipe("rounded", "int8", "", spec))

    assert 0.25 < found.bytes < 0.3
    assert found.parameters == 1
    assert found.quality[0] == pytest.approx(perplexity(one, held_out), rel=0.01)
    assert math.isfinite(found.relative_error)
