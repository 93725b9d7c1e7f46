"""schemas/planning/mlp_widths.py: config.json says the new widths of MLPs, or a warning that it cannot."""

import pytest

from schemas.planning.mlp_widths import Width, mlp_widths, with_widths
from tests.schemas.planning.named import Named

CUT = Width(64, 48)


@pytest.mark.parametrize(
    ("config", "widths", "changes"),
    [
        ({"intermediate_size": 64}, {"a": CUT, "b": CUT}, {"intermediate_size": 48}),
        ({"ffn_dim": 64, "hidden_size": 64}, {"a": CUT}, {"ffn_dim": 48}),
        ({"n_inner": None, "n_embd": 16}, {"a": CUT}, {"n_inner": 48}),
        ({"d_ff": 64, "d_model": 16}, {"a": CUT}, {"d_ff": 48}),
        ({"model_type": "distilbert", "hidden_dim": 64}, {"a": CUT}, {"hidden_dim": 48}),
        (
            {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
            {"encoder.0.fc2": CUT, "decoder.0.fc2": Width(64, 64)},
            {"encoder_ffn_dim": 48},
        ),
        (
            {"text_config": {"intermediate_size": 64}, "vision_config": {"intermediate_size": 80}},
            {"a": CUT, "b": Width(80, 60)},
            {"text_config": {"intermediate_size": 48}, "vision_config": {"intermediate_size": 60}},
        ),
        (
            {"intermediate_size": 128, "moe_intermediate_size": 64},
            {"mlp": Width(128, 96), "experts.0": CUT},
            {"intermediate_size": 96, "moe_intermediate_size": 48},
        ),
    ],
)
def test_well_known_keys_say_the_new_width(config, widths, changes):
    assert with_widths(config, widths) == (config | changes, ())


@pytest.mark.parametrize(
    ("config", "widths", "words"),
    [
        ({"intermediate_size": 64}, {"a": CUT, "b": Width(64, 32)}, "differ"),
        ({"intermediate_size": 64}, {"a": CUT, "b": Width(64, 64)}, "differ"),
        ({"hidden_dim": 64, "hidden_size": 64, "n_layer": 64}, {"a": CUT}, "none of the keys"),
        ({"intermediate_size": 65}, {"a": CUT}, "number 64"),
        ({"intermediate_size": True}, {"a": Width(1, 0)}, "none of the keys"),
    ],
)
def test_a_width_that_it_cannot_say_is_a_warning_and_changes_nothing(config, widths, words):
    changed, warnings = with_widths(config, widths)

    assert changed == config
    assert len(warnings) == 1
    assert words in warnings[0]
    assert "Stock transformers" in warnings[0]


def test_mlps_that_are_not_cut_count_too():
    tensors = [
        Named("a.fc1.weight", (64, 16)),
        Named("a.fc2.weight", (16, 64)),
        Named("b.c_fc.weight", (16, 64)),
        Named("b.c_proj.weight", (64, 16)),
        Named("b.c_proj.bias", (16,)),
    ]

    assert mlp_widths(tensors, {}, {"a.fc2": CUT}) == {"a.fc2": CUT, "b.c_proj": Width(64, 64)}
