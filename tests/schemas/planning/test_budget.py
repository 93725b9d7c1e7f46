"""schemas/planning/budget.py: a budget is met, never exceeded, and refused where it cannot be met."""

import json
from fractions import Fraction
from math import floor

import pytest

from schemas.planning.budget import check_budget, spend_budget
from schemas.planning.distortion import LayerSpectra, finite
from schemas.planning.output_size import OutputSize
from schemas.planning.planner import make_plan
from schemas.problem import SpecError
from schemas.spec import CompressionSpec
from tests.schemas.format.checkpoints import SHAPES, chosen_at, files_of, spectra_of


def spent(files, spectra=None, settled=None, **document):
    spec = CompressionSpec.model_validate(document)
    plan = make_plan(files.tensors, spec)
    known = {
        name: LayerSpectra({"": finite(values)}) for name, values in (spectra or spectra_of(files)).items()
    }
    return spend_budget(plan, spec, files, known, settled or {})


def parameters(layers):
    return sum(x.factor_parameters(x.rank) if x.rank else x.parameters_before for x in layers)


def ranks_of(plan):
    return {number: layer.rank for number, layer in enumerate(plan.layers) if layer.rank is not None}


def next_ranks(plan):
    """Yield the ranks after one more step of one layer; the last step of a layer is dense."""
    for number, layer in enumerate(plan.layers):
        if layer.rank is not None:
            further = layer.rank + layer.align
            ranks = ranks_of(plan)
            ranks.pop(number)
            yield ranks | ({number: further} if further in layer.ranks else {})


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize(
    "document",
    [
        {},
        {"method": "cur"},
        {"align": 8},
        {"min_rank": 3},
        {"objective": "absolute"},
        {"layout": "dense"},
        {"dtype": "float16"},
        {"overrides": [{"match": "a", "rank": 5}, {"match": "b", "rank": {"ratio": 0.3}}]},
    ],
)
def test_a_share_of_the_parameters_is_met_within_a_step_and_never_exceeded(share, document):
    if share == 0.1 and document.keys() & {"align", "overrides"}:
        return  # less than the cheapest ranks cost
    files = files_of()
    plan = spent(files, rank={"budget": share}, **document)
    limit = floor(Fraction(repr(share)) * sum(layer.parameters_before for layer in plan.layers))
    free = [layer for layer in plan.layers if layer.name not in {"a", "b"} or "overrides" not in document]

    assert parameters(plan.layers) <= limit
    for layer in free:
        assert layer.reason in {None, "kept_by_budget"}
        if layer.rank is not None:
            assert layer.rank % layer.align == 0
            assert layer.rank >= layer.min_rank
            costs = [layer.factor_parameters(r) for r in layer.ranks]
            following = min(
                c for c in [*costs, layer.parameters_before] if c > costs[layer.ranks.index(layer.rank)]
            )
            step = following - costs[layer.ranks.index(layer.rank)]
            assert parameters(plan.layers) + step > limit
    assert plan == spent(files, rank={"budget": share}, **document)


@pytest.mark.parametrize("share", [0.55, 0.7, 0.9, 1.1])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "document"),
    [("F32", {}), ("BF16", {"method": "cur"}), ("F32", {"dtype": "float16"}), ("BF16", {"dtype": "float32"})],
)
def test_a_number_of_bytes_is_met_within_a_step_and_never_exceeded(share, shards, dtype, document):
    files = files_of(dtype=dtype, shards=shards)
    whole = OutputSize(files, make_plan(files.tensors, CompressionSpec(rank=1)).layers).at({})
    limit = int(share * whole)
    plan = spent(files, rank={"budget_bytes": limit}, **document)
    size = OutputSize(files, plan.layers).at(chosen_at(plan.layers, ranks_of(plan)))

    assert size <= limit
    for ranks in next_ranks(plan):
        # Except for the few bytes by which the digits in a header change.
        assert OutputSize(files, plan.layers).at(chosen_at(plan.layers, ranks)) > limit - 16
    if share < 1:
        assert size >= 0.98 * limit


