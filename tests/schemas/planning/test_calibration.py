"""schemas/planning/calibration.py: statistics are checked against their layers; transposed weights."""

import json

import pytest

from schemas.format.files import CheckpointFiles
from schemas.format.header import Header
from schemas.planning.calibration import Calibration
from schemas.planning.documents import plan_document
from schemas.planning.layers import Layers
from schemas.planning.planner import make_plan
from schemas.planning.references import CalibrationError
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named

MODEL = (
    Named("h.0.up.weight", (96, 32)),
    Named("h.0.down.weight", (32, 96)),
    Named("h.0.conv.weight", (32, 96)),
    Named("wte.weight", (100, 32)),
    Named("h.0.norm.weight", (32,)),
    Named("h.0.up.bias", (96,)),
    Named("old.0.weight", (4, 32)),
    Named("old.1.weight", (32, 4)),
)


def planned(*statistics, same_as=None, **spec):
    spec = CompressionSpec.model_validate({"rank": 4, "transposed": ["*.conv"]} | spec)
    metadata = {} if same_as is None else {"same_as": same_as}
    calibration = Calibration.of(CheckpointFiles({"c.safetensors": Header(metadata, statistics, 0, 0)}))
    return make_plan(MODEL, spec, factored={"old"}, calibration=calibration)


def plain(**spec):
    """Plan without a calibration."""
    return make_plan(MODEL, CompressionSpec.model_validate({"rank": 4, "transposed": ["*.conv"]} | spec))


def test_layers_with_a_gram_matrix_are_calibrated_and_the_others_are_not():
    plan = planned(
        Named("h.0.up.gram", (32, 32)),
        Named("h.0.conv.gram", (32, 32), "F64"),
    )

    assert {layer.name: layer.calibrated for layer in plan.layers} == {
        "h.0.up": True,
        "h.0.down": False,
        "h.0.conv": True,
    }
    assert plan.warnings == ()
    document = plan_document("m", plan)
    assert [layer.calibrated for layer in document.layers] == [True, False, True]


UP = (Named("h.0.up.gram", (32, 32)),)
COUNT = Named("h.0.up.count", (1,), "F64")


def test_a_calibrated_plan_stays_in_columns():
    assert isinstance(planned(*UP).layers, Layers)


def test_what_statistics_there_are_says_what_is_minimized_and_whether_the_bias_is_corrected():
    gradients, mean = Named("h.0.up.grad_gram", (96, 96)), Named("h.0.up.mean", (32,))

    def up(*statistics, **spec):
        layer = planned(*statistics, **spec).layers[0]
        return layer.calibrated, layer.has_gradients, layer.has_loss, layer.corrects_bias

    assert up(*UP) == (True, False, False, False)
    assert up(gradients, COUNT) == (False, True, False, False)
    assert up(*UP, gradients, COUNT) == (True, True, True, False)
    assert up(*UP, gradients, COUNT, mean) == (True, True, True, True)
    assert up(*UP, COUNT, mean, bias="keep") == (True, False, False, False)
    assert up(*UP, mean) == (True, False, False, False)


def test_a_layer_without_a_bias_gets_none():
    down = [Named("h.0.down.gram", (96, 96)), Named("h.0.down.mean", (96,)), Named("h.0.down.count", (1,))]

    layer = next(layer for layer in planned(*down).layers if layer.name == "h.0.down")
    assert (layer.calibrated, layer.corrects_bias) == (True, False)


def test_layers_with_the_same_inputs_share_all_but_the_gradients():
    shared = [*UP, COUNT, Named("h.0.up.mean", (32,)), Named("h.0.up.grad_gram", (96, 96))]
    plan = planned(*shared, same_as=json.dumps({"h.0.conv": "h.0.up"}))

    layers = {layer.name: layer for layer in plan.layers}
    assert layers["h.0.conv"].calibrated
    assert not layers["h.0.conv"].has_gradients
    assert plan.warnings == ()


@pytest.mark.parametrize("same_as", ["[", "[1]", '{"h.0.conv": 1}', '{"h.0.conv": "h.0.down"}', "[" * 10**5])
def test_a_list_of_same_inputs_that_cannot_be_followed_is_refused(same_as):
    with pytest.raises(CalibrationError, match="same_as") as refusal:
        planned(*UP, same_as=same_as)

    assert refusal.value.fault == "same-as"


