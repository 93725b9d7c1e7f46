"""worker/spectra.py and worker/budget.py: one budget over forms, never worse than a single one."""

from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.problem import SpecError
from tests.worker.test_budget import decaying

METHODS = ["svd", "pivot", "int8", "int4", "int3", "int8+svd", "int4+svd", "int3+svd"]
RATES = {"a": 0.1, "b": 0.4, "c": 0.8, "d": 1.2, "e": 2.0, "f": 0.6}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Six layers with different spectra, and the Gram matrices of correlated inputs and gradients."""
    generator = torch.Generator().manual_seed(3)

    def gaussian(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    folder = tmp_path_factory.mktemp("mixed")
    weights, statistics = {}, {}
    for name, rate in RATES.items():
        weights[f"{name}.weight"] = decaying(gaussian, 128, 192, rate)
        x = gaussian(192, 800).double() * torch.logspace(0, -1, 192, dtype=torch.float64)[:, None]
        g = gaussian(128, 800).double() * torch.logspace(0, -1, 128, dtype=torch.float64)[:, None]
        statistics |= {f"{name}.gram": x @ x.T, f"{name}.grad_gram": g @ g.T / 100}
        statistics[f"{name}.count"] = torch.tensor([800.0])
    save_file(weights, folder / "model.safetensors")
    save_file(statistics, folder / "statistics.safetensors")
    return folder


def spent(model, compress, share, method, *, calibrated=False, **options):
    """Return the report of a budget of this share of the input's bytes, and the total error it minimizes."""
    source = model / "model.safetensors"
    options["rank"] = {"budget_bytes": int(share * source.stat().st_size)}
    if calibrated:
        options["calibration"] = model / "statistics.safetensors"
    report = compress(source, method=method, dtype="int8", **options).report
    if calibrated:
        return report, report.totals.predicted_loss or 0.0
    return report, sum((layer.relative_error or 0.0) ** 2 for layer in report.layers)


@pytest.mark.parametrize("share", [0.14, 0.2, 0.27])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_list_is_never_worse_than_any_of_its_methods_at_the_same_bytes(model, compress, share, calibrated):
    report, error = spent(model, compress, share, METHODS, calibrated=calibrated)
    limit = report.spec["rank"]["budget_bytes"]
    alone = {}
    for method in ("svd", "pivot", "int8", "int4", "int4+svd"):
        with suppress(SpecError):  # Not all of them can be so small.
            alone[method] = spent(model, compress, share, method, calibrated=calibrated)[1]

    assert 0.98 * limit <= report.output.bytes <= limit
    assert len({layer.method for layer in report.layers}) > 1
    # What rounding factors to eight bits costs is an estimate before the work.
    assert alone
    assert error <= min(alone.values()) * 1.01


def test_layers_in_a_list_tell_their_form_and_rank_and_the_error_is_recomputed(model, compress):
    report, _ = spent(model, compress, 0.2, METHODS)

    for layer in report.layers:
        assert layer.outcome == "factored"
        assert layer.method in METHODS
        assert (layer.rank == 0) == (layer.method in {"int8", "int4", "int3"})
    # Scales and indices are no parameters, and packed integers are as many as they were.
    assert report.totals.parameters_after == sum(layer.parameters_after for layer in report.layers)


def test_the_same_list_gives_the_same_bytes_in_any_order(model, compress):
    source, rank = model / "model.safetensors", {"budget_bytes": 150_000}
    first = compress(source, method=METHODS, rank=rank, dtype="int8")
    turned = compress(source, method=METHODS[::-1], rank=rank, dtype="int8")

    def files(result):
        return [file.sha256 for file in result.report.output.files]

    assert files(first) == files(turned)


def test_a_loss_is_the_default_where_every_layer_has_both_gram_matrices(model, compress):
    report, loss = spent(model, compress, 0.2, ["svd", "int4+svd"], calibrated=True)
    _, asked = spent(model, compress, 0.2, ["svd", "int4+svd"], calibrated=True, objective="loss")
    _, relative = spent(model, compress, 0.2, ["svd", "int4+svd"], calibrated=True, objective="relative")

    assert loss == asked
    assert loss < relative
    assert all(layer.predicted_loss is not None for layer in report.layers)


def test_a_layer_without_statistics_shares_a_budget_in_units_of_the_loss(model, compress, tmp_path):
    every = load_file(model / "statistics.safetensors")
    source, rank = model / "model.safetensors", {"budget": 0.5}

    def ranks(kept, **options):
        some = {name: every[name] for name in every if name.split(".")[0] in kept}
        save_file(some, tmp_path / "some.safetensors")
        report = compress(source, calibration=tmp_path / "some.safetensors", rank=rank, **options).report
        return {layer.name: layer.rank for layer in report.layers}, report

    most, few = set("abcde"), {"b"}
    asked, report = ranks(most, objective="loss")
    default, warned = ranks(most)
    assert next(layer for layer in report.layers if layer.name == "f").predicted_loss is None
    assert asked["f"] is None or asked["f"] > 0
    # The loss is the default where it is known of layers with half of the parameters.
    assert default == asked
    assert any(line.startswith("objective: loss;") and " f," in line for line in warned.warnings)

    default, warned = ranks(few)
    assert default == ranks(few, objective="relative")[0]
    assert any(line.startswith("objective: relative and not loss") for line in warned.warnings)
