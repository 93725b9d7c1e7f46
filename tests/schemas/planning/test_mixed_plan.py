"""schemas/planning/documents.py and planner.py: a layer whose form a budget chooses, before it is chosen."""

import pytest

from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.problem import SpecError
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named

MODEL = (Named("a.weight", (64, 96)), Named("b.weight", (96, 40)))


def planned(*, method, **options):
    document = {"method": method, "rank": {"budget_bytes": 20_000}} | options
    return make_plan(MODEL, CompressionSpec.model_validate(document))


def test_a_plan_shows_all_forms_and_bounds_over_all_of_them():
    layer = plan_document(None, planned(method=["svd", "int8", "pivot"])).layers[0]

    assert layer.method == "svd or int8 or pivot"
    assert (layer.rank, layer.rank_bounds.least) == (None, 0)
    # `pivot` saves at higher ranks than `svd`.
    assert layer.rank_bounds.most == layer.break_even_rank > 38
    assert layer.bytes_after == layer.bytes_before


def test_a_form_that_is_not_for_a_layer_is_left_out_of_its_list():
    plan = planned(method=["int4", "svd", "int3+svd"])

    # Groups of 64 do not divide 96 or 40 inputs.
    assert [layer.methods for layer in plan.layers] == [("svd",), ("svd",)]
    grouped = planned(method=["int4", "svd", "int3+svd"], group=32)
    assert [layer.methods for layer in grouped.layers] == [("int4", "svd", "int3+svd"), ("svd",)]


def test_a_layer_for_which_no_form_of_the_list_is_possible_stays_dense_with_the_reason_of_the_first():
    assert [layer.reason for layer in planned(method=["int4", "int3"]).layers] == ["group", "group"]


def test_an_override_may_have_a_list_of_its_own():
    plan = planned(method="svd", overrides=[{"match": "b", "method": ["int8", "svd"]}])

    assert [layer.methods for layer in plan.layers] == [("svd",), ("int8", "svd")]


def test_an_adapter_refuses_a_list_with_forms_that_it_cannot_hold():
    base = {"base": MODEL}
    spec = CompressionSpec.model_validate(
        {"method": ["svd", "pivot"], "rank": {"budget": 0.5}, "layout": "adapter", "base": "b"}
    )
    with pytest.raises(SpecError, match="pivot") as refusal:
        make_plan(MODEL, spec, **base)

    assert refusal.value.pointer == "/method"
