"""worker/forms: convolutions of every form from file to file, alone and beside linear layers."""

import copy
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from eckart import calibrate
from eckart.torch import load_compressed
from eckart.torch.kernels import joined
from schemas.planning.forms import CONV_FORMS
from tests.worker.lowrank.test_kernels import of_form

SHAPE = (16, 12, 3, 3)
LINEAR = (40, 60)
FORMS = sorted(CONV_FORMS)
RULES = [
    3,
    {"auto": "vbmf"},
    {"ratio": 0.6},
    {"energy": 0.6},
    {"error": 0.7},
    {"budget": 0.5},
    {"budget_bytes": 10_000},
]


@pytest.fixture
def model(save, gaussian):
    """Return a checkpoint of a linear layer and a convolution, nearly of four terms; and its tensors."""
    kernel = of_form("cp", 4).reshape(SHAPE).float() + 0.3 * gaussian(*SHAPE)
    tensors = {"conv.weight": kernel.contiguous(), "conv.bias": gaussian(16), "fc.weight": gaussian(*LINEAR)}
    return save(tensors), tensors


def kernel_of(result, conv, whole=SHAPE):
    """Multiply the stored factors of the convolution."""
    stored = result.tensors()
    names = sorted(name for name in stored if name.startswith("conv.") and name.endswith(".weight"))
    return joined(conv, [stored[name].double() for name in names], whole)


def layer_of(result, name="conv"):
    return next(layer for layer in result.report.layers if layer.name == name)


@pytest.mark.parametrize("conv", FORMS)
@pytest.mark.parametrize("rank", RULES, ids=str)
def test_every_rule_gives_stored_factors_whose_error_is_reported(model, compress, conv, rank):
    source, tensors = model
    result = compress(source, conv=conv, rank=rank, overrides=[{"match": "fc", "min_rank": 2}])

    layer, weight = layer_of(result), tensors["conv.weight"]
    assert (layer.outcome, layer.method, layer.shape) == ("factored", conv, SHAPE)
    stored = result.tensors()
    own = {name: stored[name] for name in stored if name.startswith("conv.") and name.endswith(".weight")}
    assert layer.parameters_after == sum(tensor.numel() for tensor in own.values())
    assert layer.parameters_after < weight.numel()
    error = float((weight - kernel_of(result, conv)).norm() / weight.norm())
    assert layer.relative_error == pytest.approx(error, rel=1e-5)
    assert torch.equal(stored[f"conv.{len(own) - 1}.bias"], tensors["conv.bias"])
    if isinstance(rank, dict) and "error" in rank:
        assert error <= 0.7
    if isinstance(rank, dict) and "energy" in rank:
        assert error**2 <= 0.4
    if isinstance(rank, dict) and "ratio" in rank:
        assert layer.parameters_after <= 0.6 * weight.numel()
    if isinstance(rank, dict) and "budget" in rank:
        assert sum(each.parameters_after for each in result.report.layers) <= 0.5 * (weight.numel() + 2400)
    if isinstance(rank, dict) and "budget_bytes" in rank:
        assert (result.directory / source.name).stat().st_size <= 10_000


def rearranged(weight):
    outputs, inputs, height, width = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)


@pytest.mark.parametrize(
    ("conv", "matrix"), [("channel", lambda weight: weight.flatten(1)), ("spatial", rearranged)]
)
@pytest.mark.parametrize("rank", [1, 5, 8])
def test_channel_and_spatial_are_the_optimum(model, compress, conv, matrix, rank):
    source, tensors = model
    values = torch.linalg.svdvals(matrix(tensors["conv.weight"].double()))

    layer = layer_of(compress(source, conv=conv, rank=rank))

    best = float(values[rank:].norm() / values.norm())
    assert layer.relative_error == pytest.approx(best, rel=1e-4)
    assert layer.optimal_error == pytest.approx(best, rel=1e-4)
    assert layer.singular_values == pytest.approx(values[: len(layer.singular_values)].tolist(), rel=1e-3)