def test_a_layer_with_a_rank_of_its_own_is_paid_from_the_budget():
    files = files_of()
    overrides = [{"match": "a", "rank": 31}]
    plain = spent(files, rank={"budget": 0.3})
    fixed = spent(files, rank={"budget": 0.3}, overrides=overrides)

    assert fixed.layers[0].rank == 31
    assert parameters(fixed.layers) <= 0.3 * sum(layer.parameters_before for layer in fixed.layers)
    assert sum(x.rank or 0 for x in fixed.layers[1:]) < sum(x.rank or 0 for x in plain.layers[1:])


def test_a_layer_with_a_rule_of_its_own_keeps_it_and_is_paid_as_it_came_out():
    files = files_of()
    overrides = [{"match": "a", "rank": {"error": 0.1}}]
    cheap, dear = (
        spent(files, settled={"a.weight": rank}, rank={"budget": 0.3}, overrides=overrides)
        for rank in (1, 31)
    )

    assert cheap.layers[0].rank == dear.layers[0].rank
    assert cheap.layers[0].rank.error == 0.1
    assert parameters(dear.layers[1:]) + 31 * 128 <= 0.3 * 17408
    assert parameters(cheap.layers[1:]) > parameters(dear.layers[1:])


def test_a_layer_that_can_only_be_dense_is_paid_from_the_budget():
    files = files_of()
    plan = spent(files, settled={"a.weight": "not_finite"}, rank={"budget": 0.5})

    assert (plan.layers[0].rank, plan.layers[0].reason) == (None, "not_finite")
    assert parameters(plan.layers) <= 0.5 * 17408


def test_an_absolute_objective_favours_the_larger_weight_and_a_weight_its_layer():
    files = files_of({"a": (64, 64), "b": (64, 64)})
    spectrum = [(i + 1) ** -0.5 for i in range(64)]
    spectra = {"a.weight": spectrum, "b.weight": [10 * value for value in spectrum]}
    even = spent(files, spectra, rank={"budget": 0.4})
    absolute = spent(files, spectra, rank={"budget": 0.4}, objective="absolute")
    weighed = spent(
        files,
        spectra,
        rank={"budget": 0.4},
        overrides=[{"match": "a", "weight": 100.0}, {"match": "b", "weight": 1}],
    )

    assert abs(even.layers[0].rank - even.layers[1].rank) <= 1
    assert absolute.layers[0].rank < absolute.layers[1].rank
    assert weighed.layers[0].rank > weighed.layers[1].rank


def test_the_budget_follows_the_spectra():
    files = files_of({"a": (64, 64), "b": (64, 64)})
    flat, steep = [1.0] * 64, [0.5**i for i in range(64)]
    plan = spent(files, {"a.weight": flat, "b.weight": steep}, rank={"budget": 0.5})

    assert plan.layers[0].rank > plan.layers[1].rank


@pytest.mark.parametrize("objective", ["relative", "absolute"])
@pytest.mark.parametrize(
    "spectrum", [[0.0] * 64, [float("inf")] * 64, [1e300] * 64, [5e-324] * 64, [1e300] + [0.0] * 63]
)
def test_odd_spectra_are_met_all_the_same(objective, spectrum):
    files = files_of()
    plan = spent(files, spectra_of(files) | {"a.weight": spectrum}, rank={"budget": 0.5}, objective=objective)

    assert parameters(plan.layers) <= 0.5 * 17408


def test_the_order_of_the_tensors_does_not_matter():
    files = files_of()
    swapped = files_of(dict(reversed(SHAPES.items())))
    plans = [spent(some, spectra_of(files), rank={"budget": 0.37}) for some in (files, swapped)]

    assert {x.name: x.rank for x in plans[0].layers} == {x.name: x.rank for x in plans[1].layers}


