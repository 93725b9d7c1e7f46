"""The sentence encoder: its words are cut as its makers cut them, and it knows what is alike."""

import pytest
import torch
from safetensors.torch import load_file

from examples.minilm import MiniLM, installed, token_ids


@pytest.mark.parametrize(
    ("sentence", "ids"),
    [
        ("A cat.", [101, 1037, 4937, 1012, 102]),
        ("Café, naïve", [101, 7668, 1010, 15743, 102]),
        ("snake_case C++", [101, 7488, 1035, 2553, 1039, 1009, 1009, 102]),
        ("windowsill", [101, 3645, 8591, 102]),
        ("\u2603", [101, 100, 102]),
    ],
)
def test_words_and_marks_become_the_longest_pieces_known(sentence, ids):
    assert token_ids(sentence).tolist() == ids


def test_sentences_of_one_meaning_are_nearer_than_others():
    model = MiniLM().eval()
    model.load_state_dict(load_file(installed("model.safetensors")))
    sentences = (
        "How can I cancel my subscription?",
        "I want to end my membership.",
        "A bear crossed the road.",
    )
    with torch.inference_mode():
        vectors = torch.stack([model(token_ids(sentence)) for sentence in sentences])
    alike = vectors @ vectors.T

    assert torch.allclose(alike.diagonal(), torch.ones(3))
    assert alike[0, 1] > alike[0, 2] + 0.3
