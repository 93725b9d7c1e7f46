"""worker/forms/quantized.py: files that compressed-tensors unpacks, and errors of what is in them."""

import json

import pytest
import torch
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors import safe_open

from worker.lowrank import output_error, relative_error

ROWS, COLUMNS = 96, 128
ALONE = ["int8", "int4", "int3"]
CORRECTED = [f"{method}+svd" for method in ALONE]


def unpacked(tensors, module, method, group=64):
    """Unpack the integers of a module by the package whose layout they have."""
    bits = int(method[3])
    state = {
        name.removeprefix(f"{module}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{module}.weight")
    }
    grouped = {} if bits == 8 else {"group_size": group}
    strategy = "channel" if bits == 8 else "group"
    arguments = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy=strategy, **grouped)
    compressor = IntQuantizationCompressor if bits == 8 else PackedQuantizationCompressor
    return compressor.decompress(state, QuantizationScheme(targets=["Linear"], weights=arguments))["weight"]


def factor(tensors, name):
    scale = tensors.get(f"{name}_scale")
    return tensors[name] if scale is None else tensors[name].to(scale.dtype) * scale


def approximation(tensors, module, method, *, transposed=False, **packing):
    """Return Q + L·R from the tensors of a file."""
    dense = unpacked(tensors, module, method, **packing).double()
    if not method.endswith("+svd"):
        return dense
    right, left = (factor(tensors, f"{module}.{i}.weight").double() for i in range(2))
    return dense + (right @ left).mT if transposed else dense + left @ right


@pytest.fixture
def model(save, gaussian):
    """Return a function that saves a weight of some dtype and a bias."""

    def make(dtype=torch.float32, *, transposed=False):
        shape = (COLUMNS, ROWS) if transposed else (ROWS, COLUMNS)
        tensors = {"a.weight": gaussian(*shape).to(dtype), "a.bias": gaussian(ROWS).to(dtype)}
        return save(tensors), tensors["a.weight"].mT if transposed else tensors["a.weight"]

    return make


@pytest.fixture
def gram(save, gaussian):
    x = gaussian(600, COLUMNS) @ gaussian(COLUMNS, COLUMNS)
    return save({"a.gram": x.mT @ x}, "grams.safetensors"), x.mT @ x


@pytest.mark.parametrize(
    ("method", "dtype", "factors"),
    [
        *((method, torch.float32, "keep") for method in ALONE),
        *((method, torch.bfloat16, "int8") for method in CORRECTED),
        *((method, torch.float32, "int8") for method in CORRECTED),
        ("int4", torch.bfloat16, "keep"),
        ("int8", torch.float64, "keep"),
        ("int3+svd", torch.float64, "keep"),
        ("int4+svd", torch.float16, "keep"),
        ("int8", torch.float16, "keep"),
    ],
)
def test_a_file_unpacks_to_the_numbers_that_the_report_speaks_of(
    method, dtype, factors, model, gram, compress
):
    source, weight = model(dtype)
    result = compress(source, method=method, rank=8, dtype=factors, calibration=gram[0])

    (layer,) = result.report.layers
    found = approximation(result.tensors(), "a", method)
    assert (layer.outcome, layer.method) == ("factored", method)
    assert layer.rank == (8 if method in CORRECTED else 0)
    tolerance = 0.01 if dtype in {torch.float16, torch.bfloat16} else 1e-4
    assert layer.relative_error == pytest.approx(relative_error(weight, (found,)), rel=tolerance)
    assert layer.weighted_error == pytest.approx(output_error(weight, (found,), gram[1]), rel=tolerance)
    assert layer.optimal_error is None
    assert layer.optimal_weighted_error is None
    stored = result.tensors()
    assert layer.bytes_after == sum(tensor.nbytes for name, tensor in stored.items() if name != "a.bias")
    assert layer.bytes_after < layer.bytes_before
    assert stored["a.bias"].dtype == dtype
    assert (layer.singular_values is None) is (method in ALONE)


@pytest.mark.parametrize("method", ["int8", "int4", "int3+svd"])
def test_a_file_says_how_it_is_stored(method, model, compress):
    result = compress(model()[0], method=method, rank=8, group=32, dtype="int8")

    with safe_open(result.directory / "model.safetensors", "pt") as file:
        (entry,) = json.loads(file.metadata()["eckart"])["layers"].values()
    assert (entry["method"], entry["bits"], entry["dtype"]) == (method, int(method[3]), "F32")
    assert entry.get("group") == (None if method == "int8" else 32)
    assert entry.get("codec") == ("int8" if method == "int3+svd" else None)
    assert entry["rank"] == (8 if method == "int3+svd" else 0)


@pytest.mark.parametrize("method", ["int8", "int8+svd", "int4+svd", "int3"])
def test_a_transposed_weight_has_its_integers_as_outputs_by_inputs(method, model, compress):
    source, weight = model(transposed=True)
    result = compress(source, method=method, rank=8, transposed=["a"], group=32)

    (layer,) = result.report.layers
    found = approximation(result.tensors(), "a", method, transposed=True, group=32)
    assert layer.relative_error == pytest.approx(relative_error(weight, (found,)), rel=1e-4)


