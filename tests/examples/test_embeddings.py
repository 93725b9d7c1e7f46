"""The study of MiniLM: no sentence is on both sides, and what it measures is what it says."""

import pytest
import torch

from eckart import Client
from eckart.calibrate import calibrate
from examples.embeddings.study import (
    LAYERS,
    Sentences,
    nearest,
    original,
    sentences,
    vectors,
    weight_bytes,
)
from examples.minilm import BLOCKS, INNER, WIDTH, installed, token_ids
from examples.recipes import Recipe
from examples.trial import Trial, measure_all

WEIGHTS = BLOCKS * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, url):
    """Keep half, and nearly all, of the encoder through a service, and half by a calibrated ratio too."""
    place = tmp_path_factory.mktemp("study")
    texts, model = sentences("evaluation")[:10], original()
    inputs = (token_ids(text) for text in sentences("calibration")[:40])
    grams = calibrate(model, inputs, place / "calibration.safetensors", include=[LAYERS])
    with Client(url) as client:
        judge = Sentences(texts, vectors(model, texts)).judge
        trial = Trial(client, client.upload(installed("model.safetensors")), place / "result", judge)
        plain = {"include": [LAYERS], "method": "svd"}
        return measure_all(
            trial,
            [
                Recipe("svd", "ratio", "0.5", plain | {"rank": {"ratio": 0.5}}),
                Recipe("svd", "ratio", "0.95", plain | {"rank": {"ratio": 0.95}}),
                Recipe(
                    "svd",
                    "one-sided",
                    "0.5",
                    plain | {"rank": {"ratio": 0.5}, "calibration": client.upload(grams)},
                ),
            ],
        )


def test_no_sentence_is_in_both_lists_nor_twice_in_one():
    calibration, evaluation = sentences("calibration"), sentences("evaluation")

    assert len(calibration) >= 200
    assert len(evaluation) >= 100
    assert len({*calibration, *evaluation}) == len(calibration) + len(evaluation)


def test_every_word_is_known():
    unknown = token_ids("\u2603")[1]

    for text in (*sentences("calibration"), *sentences("evaluation")):
        assert unknown not in token_ids(text), text


def test_the_weights_counted_are_the_encoders_linear_ones():
    assert weight_bytes(original()) == 4 * WEIGHTS


def test_more_parameters_keep_the_vectors_nearer(measured):
    half, most, _ = measured

    assert 0.49 < half.parameters <= 0.5
    assert 0.94 < most.parameters <= 0.95
    assert half.bytes == pytest.approx(half.parameters)
    assert half.relative_error > most.relative_error
    assert half.quality[0] < most.quality[0]
    for one in measured:
        mean, least, same = one.quality
        assert -1 <= least <= mean <= 1 + 1e-6
        assert 0 <= same <= 1


def test_a_calibration_keeps_the_vectors_nearer_at_a_larger_error_of_the_weights(measured):
    plain, _, calibrated = measured

    assert calibrated.parameters <= 0.5
    assert calibrated.relative_error > plain.relative_error
    assert calibrated.quality[0] > plain.quality[0] + 0.2


def test_a_vector_is_not_its_own_nearest():
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])

    assert nearest(vectors).tolist() == [1, 0, 1, 2]
