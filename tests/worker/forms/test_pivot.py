"""worker/forms/pivot.py: jobs with rows and coefficients, from the spec to the files."""

import json

import pytest
import torch
from safetensors import safe_open

from schemas.problem import SpecError
from worker.forms.pivot import multiply_rows

SHAPES = {"a": (60, 40), "b": (30, 80)}


@pytest.fixture
def model(save, gaussian):
    tensors = {f"{name}.weight": gaussian(*shape) for name, shape in SHAPES.items()}
    tensors["a.bias"] = gaussian(60)
    return save(tensors), tensors


def products(result, *, transposed=False):
    stored = result.tensors()
    found = {}
    for layer in result.report.layers:
        parts = [stored[f"{layer.name}.{name}"] for name in ("0.weight", "1.weight", "rows")]
        rows, coefficients, indices = [part.mT if transposed and part.ndim == 2 else part for part in parts]
        found[layer.name] = multiply_rows((rows.double(), coefficients.double(), indices))
    return found


@pytest.mark.parametrize(
    ("rank", "dtype"),
    [
        *((rank, dtype) for rank in (7, 28, {"ratio": 0.9}) for dtype in ("keep", "bfloat16", "float16")),
        *((rank, "keep") for rank in ({"energy": 0.9}, {"error": 0.2}, {"budget": 0.6})),
        ({"budget_bytes": 16_000}, "keep"),
    ],
)
def test_a_job_stores_rows_coefficients_and_indices_and_reports_their_error(model, compress, rank, dtype):
    source, weights = model
    result = compress(source, method="pivot", rank=rank, dtype=dtype)

    stored = result.tensors()
    for layer in result.report.layers:
        weight, product = weights[layer.tensor].double(), products(result)[layer.name]
        (m, n), k = weight.shape, layer.rank
        names = [f"{layer.name}.{name}" for name in ("0.weight", "1.weight", "rows")]
        shapes = [tuple(stored[name].shape) for name in names]
        assert (layer.outcome, layer.method) == ("factored", "pivot")
        assert shapes == [(k, n), (m - k, k), (k,)]
        assert stored[names[2]].dtype == torch.int32
        assert layer.rows == tuple(stored[names[2]].tolist())
        assert layer.parameters_after == k * (m + n - k) < layer.parameters_before
        assert layer.bytes_after == sum(stored[name].nbytes for name in names) < layer.bytes_before
        error = float((weight - product).norm() / weight.norm())
        assert layer.relative_error == pytest.approx(error, rel=1e-4)
    assert "a.bias" in stored
    with safe_open(result.directory / source.name, "pt") as file:
        described = json.loads(file.metadata()["eckart"])["layers"]
    assert {name: (entry["method"], entry["rank"]) for name, entry in described.items()} == {
        layer.name: ("pivot", layer.rank) for layer in result.report.layers
    }
    if isinstance(rank, dict) and "budget_bytes" in rank:
        assert (result.directory / source.name).stat().st_size <= rank["budget_bytes"]


def test_at_equal_parameters_the_error_is_below_that_of_svd(model, compress):
    made = {method: compress(model[0], method=method, rank={"ratio": 0.6}) for method in ("svd", "pivot")}

    for svd, pivot in zip(made["svd"].report.layers, made["pivot"].report.layers, strict=True):
        assert pivot.parameters_after <= 0.6 * pivot.parameters_before
        assert pivot.rank > svd.rank
        assert pivot.relative_error < svd.relative_error


def test_a_transposed_layer_stores_transposed_matrices(save, gaussian, compress):
    weight = gaussian(40, 60)
    result = compress(save({"c.weight": weight}), method="pivot", rank=9, transposed=["c"])

    stored = result.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        "c.0.weight": (40, 9),
        "c.1.weight": (9, 51),
        "c.rows": (9,),
    }
    difference = weight.double().mT - products(result, transposed=True)["c"]
    (layer,) = result.report.layers
    assert layer.relative_error == pytest.approx(float(difference.norm() / weight.double().norm()), rel=1e-4)


def test_the_dense_layout_holds_the_product_of_svd(model, compress):
    made = [
        compress(model[0], method=method, rank=9, layout="dense").tensors() for method in ("svd", "pivot")
    ]

    for name in ("a.weight", "b.weight"):
        torch.testing.assert_close(made[0][name], made[1][name], rtol=0, atol=1e-5)


def test_an_adapter_is_refused_since_it_has_two_factors(model, save, gaussian, compress):
    base = save({name: gaussian(*tensor.shape) for name, tensor in model[1].items()}, "base.safetensors")

    with pytest.raises(SpecError, match="An adapter has two factors for each layer, but pivot stores others"):
        compress(model[0], method="pivot", rank=4, layout="adapter", base=base)


def test_a_tensor_by_the_name_of_the_indices_keeps_the_layer_dense(save, gaussian, compress):
    result = compress(save({"a.weight": gaussian(40, 50), "a.rows": gaussian(3)}), method="pivot", rank=4)

    (layer,) = result.report.layers
    assert layer.reason in {"names_taken", "more_than_a_linear"}


def test_coefficients_in_eight_bits_have_the_error_that_is_reported(model, compress):
    result = compress(model[0], method="pivot", rank=12, dtype="int8")

    stored = result.tensors()
    for layer in result.report.layers:
        rows, coefficients = (
            stored[f"{layer.name}.{i}.weight"].double() * stored[f"{layer.name}.{i}.weight_scale"].double()
            for i in range(2)
        )
        weight = model[1][layer.tensor].double()
        product = multiply_rows((rows, coefficients, stored[f"{layer.name}.rows"]))
        assert layer.relative_error == pytest.approx(
            float((weight - product).norm() / weight.norm()), rel=1e-4
        )
        assert stored[f"{layer.name}.rows"].dtype == torch.int32
        assert layer.relative_error < 1.05 * layer.optimal_error
