"""A budget over all layers of a real model, through the whole service."""

from math import floor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

LAYERS = 37


@pytest.fixture(scope="module")
def stored(service, minilm):
    return service.client.upload(minilm, id="minilm-budget")


@pytest.fixture(scope="module")
def tails(spectra):
    """Return the relative squared errors that each rank leaves at best, by tensor, as numpy finds them."""
    found = {}
    for name, spectrum in spectra.items():
        squares = spectrum**2
        found[name] = np.append(np.cumsum(squares[::-1])[::-1], 0.0) / squares.sum()
    assert len(found) == LAYERS
    return found


def run(service, stored, spec):
    return service.client.report(service.client.compress(stored, spec).id)


def ranks(layers):
    return {layer.name: (layer.rank, layer.reason) for layer in layers}


def squared_errors(report):
    return sum((layer.relative_error or 0.0) ** 2 for layer in report.layers)


def bound(report, tails, capacity):
    """Return what the sum is at least, whatever the ranks: by duality, at the best of many prices."""
    least = 0.0
    for price in 10 ** np.arange(-8, -4, 0.01):
        paid = -price * capacity
        for layer in report.layers:
            rows, columns = layer.shape
            costs = np.append(np.arange(1, layer.break_even_rank + 1) * (rows + columns), rows * columns)
            errors = np.append(tails[layer.tensor][1 : layer.break_even_rank + 1], 0.0)
            paid += (errors + price * costs).min()
        least = max(least, paid)
    return least


def test_half_of_the_parameters_are_met_and_the_error_is_the_least_there_is(service, stored, tails):
    report = run(service, stored, {"rank": {"budget": 0.5}})
    ratio = run(service, stored, {"rank": {"ratio": 0.5}})
    capacity = floor(0.5 * sum(layer.parameters_before for layer in report.layers))
    left = capacity - sum(layer.parameters_after for layer in report.layers)

    assert len(report.layers) == LAYERS
    for layer in report.layers:
        assert 0 <= left < (sum(layer.shape) if layer.rank else layer.parameters_before)
    least = bound(report, tails, capacity)
    assert least * (1 - 1e-6) <= squared_errors(report) <= 1.02 * least
    assert squared_errors(report) <= 0.9 * squared_errors(ratio)


def test_a_plan_is_what_the_report_says_once_the_spectra_are_known(service, stored):
    specs = [
        {"rank": {"budget": 0.5}},
        {"rank": {"budget": 0.3}, "objective": "absolute", "align": 16},
        {"rank": {"budget_bytes": 60_000_000}, "method": "cx"},
        {"rank": {"energy": 0.8}},
        {"rank": {"budget": 0.6}, "overrides": [{"match": "*.0.*", "rank": {"energy": 0.7}}]},
    ]
    run(service, stored, {"rank": {"energy": 0.5}})
    for spec in specs:
        plan, report = service.client.plan(stored, spec), run(service, stored, spec)
        assert plan.totals.exact
        assert ranks(plan.layers) == ranks(report.layers)
        assert plan.totals.parameters_after == report.totals.parameters_after
        assert plan.totals.bytes_after == report.totals.bytes_after


@pytest.mark.parametrize("spec", [{}, {"method": "cur"}, {"dtype": "float16"}])
def test_a_number_of_bytes_is_met_by_the_whole_file(service, stored, minilm, spec):
    limit = int(0.75 * minilm.stat().st_size)
    report = run(service, stored, {"rank": {"budget_bytes": limit}} | spec)

    assert 0.98 * limit <= report.output.bytes <= limit
    smallest = 2 if spec.get("dtype") == "float16" else 4
    assert limit - report.output.bytes < smallest * (1536 + 384 + 2 * 308) + 24 * LAYERS


def test_more_budget_is_never_worse(service, stored):
    errors = [
        squared_errors(run(service, stored, {"rank": {"budget": share}})) for share in (0.2, 0.4, 0.6, 0.8)
    ]

    assert errors == sorted(errors, reverse=True)


def test_a_calibrated_plan_is_what_the_report_says_too(service, tmp_path):
    generator = torch.Generator().manual_seed(3)
    weights = {f"l{i}.weight": torch.randn(200, 150 + i, generator=generator) for i in range(4)}
    inputs = {name: torch.randn(w.shape[1], 300, generator=generator) for name, w in weights.items()}
    spread = {name: x * torch.logspace(0, -2, len(x))[:, None] for name, x in inputs.items()}
    grams = {name.replace(".weight", ".gram"): x @ x.T for name, x in spread.items() if name != "l2.weight"}
    save_file(weights, tmp_path / "model.safetensors")
    save_file(grams, tmp_path / "grams.safetensors")
    stored = service.client.upload(tmp_path / "model.safetensors", id="calibrated-budget")
    calibration = service.client.upload(tmp_path / "grams.safetensors", id="budget-grams")
    spec = {"rank": {"budget": 0.4}, "calibration": calibration}
    plain, weighed = run(service, stored, {"rank": {"budget": 0.4}}), run(service, stored, spec)

    assert ranks(service.client.plan(stored, spec).layers) == ranks(weighed.layers)
    assert ranks(service.client.plan(stored, {"rank": {"budget": 0.4}}).layers) == ranks(plain.layers)
    assert ranks(plain.layers) != ranks(weighed.layers)
