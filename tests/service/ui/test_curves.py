"""`service/ui/curves.js` and `spectra.js`: sizes are those of plans, errors those that the spectra give."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.format.files import open_checkpoint
from schemas.planning.documents import plan_document
from schemas.planning.references import NO_REFERENCES, open_references
from schemas.spec import CompressionSpec
from tests.reports import made_layer
from tests.service.files import checkpoint_bytes
from worker.work_plan import plan_work

SHAPES = {"h.0.up": (96, 48), "h.0.down": (48, 96), "h.1.up": (96, 48), "head": (64, 40)}
STEPS = 41
SHARES = [0.02 + (0.98 * i) / (STEPS - 1) for i in range(STEPS)]
# At the largest shares a plan keeps weights dense whose factors would save a handful of numbers.
SAVING = range(1, 36)
METHODS = {
    "svd": {"method": "svd"},
    "pivot": {"method": "pivot"},
    "cx": {"method": "cx"},
    "cur": {"method": "cur"},
    "cur in two": {"method": "cur", "cur": {"storage": "two"}},
}
DRAWN = """
async ([layers, fixed, report, storage]) => {
  const { curves } = await import("./curves.js");
  const { spectraOf } = await import("./spectra.js");
  return curves(layers, fixed, report ? spectraOf(report) : new Map(), storage);
}
"""
COST = """
async ([plan, report]) => {
  const { planCost, spectraOf } = await import("./spectra.js");
  return planCost(plan, report ? spectraOf(report) : new Map());
}
"""


@pytest.fixture
def planned(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {f"{name}.weight": shape for name, shape in SHAPES.items()} | {"norm.bias": (7,)}
    path.write_bytes(checkpoint_bytes(tensors))
    files = open_checkpoint(path)

    def plan(spec):
        work = plan_work(files, CompressionSpec.model_validate(spec), open_references(NO_REFERENCES))
        return plan_document("model", work.plan).model_dump(mode="json")

    return plan


def spectrum(shape, steps=1.0):
    return [float(2.0 ** (-i * steps / 8)) for i in range(min(shape))]


def report_of(**fields):
    layers = [
        made_layer(name, shape=list(shape), singular_values=spectrum(shape), singular_value_indices=None)
        | fields
        for name, shape in SHAPES.items()
    ]
    return {"layers": layers}


@pytest.mark.parametrize("name", METHODS)
def test_a_point_of_the_curve_has_the_parameters_of_the_plan(modules, planned, name):
    spec = METHODS[name]
    layers = planned({**spec, "rank": 1})["layers"]
    storage = spec.get("cur", {}).get("storage", "three")
    drawn = modules.evaluate(DRAWN, [layers, 7, report_of(), storage])

    even = drawn["lines"][0]["points"]
    assert drawn["without"] == 0
    found = [even[i][0] for i in SAVING]
    wanted = [planned({**spec, "rank": {"ratio": SHARES[i]}}) for i in SAVING]
    assert found == [plan["totals"]["parameters_after"] for plan in wanted]


@pytest.mark.parametrize("name", METHODS)
def test_the_cost_of_a_plan_is_the_tail_of_its_spectra(modules, planned, name):
    spec = METHODS[name]
    plan = planned({**spec, "rank": {"ratio": 0.4}})
    cost = modules.evaluate(COST, [plan, report_of()])
    squares = {layer: np.square(spectrum(shape)) for layer, shape in SHAPES.items()}
    tails = sum(squares[layer["name"]][layer["rank"] :].sum() for layer in plan["layers"])
    wanted = np.sqrt(tails / sum(each.sum() for each in squares.values()))

    assert cost["least"] == pytest.approx(wanted, rel=1e-9)
    assert cost["known"]
    assert cost["floor"] == (name not in {"svd", "pivot"})


def test_without_spectra_only_what_is_bounded_for_any_weight_is_drawn(modules, planned):
    for name, spec in METHODS.items():
        plan = planned({**spec, "rank": {"ratio": 0.4}})
        drawn = modules.evaluate(DRAWN, [plan["layers"], 7, None, "three"])
        cost = modules.evaluate(COST, [plan, None])
        if name in {"svd", "pivot"}:
            assert [line["name"] for line in drawn["lines"]] == ["the error is at most"]
            assert 0 == cost["least"] < cost["most"] < 1
        else:
            assert (drawn["lines"], drawn["without"], cost) == ([], len(SHAPES), None)


@pytest.mark.parametrize(
    ("spec", "without"),
    [
        ({"method": "int8"}, len(SHAPES)),
        ({"method": ["svd", "int8"], "rank": {"budget_bytes": 40_000}}, 0),
        ({"method": "svd", "rank": 4, "overrides": [{"match": "head", "method": "int8"}]}, 1),
    ],
)
def test_what_is_rounded_has_no_curve_and_is_counted(modules, planned, spec, without):
    plan = planned(spec)
    drawn = modules.evaluate(DRAWN, [plan["layers"], 7, report_of(), "three"])

    assert drawn["without"] == without
    assert bool(drawn["lines"]) == (without < len(SHAPES))
    assert modules.evaluate(COST, [plan, report_of()]) is None
    if drawn["lines"]:
        whole = drawn["lines"][0]["points"][-1][0]
        assert whole <= plan["totals"]["parameters_before"]


def test_where_gradients_are_known_the_curve_is_the_predicted_loss(modules, planned):
    """Squared singular values are losses: they add up, and layers without gradients are left out."""
    plan = planned({"rank": {"ratio": 0.4}})
    report = report_of(predicted_loss=0.25, weighted_error=0.1, optimal_error=None)
    report["layers"][-1]["predicted_loss"] = None
    cost = modules.evaluate(COST, [plan, report])
    drawn = modules.evaluate(DRAWN, [plan["layers"], 7, report, "three"])
    known = plan["layers"][:-1]
    tails = sum(np.square(spectrum(SHAPES[each["name"]]))[each["rank"] :].sum() for each in known)

    assert cost["isLoss"]
    assert cost["least"] == pytest.approx(tails, rel=1e-9)
    assert drawn["without"] == 1
    points = drawn["lines"][0]["points"]
    assert sorted(points, key=lambda point: -point[1]) == points
    assert points[0][1] > tails


def test_a_spectrum_that_ends_at_the_rank_goes_on_with_the_predicted_loss(modules, planned):
    shape, rank = SHAPES["head"], 10
    loss = float(np.square(spectrum(shape))[rank:].sum())
    layer = made_layer(
        "head",
        shape=list(shape),
        rank=rank,
        singular_values=spectrum(shape)[:rank],
        singular_value_indices=None,
        predicted_loss=loss,
        weighted_error=0.1,
    )
    plan = planned({"rank": rank, "include": ["head"]})
    cost = modules.evaluate(COST, [plan, {"layers": [layer | {"optimal_error": None}]}])

    assert cost["most"] == pytest.approx(loss, rel=0.03)
