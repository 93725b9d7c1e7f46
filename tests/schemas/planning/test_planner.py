"""schemas/planning/planner.py: which weights are selected, their ranks, names and sizes, and warnings."""

import pytest

from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.problem import SpecError
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named, planned


@pytest.mark.parametrize(
    ("tensor", "selected"),
    [
        (Named("layer.weight"), True),
        (Named("layer.weight", dtype="F64"), True),
        (Named("layer.weight", dtype="F16"), True),
        (Named("layer.weight", dtype="BF16"), True),
        (Named("layer.weight", dtype="I64"), False),
        (Named("layer.weight", dtype="F8_E4M3"), False),
        (Named("layer.weight", shape=(64,)), False),
        (Named("layer.weight", shape=(64, 64, 3, 3)), False),
        (Named("layer.weight", shape=()), False),
        (Named("layer.bias"), False),
        (Named("layer.weights"), False),
        (Named("weight"), False),
        (Named("model.embed_tokens.weight"), False),
        (Named("bert.embeddings.word_embeddings.weight"), False),
        (Named("transformer.wte.weight"), False),
        (Named("transformer.wpe.weight"), False),
        (Named("layer.norm.weight"), False),
        (Named("transformer.h.0.attn.c_attn.weight"), True),
        (Named("classifier.0.weight"), True),
    ],
)
def test_floating_matrices_named_weight_are_selected_but_for_embeddings_and_norms(tensor, selected):
    assert [layer.tensor for layer in planned([tensor]).layers] == [tensor.name] * selected


@pytest.mark.parametrize(
    ("shape", "spec", "rank", "reason"),
    [
        ((64, 64), {"rank": 31}, 31, None),
        ((64, 64), {"rank": 32}, None, "no_saving"),
        ((64, 64), {"rank": 64}, None, "no_saving"),
        ((64, 64), {"rank": {"ratio": 0.5}}, 16, None),
        ((64, 64), {"rank": {"ratio": 1.0}}, None, "no_saving"),
        ((64, 64), {"rank": {"ratio": 0.001}}, None, "rank_zero"),
        ((64, 64), {"method": "cur", "rank": 26}, 26, None),
        ((64, 64), {"method": "cur", "rank": 27}, None, "no_saving"),
        ((64, 64), {"method": "cur", "cur": {"storage": "two"}, "rank": 27}, 27, None),
        ((64, 64), {"method": "cx", "rank": 31}, 31, None),
        ((1, 64), {"rank": 1}, None, "no_saving"),
        ((1, 64), {"rank": {"error": 0.5}}, None, "no_saving"),
        ((0, 64), {"rank": {"ratio": 0.5}}, None, "no_saving"),
        ((10, 4096), {"rank": 10}, None, "no_saving"),
    ],
)
def test_a_layer_is_factored_only_where_that_saves_parameters(shape, spec, rank, reason):
    (layer,) = planned([Named("layer.weight", shape)], **spec).layers

    assert (layer.rank, layer.reason) == (rank, reason)


@pytest.mark.parametrize(
    ("spec", "rank", "reason"),
    [
        ({"rank": 9, "align": 8}, 16, None),
        ({"rank": 16, "align": 8}, 16, None),
        ({"rank": 25, "align": 8}, None, "no_saving"),
        ({"rank": 3, "min_rank": 5}, 5, None),
        ({"rank": 3, "min_rank": 5, "align": 4}, 8, None),
        ({"rank": {"ratio": 0.45}, "align": 8}, 8, None),
        ({"rank": {"ratio": 0.2}, "align": 8}, None, "rank_zero"),
        ({"rank": {"ratio": 0.2}, "min_rank": 7}, None, "rank_zero"),
        ({"rank": {"ratio": 0.2}, "min_rank": 6}, 6, None),
        ({"rank": {"ratio": 1.0}, "align": 8}, None, "no_saving"),
        ({"rank": 1, "align": 31}, 31, None),
        ({"rank": 9, "align": 8, "overrides": [{"match": "layer", "align": 5}]}, 10, None),
        ({"rank": 9, "overrides": [{"match": "layer", "min_rank": 12}]}, 12, None),
    ],
)
def test_an_integer_goes_up_to_a_rank_that_is_allowed_and_a_ratio_down(spec, rank, reason):
    (layer,) = planned([Named("layer.weight")], **spec).layers

    assert (layer.rank, layer.reason) == (rank, reason)


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ({"align": 32}, "/align"),
        ({"min_rank": 32}, "/min_rank"),
        ({"align": 20, "min_rank": 25}, "/align"),
        ({"rank": {"energy": 0.5}, "align": 64}, "/align"),
        ({"rank": {"budget": 0.5}, "align": 64}, "/align"),
        ({"overrides": [{"match": "x"}, {"match": "*", "align": 64}]}, "/overrides/1/align"),
        ({"overrides": [{"match": "*", "min_rank": 64}]}, "/overrides/0/min_rank"),
        ({"min_rank": 64, "overrides": [{"match": "*", "rank": 4}]}, "/min_rank"),
    ],
)
def test_an_alignment_above_every_break_even_is_refused_by_name(spec, pointer):
    tensors = [Named("small.weight", (16, 16)), Named("layer.weight"), Named("row.weight", (1, 64))]

    with pytest.raises(SpecError) as refusal:
        planned(tensors, **spec)

    assert refusal.value.pointer == pointer
    assert '"layer"' in refusal.value.detail
    assert "up to 31" in refusal.value.detail