@pytest.mark.parametrize("conv", ["tucker2", "cp"])
def test_no_optimum_is_told_where_none_is_known(model, compress, conv):
    assert layer_of(compress(model[0], conv=conv, rank=3)).optimal_error is None


def exact(conv):
    """Return a kernel that is of a form at rank 2."""
    if conv in {"tucker2", "cp", "separable"}:
        return of_form(conv, 2).reshape(SHAPE).float().contiguous()
    generator = torch.Generator().manual_seed(3)
    shapes = {"channel": ((2, *SHAPE[1:]), (16, 2, 1, 1)), "spatial": ((2, 12, 3, 1), (16, 2, 1, 3))}
    factors = [torch.randn(*shape, generator=generator) for shape in shapes[conv]]
    return joined(conv, factors, SHAPE).contiguous()


@pytest.mark.parametrize("conv", FORMS)
@pytest.mark.parametrize("rank", [2, {"error": 1e-4}], ids=str)
def test_a_kernel_of_exactly_the_form_comes_back(save, compress, conv, rank):
    kernel = exact(conv)

    result = compress(save({"conv.weight": kernel}), conv=conv, rank=rank)

    assert layer_of(result).rank == 2
    assert layer_of(result).relative_error < 1e-5


@pytest.mark.parametrize("conv", FORMS)
def test_the_dense_layout_holds_the_product(model, compress, conv):
    source, tensors = model
    factored, dense = compress(source, conv=conv, rank=3), compress(source, conv=conv, rank=3, layout="dense")

    stored = dense.tensors()["conv.weight"]
    assert stored.shape == tensors["conv.weight"].shape
    torch.testing.assert_close(stored.double(), kernel_of(factored, conv), rtol=1e-4, atol=1e-5)
    assert layer_of(dense).relative_error == pytest.approx(layer_of(factored).relative_error, rel=1e-5)


@pytest.mark.parametrize("conv", FORMS)
@pytest.mark.parametrize(("dtype", "stored"), [("float16", "F16"), ("bfloat16", "BF16"), ("int8", "F32")])
def test_the_factors_have_the_dtype_that_is_asked_for(model, compress, conv, dtype, stored):
    source, tensors = model
    result = compress(source, conv=conv, rank=3, dtype=dtype)

    with safe_open(result.directory / source.name, "pt") as file:
        names = [name for name in file.keys() if name.startswith("conv.") and "weight" in name]  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in names} == {stored}
    weight = tensors["conv.weight"]
    error = float((weight - kernel_of(result, conv)).norm() / weight.norm())
    assert layer_of(result).relative_error == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("conv", ["channel", "spatial", "tucker2"])
def test_a_transposed_convolution_is_factored_as_the_other_is(save, compress, gaussian, conv):
    weight = gaussian(*SHAPE)
    plain = compress(save({"conv.weight": weight}), conv=conv, rank=3)
    turned = compress(
        save({"conv.weight": weight.transpose(0, 1).contiguous()}), conv=conv, rank=3, transposed=["conv"]
    )

    stored = turned.tensors()
    assert layer_of(turned).relative_error == pytest.approx(layer_of(plain).relative_error, rel=1e-6)
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(stored[name].transpose(0, 1), tensor)


@pytest.mark.parametrize("conv", FORMS)
def test_the_difference_to_a_base_is_factored(model, save, compress, gaussian, conv):
    source, tensors = model
    base = {name: tensor - 0.1 * gaussian(*tensor.shape) for name, tensor in tensors.items()}
    base_path = save(base, name="base.safetensors")

    result = compress(source, conv=conv, rank=3, layout="dense", base=base_path)

    difference = (tensors["conv.weight"] - base["conv.weight"]).double()
    left = tensors["conv.weight"].double() - result.tensors()["conv.weight"].double()
    assert layer_of(result).relative_error == pytest.approx(float(left.norm() / difference.norm()), rel=1e-4)


