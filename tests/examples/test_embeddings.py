"""The study of MiniLM: no sentence is on both sides, and what it measures is what it says."""

from xml.etree import ElementTree as ET

import pytest
import torch

from benchmarks.standalone import running
from eckart import Client
from eckart.calibrate import calibrate
from examples.embeddings.result import similarity_chart, similarity_table
from examples.embeddings.study import KEPT, LAYERS, RULES, Study, nearest, original, sentences, vectors
from examples.minilm import installed, token_ids
from schemas.spec import CompressionSpec

UNIFORM, FLOORED = RULES[0], RULES[-1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Keep half, and nearly all, of the encoder through a service, and half by a calibrated budget too."""
    place = tmp_path_factory.mktemp("study")
    texts, model = sentences("evaluation")[:10], original()
    inputs = (token_ids(text) for text in sentences("calibration")[:40])
    grams = calibrate(model, inputs, place / "calibration.safetensors", include=[LAYERS])
    with running(place, threads=1) as service, Client(service.url) as client:
        checkpoint = client.upload(installed("model.safetensors"))
        before, calibration = vectors(model, texts), client.upload(grams)
        study = Study(client, checkpoint, calibration, texts, before, place / "result")
        return [*study.measure([UNIFORM], [0.5, 0.95]), *study.measure([FLOORED], [0.5])]


def test_no_sentence_is_in_both_lists_nor_twice_in_one():
    calibration, evaluation = sentences("calibration"), sentences("evaluation")

    assert len(calibration) >= 200
    assert len(evaluation) >= 100
    assert len({*calibration, *evaluation}) == len(calibration) + len(evaluation)


def test_every_word_is_known():
    unknown = token_ids("\u2603")[1]

    for text in (*sentences("calibration"), *sentences("evaluation")):
        assert unknown not in token_ids(text), text


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_spec_of_the_study_is_one(rule):
    for kept in KEPT:
        CompressionSpec.model_validate(rule.spec(kept, "some-id"))


def test_more_parameters_keep_the_vectors_nearer(measured):
    half, most, _ = measured

    assert (half.rule, half.asked, most.asked) == ("uniform ratio", 0.5, 0.95)
    assert 0.49 < half.kept <= 0.5
    assert 0.94 < most.kept <= 0.95
    assert half.relative_error > most.relative_error
    assert half.mean < most.mean
    assert all(-1 <= one.least <= one.mean <= 1 + 1e-6 for one in measured)
    assert all(0 <= one.same_nearest <= 1 for one in measured)


def test_a_calibrated_budget_keeps_the_vectors_nearer_at_a_larger_error_of_the_weights(measured):
    uniform, _, floored = measured

    assert floored.kept <= 0.5
    assert floored.relative_error > uniform.relative_error
    assert floored.mean > uniform.mean + 0.2


def test_a_vector_is_not_its_own_nearest():
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])

    assert nearest(vectors).tolist() == [1, 0, 1, 2]


def test_table_and_chart_show_every_job(measured):
    lines = similarity_table(measured).splitlines()
    root = ET.fromstring(similarity_chart(measured))

    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0.5", "0.95", "0.5"]
    assert {line.count("|") for line in lines} == {8}
    assert "uniform ratio" in {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