def test_an_alignment_above_some_break_evens_keeps_those_layers_dense():
    layers = planned([Named("small.weight", (16, 16)), Named("layer.weight")], align=16).layers

    assert [(layer.rank, layer.reason) for layer in layers] == [(None, "no_saving"), (16, None)]


def test_alignment_is_not_blamed_where_nothing_can_be_factored_anyway():
    (layer,) = planned([Named("row.weight", (1, 64))], align=64).layers

    assert layer.reason == "no_saving"


def test_the_first_matching_override_wins():
    overrides = [{"match": "a.*", "rank": 7}, {"match": "*", "rank": 9, "method": "cx", "selector": "cpqr"}]
    layers = planned([Named("a.b.weight"), Named("c.weight")], overrides=overrides).layers

    assert [(x.rank, x.form.name, x.form.selector) for x in layers] == [(7, "svd", None), (9, "cx", "cpqr")]


@pytest.mark.parametrize(
    ("others", "method", "reason"),
    [
        ([], "svd", None),
        (["x.0.weight"], "svd", "names_taken"),
        (["x.1.weight"], "svd", "names_taken"),
        (["x.2.weight"], "svd", "more_than_a_linear"),
        (["x.2.weight"], "cur", "names_taken"),
        (["x.1.bias"], "svd", "more_than_a_linear"),
        (["x.bias", "x.1.bias"], "svd", "names_taken"),
        (["x.bias", "x.1.bias"], "cur", "more_than_a_linear"),
        (["x.bias", "x.2.bias"], "cur", "names_taken"),
    ],
)
def test_a_layer_whose_new_names_are_taken_stays_dense(others, method, reason):
    tensors = [Named("x.weight"), *(Named(name, shape=(64,)) for name in others)]

    assert planned(tensors, method=method).layers[0].reason == reason
    # No name changes in the dense layout.
    assert planned(tensors, method=method, layout="dense").layers[0].reason != "names_taken"


@pytest.mark.parametrize(
    ("spec", "warning"),
    [
        ({"include": ["layer", "lyer*"]}, "include: the pattern 'lyer*' matches no layer"),
        ({"exclude": ["*head"]}, "exclude: the pattern '*head' matches no layer"),
        ({"exclude": ["other.norm"]}, None),
        ({"overrides": [{"match": "nope", "rank": 2}]}, "overrides: the pattern 'nope' matches no layer"),
        ({"exclude": ["*"]}, "no layer is selected: the output equals the input; exclude *: layer.weight"),
        ({"objective": "absolute"}, "objective: it has no effect without a budget"),
        ({"rank": {"budget": 0.5}, "objective": "absolute"}, None),
        (
            {"overrides": [{"match": "*", "weight": 2}]},
            "overrides: the weight of '*' has no effect without a budget",
        ),
        ({"rank": {"budget": 0.5}, "overrides": [{"match": "*", "weight": 2}]}, None),
        (
            {"rank": {"budget": 0.5}, "overrides": [{"match": "*", "weight": 2, "rank": 4}]},
            "overrides: the weight of '*' has no effect together with a rank",
        ),
        ({"rank": 99_999}, "every selected layer stays dense: the output equals the input"),
        ({"rank": 30, "align": 25}, "every selected layer stays dense: the output equals the input"),
        ({"selector": "osinsky"}, "selector: it has no effect on svd"),
        (
            {"selector": "osinsky", "method": ["svd", "pivot"], "rank": {"budget": 0.5}},
            "selector: it has no effect on pivot and svd",
        ),
        ({"method": "int8"}, "rank: it has no effect on int8"),
        (
            {"overrides": [{"match": "*", "rank": 4}, {"match": "layer", "rank": 5}]},
            "overrides: 'layer' has no effect, since earlier ones match all its layers",
        ),
        ({"overrides": [{"match": "*"}]}, "overrides: '*' has no effect, since it sets nothing"),
        ({"overrides": [{"match": "layer", "rank": 4}]}, None),
        ({"cur": {"storage": "two"}}, "cur: it has no effect on svd"),
        ({"cur": {"storage": "two"}, "method": "cur"}, None),
        ({"cur": {"storage": "two"}, "overrides": [{"match": "*", "method": "cur"}]}, None),
        (
            {"overrides": [{"match": "*", "cur": {"storage": "two"}}]},
            "overrides: cur of '*' has no effect on svd",
        ),
        ({"group": 32}, "group: it has no effect on svd"),
        ({"method": "int4+svd", "group": 32}, None),
        (
            {"rank": {"budget": 0.5}, "objective": "loss"},
            "objective: relative errors and no losses, since no layer has both Gram matrices",
        ),
        ({"selector": "osinsky", "overrides": [{"match": "*", "method": "cx"}]}, None),
        ({"selector": "qdeim", "method": "cur"}, None),
        ({}, None),
    ],
)
def test_a_pattern_that_matches_nothing_is_a_warning(spec, warning):
    plan = planned([Named("layer.weight"), Named("other.norm.weight", shape=(64,))], **spec)

    assert plan.warnings == ((warning,) if warning else ())