@pytest.mark.parametrize("module", ["wte", "h.0.norm", "old", "h.0.down"])
def test_a_gram_matrix_of_a_layer_that_is_not_selected_is_a_warning(module):
    plan = planned(Named(f"{module}.gram", (7, 5)), Named("h.0.up.gram", (32, 32)), exclude=["w*", "*.down"])

    assert plan.warnings[-1] == f"calibration: not used, since the layer is not selected: {module}"


def test_a_gram_matrix_of_a_layer_that_is_not_there_is_a_warning_where_others_fit():
    plan = planned(Named("lm_head.gram", (7, 5)), Named("h.0.up.gram", (32, 32)), Named("x.gram", (2, 2)))

    assert plan.warnings == ("calibration: not used, since the checkpoint has no such layer: lm_head, x",)
    assert [layer.name for layer in plan.layers if layer.calibrated] == ["h.0.up"]


def test_tensors_that_are_no_gram_matrices_are_a_warning():
    plan = planned(Named("h.0.up.gram", (32, 32)), Named("samples", (1,), "I64"))

    assert plan.warnings == ("calibration: not used, since not named `<module>.gram`: samples",)


@pytest.mark.parametrize(
    ("grams", "fault", "words"),
    [
        ([], "no-grams", ["eckart.calibrate"]),
        ([Named("h.0.up.weight")], "no-grams", ["<module>.gram"]),
        ([Named("h.9.up.gram", (32, 32))], "unknown-layer", ['"h.9.up"', "leave it out"]),
        ([Named("model.h.0.up.gram", (32, 32))], "unknown-layer", ['"model.h.0.up"', 'meant for "h.0.up"?']),
        ([Named("up.gram", (32, 32))], "unknown-layer", ['"up"', 'meant for "h.0.up"?']),
        ([Named("h.0.up.gram", (32, 32), "BF16")], "gram-dtype", ['"h.0.up"', "BF16", "F32 or F64"]),
        ([Named("h.0.up.gram", (32, 31))], "gram-shape", ['"h.0.up"', "[32, 31]", "[32, 32]", "again"]),
        ([Named("h.0.up.gram", (32,))], "gram-shape", ['"h.0.up"', "again"]),
        ([Named("h.0.up.gram", (96, 96))], "gram-shape", ['Add "h.0.up" to `transposed`']),
        ([Named("h.0.conv.gram", (96, 96))], "gram-shape", ['Remove "h.0.conv" from `transposed`']),
        ([*UP, Named("h.0.up.grad_gram", (96, 96))], "no-count", ['"h.0.up.count"', "leave out"]),
        ([*UP, COUNT, Named("h.0.up.grad_gram", (32, 32))], "gram-shape", ["gradients", "96 outputs"]),
        ([*UP, COUNT, Named("h.0.up.grad_gram", (96, 96), "F16")], "gram-dtype", ["gradients", "F16"]),
        ([*UP, Named("h.0.up.mean", (96,))], "gram-shape", ['The mean of "h.0.up"', "32 inputs"]),
        ([*UP, Named("h.0.up.count", (2,))], "gram-shape", ['The count of "h.0.up"', "[1]"]),
        ([*UP, Named("h.0.up.count", (1,), "I8")], "gram-dtype", ['The count of "h.0.up"', "I8"]),
    ],
)
def test_a_misfit_is_refused_with_the_layer_and_the_remedy(grams, fault, words):
    with pytest.raises(CalibrationError) as refusal:
        planned(*grams)

    assert refusal.value.fault == fault
    for word in words:
        assert word in refusal.value.detail


def test_a_transposed_weight_is_planned_as_the_map_it_is_and_shown_as_it_is_stored():
    conv = next(layer for layer in plain().layers if layer.name == "h.0.conv")

    assert (conv.rows, conv.columns, conv.shape) == (96, 32, (32, 96))
    assert tuple(spec.shape for spec in conv.stored_tensors(4)) == ((32, 4), (4, 96))
    assert conv.break_even_rank == plain(transposed=[]).layers[2].break_even_rank
    shown = plan_document("m", plain(include=["h.*"])).layers
    assert [(layer.shape, layer.transposed) for layer in shown] == [
        ((96, 32), False),
        ((32, 96), False),
        ((32, 96), True),
    ]


def test_three_transposed_factors_chain_from_the_inputs_to_the_outputs():
    conv = plain(method="cur", include=["*.conv"]).layers[0]

    assert tuple(spec.shape for spec in conv.stored_tensors(4)) == ((32, 4), (4, 4), (4, 96))


def test_a_transposed_pattern_that_matches_nothing_is_a_warning():
    assert plain(transposed=["*.conv", "*.c_attn"]).warnings == (
        "transposed: the pattern '*.c_attn' matches no layer",
    )
