"""schemas/planning/budget.py, resolve_ranks: a plan is exact where cached spectra allow, else bounded."""

import pytest

from schemas.planning.budget import resolve_ranks
from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.problem import SpecError
from schemas.spec import CompressionSpec
from schemas.spectrum import Spectrum
from tests.schemas.format.checkpoints import files_of, spectra_of

SLOW = {name: [Spectrum(values, 3, 1e-15)] for name, values in spectra_of(files_of()).items()}


def document(spectra, **spec):
    files, checked = files_of(), CompressionSpec.model_validate(spec)
    plan = resolve_ranks(make_plan(files.tensors, checked), checked, files, spectra)
    return plan_document("m", plan)


@pytest.mark.parametrize(
    "spec",
    [
        {"rank": {"budget": 0.5}},
        {"rank": {"budget_bytes": 50_000}},
        {"rank": {"energy": 0.7}},
        {"rank": {"energy": 0.7}, "method": "cur", "align": 4},
        {"rank": {"energy": 0.7}, "method": "pivot"},
        {"rank": {"auto": "hard_threshold"}},
        {"rank": {"budget": 0.5}, "overrides": [{"match": "a", "rank": {"auto": "vbmf"}}]},
        {"rank": {"budget": 0.5}, "overrides": [{"match": "a", "rank": {"energy": 0.6}}]},
        {"rank": {"budget": 0.5}, "overrides": [{"match": "a", "rank": 4}]},
    ],
)
def test_known_spectra_make_a_plan_exact(spec):
    known, unknown = document(SLOW, **spec), document({}, **spec)

    assert known.totals.exact
    assert not unknown.totals.exact
    assert known.totals.parameters_after <= unknown.totals.parameters_after
    assert known.totals.bytes_after <= unknown.totals.bytes_after
    for layer, bounded in zip(known.layers, unknown.layers, strict=True):
        if layer.rank is not None and bounded.rank_bounds is not None:
            assert bounded.rank_bounds.least <= layer.rank <= bounded.rank_bounds.most


@pytest.mark.parametrize(
    "spec",
    [
        {"rank": {"budget": 0.5}},
        {"rank": {"budget": 0.5}, "overrides": [{"match": "d", "rank": {"error": 0.2}}]},
    ],
)
def test_one_unknown_layer_leaves_a_budget_open(spec):
    shown = document({name: spectrum for name, spectrum in SLOW.items() if name != "d.weight"}, **spec)

    assert not shown.totals.exact
    assert {layer.rank for layer in shown.layers} == {None}


def test_a_spectrum_that_is_too_rough_counts_as_unknown():
    rough = SLOW | {"a.weight": [Spectrum([1.0, 1e-4] + [1e-5] * 62, 0, 1e-6)]}

    assert not document(rough, rank={"budget": 0.5}).totals.exact
    assert document(
        rough | {"a.weight": [*rough["a.weight"], SLOW["a.weight"][0]]}, rank={"budget": 0.5}
    ).totals.exact


def test_an_energy_that_no_saving_rank_keeps_leaves_the_layer_dense():
    (layer, *_) = document(SLOW, rank={"energy": 1.0}).layers

    assert (layer.rank, layer.reason) == (None, "no_saving")


def test_an_open_budget_bounds_the_sums():
    shown = document({}, rank={"budget": 0.5})
    dense = document({}, rank={"budget": 0.5}, layout="dense")
    files = files_of()

    assert shown.totals.parameters_after == shown.totals.parameters_before - 17408 // 2
    assert dense.totals.parameters_after == dense.totals.parameters_before
    assert document({}, rank={"budget_bytes": 40_000}).totals.bytes_after == 40_000
    assert document({}, rank={"budget_bytes": 10**6}).totals.bytes_after == sum(
        t.nbytes for t in files.tensors
    )


def test_the_bounds_are_the_ranks_that_are_allowed():
    layer = document({}, rank={"error": 0.3}, align=8, min_rank=9).layers[0]

    assert (layer.rank_bounds.least, layer.rank_bounds.most) == (16, 24)


def test_a_budget_that_turns_out_not_to_suffice_is_refused():
    flat = {name: [Spectrum([1.0] * len(some[0].values), 0, 0.0)] for name, some in SLOW.items()}

    with pytest.raises(SpecError, match="at least"):
        document(flat, rank={"budget": 0.1}, overrides=[{"match": "[ab]", "rank": {"energy": 0.4}}])