def test_an_override_that_sets_nothing_may_keep_its_layers_out_of_the_next():
    overrides = [{"match": "a"}, {"match": "*", "rank": 9}]
    plan = planned([Named("a.weight"), Named("b.weight")], overrides=overrides)

    assert plan.warnings == ()


def test_a_checkpoint_without_matrices_gives_one_warning():
    plan = planned([Named("norm.weight", shape=(64,))])

    assert plan.warnings == ("no layer is selected: the output equals the input",)


@pytest.mark.parametrize(
    ("dtype", "spec", "least_spared"),
    [
        ("F32", {}, 4096 * 4),
        ("BF16", {}, 4096 * 2),
        ("BF16", {"dtype": "float32"}, 0),
        ("F32", {"layout": "dense"}, 0),
    ],
)
def test_an_open_budget_bounds_the_sums_of_a_plan(dtype, spec, least_spared):
    tensors = [
        Named("a.weight"),
        Named("b.weight", dtype=dtype),
        Named("b.bias", (64,)),
        Named("c.weight", (0, 5)),
    ]
    asked = CompressionSpec.model_validate({"rank": {"budget": 0.5}, **spec})
    totals = plan_document("m", make_plan(tensors, asked)).totals

    assert totals.bytes_after == totals.bytes_before - least_spared
    spared = 0 if "layout" in spec else 4096
    assert totals.parameters_after == totals.parameters_before - spared


def test_a_plan_document_counts_every_tensor():
    tensors = [Named("a.weight"), Named("a.bias", (64,)), Named("b.weight", dtype="BF16")]
    spec = CompressionSpec.model_validate({"rank": 4, "dtype": "float16"})
    document = plan_document("m", make_plan(tensors, spec))

    assert document.totals.parameters_before == 2 * 4096 + 64
    assert document.totals.parameters_after == 2 * 4 * 128 + 64
    assert document.totals.bytes_after == 2 * (2 * 4 * 128) + 64 * 4
    assert document.totals.exact


def test_the_bytes_of_an_open_rank_are_bounded_even_where_the_dtype_is_wider():
    tensors = [Named("a.weight", dtype="BF16")]
    spec = CompressionSpec.model_validate({"rank": {"energy": 0.9}, "dtype": "float32"})
    (layer,) = plan_document("m", make_plan(tensors, spec)).layers

    assert layer.bytes_after == 31 * 128 * 4
    assert layer.bytes_after > layer.bytes_before


def test_factored_layers_are_not_factored_again():
    tensors = [Named("a.0.weight"), Named("a.1.weight"), Named("b.0.weight")]
    plan = make_plan(tensors, CompressionSpec(rank=4), factored={"a"})

    assert [layer.name for layer in plan.layers] == ["b.0"]


def test_a_rank_that_needs_a_spectrum_is_bounded():
    tensors = [Named("a.weight")]
    spec = CompressionSpec.model_validate({"rank": {"energy": 0.9}})
    document = plan_document("m", make_plan(tensors, spec))

    assert document.layers[0].rank is None
    assert (document.layers[0].rank_bounds.least, document.layers[0].rank_bounds.most) == (1, 31)
    assert not document.totals.exact
