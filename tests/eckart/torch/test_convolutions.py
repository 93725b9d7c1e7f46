"""eckart/torch: convolutions run as chains of smaller ones, by a table of modules, and are saved again."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eckart import LoadError
from eckart.torch import LowRankConv, LowRankConvTranspose, expand, load_compressed, save_compressed
from eckart.torch.kernels import joined

METHODS = ("channel", "spatial", "tucker2", "cp", "separable")
BOTH = {"bias": True}
PLAIN = {
    "plain": {},
    "strided": {"stride": 2, "padding": 2, "dilation": 2},
    "grouped": {"groups": 2, "bias": False},
    "same": {"padding": "same", "padding_mode": "circular", "kernel_size": 4, "dilation": 2},
    "valid": {"padding": "valid", "dilation": 3},
    "reflect": {"padding": 2, "padding_mode": "reflect", "stride": 2, "groups": 4},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
    "depthwise": {"groups": 8, "out_channels": 16, "padding": 1},
}
UNEVEN = {
    "kernel_size": (3, 5),
    "stride": (2, 1),
    "padding": (0, 2),
    "dilation": (2, 1),
    "padding_mode": "zeros",
}
TRANSPOSED = {
    "transposed": {},
    "upsampling": {"stride": 2, "padding": 1, "output_padding": 1, "kernel_size": 4},
    "dilated": {"dilation": 2, "stride": 2, "bias": False},
}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TURNED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIDES = {"channel": (1, 2, 3), "spatial": (2,), "tucker2": (1, 2, 3), "cp": (1, 2), "separable": (1, 2)}


def factor_shapes(method, whole):
    """Return the shapes of the factors of a small kernel, at ranks that differ where they may."""
    outputs, inputs, *sides = whole
    one = [1] * len(sides)
    return {
        "channel": [(3, inputs, *sides), (outputs, 3, *one)],
        "spatial": [(3, inputs, sides[0], 1), (outputs, 3, 1, sides[-1])],
        "tucker2": [(2, inputs, *one), (3, 2, *sides), (outputs, 3, *one)],
        "cp": [(3, inputs, *one), (3, 1, *sides), (outputs, 3, *one)],
        "separable": [(2 * inputs, 1, *sides), (outputs, 2 * inputs, *one)],
    }[method]


def convolution(classes, sides, options):
    asked = {"in_channels": 8, "out_channels": 12, "kernel_size": 3} | options
    torch.manual_seed(1)
    return classes[sides](**asked)


def compressed(path, layer, method):
    """Write the file of a layer in this form, with random factors; return the kernel that they stand for."""
    turned = isinstance(layer, tuple(TURNED.values()))
    shape = tuple(layer.weight.shape)
    whole = (shape[1], shape[0], *shape[2:]) if turned else shape
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(*each, generator=generator) for each in factor_shapes(method, whole)]
    kernel = joined(method, factors, whole)
    stored = [factor.transpose(0, 1) if turned else factor for factor in factors]
    state = {f"0.{number}.weight": each.contiguous() for number, each in enumerate(stored)}
    if layer.bias is not None:
        state[f"0.{len(factors) - 1}.bias"] = layer.bias.detach()
    entry = {"method": method, "rank": 3, "shape": list(shape), "dtype": "F32", "relative_error": 0.5}
    entry |= {"transposed": True} if turned else {}
    manifest = json.dumps({"version": 1, "layers": {"0": entry}})
    save_file(state, path, {"format": "pt", "eckart": manifest})
    return (kernel.transpose(0, 1) if turned else kernel).contiguous()


def cases():
    """Yield each method with each module that it allows, in as many dimensions as it has."""
    for method in METHODS:
        for sides in SIDES[method]:
            for name, options in PLAIN.items():
                yield pytest.param(method, CONVS, sides, options, id=f"{method}-{sides}d-{name}")
            if method in {"channel", "spatial", "tucker2"}:
                for name, options in TRANSPOSED.items():
                    yield pytest.param(method, TURNED, sides, options, id=f"{method}-{sides}d-{name}")
        yield pytest.param(method, CONVS, 2, UNEVEN, id=f"{method}-2d-uneven")


@pytest.mark.parametrize(("method", "classes", "sides", "options"), list(cases()))
def test_the_chain_computes_what_the_kernel_does(tmp_path, method, classes, sides, options):
    layer = convolution(classes, sides, options)
    kernel = compressed(tmp_path / "c.safetensors", layer, method)
    network = nn.Sequential(copy.deepcopy(layer))
    x = torch.randn(2, 8, *[11] * sides, generator=torch.Generator().manual_seed(2))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_compressed(network, tmp_path / "c.safetensors")

    found, layer.weight.data = network[0], kernel
    wanted = layer(x).detach()
    assert isinstance(found, LowRankConv)
    assert all(
        type(part).__module__ in {"torch.nn.modules.conv", "eckart.torch.convolutions"} for part in found
    )
    if layer.groups == 1:
        assert all(type(part) is classes[sides] for part in found)
    torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    torch.testing.assert_close(found.weight.detach() + 0, kernel)
    kept = (
        "stride",
        "padding",
        "dilation",
        "groups",
        "in_channels",
        "out_channels",
        "kernel_size",
        "padding_mode",
    )
    assert all(getattr(found, name) == getattr(layer, name) for name in kept)


@pytest.mark.parametrize("method", ["channel", "spatial", "tucker2"])
def test_a_transposed_convolution_gives_the_size_that_is_asked_for(tmp_path, method):
    layer = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1)
    kernel = compressed(tmp_path / "c.safetensors", layer, method)
    network = load_compressed(nn.Sequential(copy.deepcopy(layer)), tmp_path / "c.safetensors")
    layer.weight.data = kernel
    x = torch.randn(1, 8, 5, 6)

    assert isinstance(network[0], LowRankConvTranspose)
    for size in ([10, 12], [9, 12], [9, 11], [1, 12, 10, 11]):
        wanted = layer(x, output_size=size)
        torch.testing.assert_close(network[0](x, output_size=size), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_loaded_is_saved_expanded_and_multiplied_out(tmp_path, method):
    layer = nn.Conv2d(8, 12, 3, padding=1)
    path = tmp_path / "c.safetensors"
    kernel = compressed(path, layer, method)
    network = load_compressed(nn.Sequential(copy.deepcopy(layer)), path)
    with torch.no_grad():
        network[0][0].weight.mul_(2.0)  # as after a fine-tuning
    save_compressed(network, tmp_path / "s.safetensors")
    again = load_compressed(nn.Sequential(copy.deepcopy(layer)), tmp_path / "s.safetensors")
    expand(path, tmp_path / "e.safetensors")
    dense = load_compressed(nn.Sequential(copy.deepcopy(layer)), path, dequantize=True)
    x = torch.randn(1, 8, 7, 7)

    assert torch.equal(again(x), network(x))
    torch.testing.assert_close(load_file(tmp_path / "e.safetensors")["0.weight"], kernel)
    assert type(dense[0]) is nn.Conv2d
    torch.testing.assert_close(dense[0].weight.detach(), kernel)


class Same(nn.Conv2d):
    """A convolution with a way of its own, as many libraries have."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Same(8, 12, 3, bias=False), "Same is no plain convolution"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 12, 3, bias=False)), None),
        (nn.ConvTranspose2d(12, 8, 3, bias=False), "stores its weight the other way round"),
    ],
    ids=["subclass", "weight norm", "other way"],
)
def test_a_layer_that_cannot_run_the_chain_gets_the_kernel_and_one_warning(tmp_path, layer, reason):
    path = tmp_path / "c.safetensors"
    kernel = compressed(path, nn.Conv2d(8, 12, 3, bias=False), "channel")
    network = nn.Sequential(layer)
    if reason is None:
        with pytest.raises(LoadError):
            load_compressed(network, path)
        return

    with pytest.warns(UserWarning, match=reason) as told:
        load_compressed(network, path)

    assert len(told) == 1
    assert network[0] is layer
    torch.testing.assert_close(layer.weight.detach(), kernel)