def test_a_calibration_lowers_the_error_of_the_outputs(save, compress, gaussian):
    weight = gaussian(16, 12, 3, 3)
    inputs = gaussian(4, 12, 9, 9) * torch.logspace(0, -2, 12)[None, :, None, None]
    rows = torch.nn.functional.unfold(inputs, 3).transpose(1, 2).reshape(-1, 108).double()
    source = save({"conv.weight": weight})
    grams = save({"conv.gram": rows.mT @ rows}, name="grams.safetensors")

    plain, calibrated = (
        compress(source, conv="channel", rank=4),
        compress(source, conv="channel", rank=4, calibration=grams),
    )

    def output_error(result):
        lost = torch.nn.functional.conv2d(inputs.double(), weight.double() - kernel_of(result, "channel"))
        return float(lost.norm() / torch.nn.functional.conv2d(inputs.double(), weight.double()).norm())

    assert layer_of(calibrated).calibrated
    assert layer_of(calibrated).weighted_error == pytest.approx(output_error(calibrated), rel=1e-4)
    assert output_error(calibrated) < 0.9 * output_error(plain)
    best = torch.linalg.svdvals(weight.flatten(1).double() @ rows.mT)
    assert output_error(calibrated) == pytest.approx(float(best[4:].norm() / best.norm()), rel=1e-3)


def test_what_calibrate_wrote_lowers_the_error_and_keeps_the_mean_of_the_outputs(save, compress, tmp_path):
    torch.manual_seed(4)
    network = torch.nn.Sequential(torch.nn.Conv2d(12, 16, 3, stride=2, padding=1))
    scales = torch.logspace(0, -2, 12)[:, None, None]
    images = [(torch.randn(4, 12, 9, 9) + 0.5) * scales for _ in range(5)]
    grams = calibrate(network, images, tmp_path / "grams.safetensors")
    source = save(network.state_dict())

    plain = load_compressed(copy.deepcopy(network), compress(source, conv="channel", rank=4).directory)
    result = compress(source, conv="channel", rank=4, calibration=grams)
    calibrated = load_compressed(copy.deepcopy(network), result.directory)

    x = torch.cat(images)
    with torch.no_grad():
        wanted, before, after = network(x), plain(x), calibrated(x)
    assert layer_of(result, "0").bias_corrected
    torch.testing.assert_close(after.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=0, atol=1e-4)
    assert float((after - wanted).norm()) < 0.9 * float((before - wanted).norm())


def test_a_budget_is_shared_between_convolutions_and_linear_layers(save, compress, gaussian):
    # The convolution is of rank 2 but for noise; the linear layer has all directions alike.
    kernel = (gaussian(16, 2) @ gaussian(2, 108) + 0.01 * gaussian(16, 108)).reshape(SHAPE)
    source = save({"conv.weight": kernel.contiguous(), "fc.weight": gaussian(*LINEAR)})

    result = compress(source, conv="channel", rank={"budget": 0.5})

    assert layer_of(result).rank == 2
    assert layer_of(result).relative_error < 0.05
    assert layer_of(result, "fc").rank > 12  # what half of its own parameters would be


@pytest.mark.parametrize("conv", FORMS)
def test_metadata_say_the_form(model, compress, conv):
    result = compress(model[0], conv=conv, rank=3)

    with safe_open(result.directory / model[0].name, "pt") as file:
        assert f'"method":"{conv}"' in file.metadata()["eckart"]
        assert f'"shape":{list(SHAPE)}'.replace(" ", "") in file.metadata()["eckart"]


def test_kernels_that_are_kept_are_copied_byte_for_byte(save, compress, gaussian):
    tensors = {
        "a.weight": gaussian(16, 1, 3, 3),
        "b.weight": gaussian(16, 12, 3, 3, 3),
        "c.weight": gaussian(*SHAPE),
    }
    source = save(tensors)

    result = compress(source, conv="spatial", rank=3)

    reasons = {layer.name: layer.reason for layer in result.report.layers}
    assert reasons == {"a": "depthwise", "b": "kernel_sides", "c": None}
    stored = load_file(result.directory / source.name)
    assert torch.equal(stored["a.weight"], tensors["a.weight"])
    assert torch.equal(stored["b.weight"], tensors["b.weight"])
    assert math.isclose(result.report.totals.parameters_after, sum(t.numel() for t in stored.values()))