@pytest.mark.parametrize("method", ALONE + CORRECTED)
def test_the_dense_layout_stores_what_the_integers_stand_for(method, model, compress):
    source, weight = model()
    factored, dense = (compress(source, method=method, rank=8, layout=x) for x in ("factored", "dense"))

    found = approximation(factored.tensors(), "a", method)
    assert set(dense.tensors()) == {"a.weight", "a.bias"}
    assert torch.allclose(dense.tensors()["a.weight"].double(), found, atol=1e-6)
    assert dense.report.layers[0].relative_error == pytest.approx(relative_error(weight, (found,)), rel=1e-4)


@pytest.mark.parametrize("base", ALONE)
@pytest.mark.parametrize("calibrated", [False, True])
def test_factors_correct_what_rounding_loses(base, calibrated, model, gram, compress):
    source, weight = model()
    options = {"calibration": gram[0]} if calibrated else {}
    alone = compress(source, method=base, **options)
    corrected = compress(source, method=f"{base}+svd", rank=12, **options)

    quantised = approximation(alone.tensors(), "a", base)
    assert torch.equal(quantised, approximation(corrected.tensors(), "a", base))  # the same Q
    lost = weight.double() - quantised
    root = torch.linalg.cholesky(gram[1].double()) if calibrated else torch.eye(COLUMNS, dtype=torch.float64)
    values = torch.linalg.svdvals(lost @ root)
    best = values[12:].square().sum().sqrt() / torch.linalg.matrix_norm(weight.double() @ root)
    (layer,) = corrected.report.layers
    error = layer.weighted_error if calibrated else layer.relative_error
    assert error == pytest.approx(float(best), rel=1e-3)
    assert layer.singular_values == pytest.approx(values.tolist(), rel=1e-3)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("rule", [{"error": 0.05}, {"error": 0.5}, {"energy": 0.3}, {"ratio": 0.2}], ids=str)
def test_rank_rules_speak_of_the_weight_and_of_what_rounding_loses(calibrated, rule, model, gram, compress):
    source, _ = model()
    options = {"calibration": gram[0]} if calibrated else {}
    result = compress(source, method="int4+svd", rank=rule, **options)

    (layer,) = result.report.layers
    error = layer.weighted_error if calibrated else layer.relative_error
    if "error" in rule:
        limit = rule["error"]
        assert error <= limit
        assert layer.rank == 1 or float(limit) == 0.05
        if layer.rank > 1:
            below = compress(source, method="int4+svd", rank=layer.rank - 1, **options).report.layers[0]
            assert (below.weighted_error if calibrated else below.relative_error) > limit
    elif "energy" in rule:
        squares = torch.tensor(layer.singular_values, dtype=torch.float64).square()
        assert squares[: layer.rank].sum() >= 0.3 * squares.sum() > squares[: layer.rank - 1].sum()
    else:
        assert layer.rank == int(0.2 * ROWS * COLUMNS / (ROWS + COLUMNS))


def test_a_rule_that_no_rank_meets_keeps_the_weight(model, compress):
    (layer,) = compress(model()[0], method="int3+svd", rank={"error": 1e-6}).report.layers

    assert (layer.outcome, layer.reason) == ("kept", "no_saving")


@pytest.mark.parametrize("method", ["int8", "int4+svd"])
@pytest.mark.parametrize(
    ("spoil", "dtype", "reason"),
    [
        (lambda w: w.fill_(0), torch.float32, None),
        (lambda w: w[7].fill_(0), torch.float32, None),
        (lambda w: w[3].fill_(torch.nan), torch.float32, "not_finite"),
        (lambda w: w.mul_(1e-7), torch.float16, "out_of_range"),
        (lambda w: w.mul_(1e36), torch.float32, None),
        (lambda w: w.mul_(1e-30), torch.float32, None),
        (lambda w: w.mul_(1e60), torch.float64, "out_of_range"),
    ],
    ids=["zero", "zero row", "NaN", "tiny float16", "huge", "tiny", "huge float64"],
)
def test_extreme_weights_are_rounded_or_kept_with_the_reason(
    method, spoil, dtype, reason, save, gaussian, compress
):
    weight = gaussian(ROWS, COLUMNS).to(dtype)
    spoil(weight)
    (layer,) = compress(save({"a.weight": weight}), method=method, rank=4).report.layers

    assert layer.reason == reason
    if reason is None:
        assert layer.relative_error < 0.15


def test_a_corrected_bias_keeps_its_name(model, save, gaussian, compress):
    source, weight = model()
    x = gaussian(500, COLUMNS) + 2
    grams = save(
        {"a.gram": x.mT @ x, "a.mean": x.mean(0), "a.count": torch.tensor([500.0])}, "grams.safetensors"
    )
    result = compress(source, method="int3+svd", rank=4, group=32, calibration=grams)

    stored = result.tensors()
    found = approximation(stored, "a", "int3+svd", group=32)
    with safe_open(source, "pt") as file:
        before = file.get_tensor("a.bias")
    wanted = weight.double() @ x.double().mean(0) + before.double()
    assert torch.allclose(found @ x.double().mean(0) + stored["a.bias"].double(), wanted, atol=1e-4)
