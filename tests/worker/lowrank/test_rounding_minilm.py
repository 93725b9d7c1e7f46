"""worker/lowrank/rounding.py on a real encoder: feedback halves the error, also on other sentences."""

import pytest
import torch
from safetensors.torch import load_file

from examples.embeddings.study import HERE
from examples.minilm import MiniLM, installed, token_ids
from worker.lowrank import Grid, Statistics, output_error, round_nearest, round_weight

LAYERS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")


@pytest.fixture(scope="module")
def encoder():
    """Return the weights of one block, and the Gram matrices of its inputs on two sets of sentences."""
    model = MiniLM()
    model.load_state_dict(load_file(installed("model.safetensors")))
    block = model.encoder.layer[1]
    weights = {name: block.get_submodule(name).weight.detach() for name in LAYERS}
    grams = {}
    for text in ("calibration", "evaluation"):
        sums = {name: torch.zeros(len(weight.mT), len(weight.mT)) for name, weight in weights.items()}

        def add(name, inputs, sums=sums):
            sums[name] += inputs[0].mT @ inputs[0]

        hooks = [
            block.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: add(name, x))
            for name in LAYERS
        ]
        sentences = (HERE / f"{text}.txt").read_text("utf-8").splitlines()
        with torch.no_grad():
            for sentence in filter(None, sentences[:60]):
                model(token_ids(sentence))
        for hook in hooks:
            hook.remove()
        grams[text] = sums
    return weights, grams


@pytest.mark.parametrize("bits", [4, 3])
def test_feedback_has_at_most_half_of_the_squared_error_of_plain_rounding(encoder, bits):
    weights, grams = encoder
    grid = Grid(bits, 64, torch.float32)
    squares = {"seen": [0.0, 0.0], "other": [0.0, 0.0]}
    for name, weight in weights.items():
        gram = grams["calibration"][name]
        both = round_nearest(weight, grid), round_weight(weight, grid, Statistics(gram=gram))
        for at, rounded in enumerate(both):
            squares["seen"][at] += output_error(weight, (rounded.dense(),), gram) ** 2
            other = grams["evaluation"][name]
            squares["other"][at] += output_error(weight, (rounded.dense(),), other) ** 2

    assert squares["seen"][1] <= 0.35 * squares["seen"][0]
    assert squares["other"][1] <= 0.5 * squares["other"][0]