def test_a_transposed_convolution_in_groups_is_multiplied_out(tmp_path):
    layer = nn.ConvTranspose2d(8, 12, 3, groups=2)
    compressed(tmp_path / "c.safetensors", layer, "channel")

    with pytest.warns(UserWarning, match="is a transposed convolution in groups"):
        load_compressed(nn.Sequential(layer), tmp_path / "c.safetensors")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", ["rank", "sides", "missing", "method"])
def test_damaged_factors_are_refused_before_any_change(tmp_path, method, change):
    layer, path = nn.Conv2d(8, 12, 3), tmp_path / "c.safetensors"
    compressed(path, layer, method)
    state = load_file(path)
    entry = {"method": method, "rank": 3, "shape": [12, 8, 3, 3], "dtype": "F32"}
    if change == "rank":
        state["0.0.weight"] = state["0.0.weight"][:-1].contiguous()
    elif change == "sides":
        state["0.0.weight"] = state["0.0.weight"].repeat(1, 1, 2, 1)
    elif change == "missing":
        del state["0.1.weight"]
    else:
        entry["method"] = "new"
    save_file(state, path, {"eckart": json.dumps({"version": 1, "layers": {"0": entry}})})
    before = layer.weight.clone()

    with pytest.raises(LoadError, match=r"damaged|cannot run"):
        load_compressed(nn.Sequential(layer), path)

    assert torch.equal(layer.weight, before)


def test_the_layer_stays_the_object_that_others_hold(tmp_path):
    layer = nn.Conv2d(8, 12, 3).eval().requires_grad_(requires_grad=False)
    compressed(tmp_path / "c.safetensors", layer, "spatial")
    bias, calls = layer.bias, []
    layer.register_forward_hook(lambda *_: calls.append(1))
    network = nn.Sequential(layer)

    load_compressed(network, tmp_path / "c.safetensors")
    network(torch.randn(1, 8, 5, 5))

    assert network[0] is layer
    assert calls == [1]
    assert layer.bias is bias
    assert not any(part.training or part.weight.requires_grad for part in layer)


def test_another_form_takes_the_place_of_the_first(tmp_path):
    layer = nn.Conv2d(8, 12, 3, stride=2, groups=2)
    network, x = nn.Sequential(copy.deepcopy(layer)), torch.randn(1, 8, 9, 9)
    for method in METHODS:
        kernel = compressed(tmp_path / "c.safetensors", layer, method)
        load_compressed(network, tmp_path / "c.safetensors")
        plain = copy.deepcopy(layer)
        plain.weight.data = kernel

        torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-4)


def test_the_meta_device_gets_memory(tmp_path):
    layer = nn.Conv2d(8, 12, 3)
    compressed(tmp_path / "c.safetensors", layer, "tucker2")
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(8, 12, 3))

    load_compressed(network, tmp_path / "c.safetensors")

    assert network(torch.randn(1, 8, 5, 5)).shape == (1, 12, 3, 3)