def refused(files, **document):
    spec = CompressionSpec.model_validate(document)
    with pytest.raises(SpecError) as refusal:
        check_budget(make_plan(files.tensors, spec), spec, files)
    return refusal.value


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"rank": {"budget": 0.02}}, ["544 of their 17408", '"b", at rank 1', "at least 0.0313", "exclude"]),
        ({"rank": {"budget": 0.2}, "min_rank": 20}, ['"b", at rank 20', "at least 0.625,"]),
        (
            {"rank": {"budget": 0.2}, "overrides": [{"match": "c", "rank": 30}]},
            ['"c", at rank 30', "at least"],
        ),
        (
            {"rank": {"budget": 0.2}, "overrides": [{"match": "d", "min_rank": 40}]},
            ['"d", kept dense (no_saving)', "of which 4096 are for"],
        ),
    ],
)
def test_a_share_that_cannot_be_met_is_refused_with_the_layer_and_the_least_share(document, words):
    files = files_of()
    refusal = refused(files, **document)

    assert refusal.pointer == "/rank/budget"
    for word in words:
        assert word in refusal.detail
    least = float(refusal.detail.split("at least ")[1].split(",")[0])
    enough = document | {"rank": {"budget": least}}
    check_budget(
        make_plan(files.tensors, CompressionSpec.model_validate(enough)),
        CompressionSpec.model_validate(enough),
        files,
    )
    refused(files, **document | {"rank": {"budget": least - 2e-4}})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, ['of which 6400 are for "embeddings.weight", which is not selected']),
        ({"include": ["a"]}, ['of which 18432 are for "b.weight", which is not selected']),
        (
            {"overrides": [{"match": "d", "min_rank": 40}]},
            ['of which 16384 are for "d", kept dense (no_saving)'],
        ),
        ({"min_rank": 20}, ['of which 11520 are for "b", at rank 20']),
    ],
)
def test_bytes_that_cannot_be_met_are_refused_with_the_tensor_and_the_least_number(document, words):
    files = files_of()
    refusal = refused(files, rank={"budget_bytes": 5000}, **document)

    assert refusal.pointer == "/rank/budget_bytes"
    for word in words:
        assert word in refusal.detail
    least = int(refusal.detail.split("at least ")[1].split(",")[0])
    plan = spent(files, rank={"budget_bytes": least}, **document)
    assert OutputSize(files, plan.layers).at(chosen_at(plan.layers, ranks_of(plan))) <= least
    refused(files, rank={"budget_bytes": least - 1}, **document)


def test_a_layer_that_must_stay_dense_may_make_a_budget_impossible():
    files = files_of()
    with pytest.raises(SpecError, match="not_finite"):
        spent(files, settled={"a.weight": "not_finite"}, rank={"budget": 0.1})


def test_a_weight_that_is_none_of_a_linear_layer_is_neither_counted_nor_paid_for():
    files = files_of(SHAPES | {"x.lora_A": (96, 96), "x.lora_B": (96, 96)})
    plan = spent(files, spectra_of(files_of()), rank={"budget": 0.37})
    *same, one, other = plan.layers

    assert [layer.rank for layer in same] == [
        layer.rank for layer in spent(files_of(), rank={"budget": 0.37}).layers
    ]
    assert (one.rank, one.reason) == (other.rank, other.reason) == (None, "adapter")


def test_without_a_budget_nothing_changes():
    files = files_of()
    spec = CompressionSpec.model_validate({"rank": {"energy": 0.5}})
    plan = make_plan(files.tensors, spec)
    check_budget(plan, spec, files)

    assert spend_budget(plan, spec, files, {}, {}) is plan


def test_a_checkpoint_without_layers_meets_any_budget():
    files = files_of()
    for rank in ({"budget": 0.001}, {"budget_bytes": 10**6}):
        assert spent(files, rank=rank, exclude=["*"]).layers == ()
    assert json.loads(CompressionSpec.model_validate({"rank": {"budget": 0.5}}).canonical())["rank"] == {
        "budget": 0.5
    }
