"""schemas/planning/difference.py: bases and layouts are checked; adapters have ranks up to the full one."""

import pytest

from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.planning.references import BaseError
from schemas.problem import SpecError
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named

MODEL = (
    Named("h.up.weight", (96, 32)),
    Named("h.down.weight", (32, 96)),
    Named("h.down.bias", (32,)),
    Named("wte.weight", (100, 32)),
    Named("positions", (1, 512), "I64"),
)


def planned(model=MODEL, base=MODEL, **spec):
    spec = CompressionSpec.model_validate({"rank": 4, "layout": "adapter"} | spec)
    return make_plan(model, spec, base=base)


def layer(name="h.up", **spec):
    return next(found for found in planned(**spec).layers if found.name == name)


def test_factors_get_the_names_and_shapes_that_peft_gives_them():
    stored = [(tensor.name, tensor.shape) for found in planned().layers for tensor in found.stored_tensors(4)]

    assert stored == [
        ("base_model.model.h.up.lora_A.weight", (4, 32)),
        ("base_model.model.h.up.lora_B.weight", (96, 4)),
        ("base_model.model.h.down.lora_A.weight", (4, 96)),
        ("base_model.model.h.down.lora_B.weight", (32, 4)),
    ]


def test_factors_of_a_transposed_weight_are_not_transposed():
    found = layer("h.up", transposed=["h.up"])

    assert (found.rows, found.columns, found.shape) == (32, 96, (96, 32))
    assert [tensor.shape for tensor in found.stored_tensors(4)] == [(4, 96), (32, 4)]


@pytest.mark.parametrize(
    ("rank", "options", "expected"),
    [
        (24, {}, 24),  # the break-even rank is 23
        (32, {}, 32),
        (500, {}, 32),
        (5, {"align": 8}, 8),
        (30, {"align": 20}, 32),
        (4, {"min_rank": 64}, 32),
        ({"ratio": 0.5}, {}, 12),
        ({"ratio": 1.0}, {"align": 8}, 24),
        ({"ratio": 0.01}, {}, "rank_zero"),
    ],
)
def test_a_rank_goes_up_to_the_full_one_whatever_align_says(rank, options, expected):
    found = layer(rank=500, overrides=[{"match": "h.up", "rank": rank, **options}])

    assert (found.reason or found.rank) == expected


def test_the_dense_layout_keeps_the_rule_that_factors_must_save():
    found = layer(rank=24, layout="dense")

    assert (found.rank, found.reason, found.largest_rank) == (None, "no_saving", 23)
    assert [tensor.name for tensor in found.stored_tensors(4)] == ["h.up.weight"]


def test_a_plan_counts_the_adapter_against_the_whole_checkpoint():
    totals = plan_document(
        "m", MODEL, planned(overrides=[{"match": "*.down", "rank": {"ratio": 0.01}}])
    ).totals

    assert totals.parameters_before == sum(tensor.parameters for tensor in MODEL)
    assert (totals.parameters_after, totals.bytes_after) == (4 * 128, 4 * 4 * 128)
    assert (totals.layers_factored, totals.layers_kept) == (1, 1)


def test_an_open_rank_is_bounded_by_the_full_one():
    document = plan_document("m", MODEL, planned(rank={"energy": 0.9}, align=20))

    bounds = document.layers[0].rank_bounds
    assert (bounds.least, bounds.most) == (20, 32)
    assert document.layers[0].parameters_after == 32 * 128
    assert plan_document("m", MODEL, planned(rank={"budget": 0.1})).totals.parameters_after == 614


@pytest.mark.parametrize(
    ("spec", "base", "pointer", "words"),
    [
        ({"layout": "factored"}, MODEL, "/layout", ["adapter", "dense"]),
        ({}, None, "/layout", ["give base"]),
        ({"method": "cur"}, MODEL, "/method", ['"cur": {"storage": "two"}']),
        ({"overrides": [{"match": "h.up", "method": "cur"}]}, MODEL, "/overrides/0/method", ["two factors"]),
        (
            {"method": "cur", "cur": {"storage": "two"}, "overrides": [{"match": "*", "cur": {}}]},
            MODEL,
            "/overrides/0/cur",
            ["two factors"],
        ),
        ({"include": ["nothing"]}, MODEL, "/include", ["No layer", "Select"]),
        ({"rank": {"ratio": 0.001}}, MODEL, "/rank", ["No layer", "larger"]),
    ],
)
def test_a_spec_that_no_adapter_can_follow_is_refused_at_its_field(spec, base, pointer, words):
    with pytest.raises(SpecError) as refusal:
        planned(base=base, **spec)

    assert refusal.value.pointer == pointer
    assert all(word in refusal.value.detail for word in words)


@pytest.mark.parametrize("method", [{"method": "cx"}, {"method": "cur", "cur": {"storage": "two"}}])
def test_other_forms_of_two_factors_make_an_adapter(method):
    assert all(found.rank == 4 for found in planned(**method).layers)


def without(*names):
    return tuple(tensor for tensor in MODEL if tensor.name not in names)


def with_other(name, shape, dtype="F32"):
    return tuple(Named(name, shape, dtype) if tensor.name == name else tensor for tensor in MODEL)


MANY = tuple(Named(f"extra.{i}.weight") for i in range(7))


@pytest.mark.parametrize(
    ("model", "base", "fault", "words"),
    [
        (
            MODEL,
            without("h.up.weight"),
            "other-names",
            ['1 tensor is only in the checkpoint ("h.up.weight")'],
        ),
        (without("wte.weight"), MODEL, "other-names", ['1 tensor is only in the base ("wte.weight")']),
        ((*MODEL, *MANY), MODEL, "other-names", ["7 tensors are only", '"extra.4.weight" and 2 more']),
        (
            MODEL,
            MANY,
            "other-names",
            ["4 tensors are only in the checkpoint", "7 tensors are only in the base"],
        ),
        (
            MODEL,
            with_other("wte.weight", (99, 32)),
            "other-shapes",
            ['"wte.weight" is [100, 32]', "[99, 32]"],
        ),
        (MODEL, with_other("positions", (1, 514), "I64"), "other-shapes", ['"positions"', "[1, 514]"]),
        (
            MODEL,
            with_other("wte.weight", (100, 32), "I8"),
            "other-dtypes",
            ['"wte.weight" is F32', "I8", "BF16"],
        ),
    ],
)
def test_a_base_that_does_not_fit_is_refused_by_the_names_of_its_tensors(model, base, fault, words):
    with pytest.raises(BaseError) as refusal:
        planned(model, base)

    assert refusal.value.fault == fault
    for word in words:
        assert word in refusal.value.detail


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_a_base_of_another_floating_dtype_fits(dtype):
    base = tuple(Named(t.name, t.shape, dtype if t.dtype == "F32" else t.dtype) for t in MODEL)

    assert planned(base=base).warnings == planned().warnings


def test_a_buffer_of_integers_that_one_of_the_two_lacks_is_a_warning():
    warning = "base: not compared, since only one of the two checkpoints has them: positions"

    assert warning in planned(base=without("positions")).warnings
    assert warning in planned(model=without("positions")).warnings
