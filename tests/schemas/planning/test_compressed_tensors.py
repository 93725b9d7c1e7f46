"""schemas/planning/compressed_tensors.py: which modules a reader of compressed-tensors takes for ours."""

import re

import pytest

from schemas.planning.compressed_tensors import FAMILIES, module_patterns

NAMES = [f"layers.{number}.mlp.{part}_proj" for number in (0, 1, 12) for part in ("up", "down")]


def matched(name):
    """Match as the package does: from the begin of the name."""
    return any(
        re.match(pattern.removeprefix("re:"), name) for pattern in module_patterns([*NAMES, "classifier"])
    )


def test_patterns_match_the_modules_with_and_without_a_prefix_and_are_few():
    assert len(module_patterns(NAMES)) == 2
    for name in (*NAMES, "classifier"):
        assert matched(name)
        assert matched(f"model.{name}")


@pytest.mark.parametrize(
    "name",
    [
        "layers.2.mlp.up_proj",
        "layers.11.mlp.up_proj",
        "layers.0.mlp.gate_proj",
        "layers.0.mlp.up_proj.0",
        "layers.0.mlp",
        "layers.0.mlpxup_proj",
        "model.vision.layers.0.mlp.up_proj",
        "xlayers.0.mlp.up_proj",
        "lm_head",
        "classifier.dense",
    ],
)
def test_patterns_match_no_other_module(name):
    assert not matched(name)


def test_each_model_type_has_one_family_and_no_tied_head_but_that_of_causal_models():
    types = [name for family in FAMILIES for name in family.model_types]
    assert len(types) == len(set(types))
    for family in FAMILIES:
        for head in ("cls.predictions.decoder", "lm_head.decoder", "vocab_projector", "embed_tokens"):
            assert not family.linears.fullmatch(family.in_base(head))
