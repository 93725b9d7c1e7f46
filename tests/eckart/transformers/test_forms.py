"""eckart/transformers: folders of integers, factors and pivot rows, each layer in another form."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from eckart import LoadError
from eckart.torch import (
    LowRankLinear,
    PivotConv1D,
    PivotLinear,
    QuantizedConv1D,
    QuantizedLinear,
    expand,
    load_compressed,
    save_compressed,
)
from eckart.transformers import EckartConfig
from tests.compression import compress
from tests.eckart.torch.storing import Stored
from tests.eckart.transformers.folders import MODELS, QUIET, change_config, quantization_of

pytestmark = QUIET

MISSING = "import-eckart.transformers-first.safetensors"
# By turns; a width of 48 takes no groups of 32.
NARROW = [("int8", None), ("pivot", None), ("svd", "int8"), ("int8+svd", "int8")]
MIXED = [("int4", None), ("svd", None), ("int4+svd", None), ("pivot", "int8"), ("int3+svd", "int8"), *NARROW]
SUFFIXES = ("_proj", ".dense", "query", "key", "value", "c_attn", "c_fc", "c_proj")
CLASSES = (LowRankLinear, QuantizedLinear, PivotLinear, QuantizedConv1D, PivotConv1D)


class Mixed:
    """A model's folder with linear layers in many forms, and the dense folder that it stands for."""

    def __init__(self, name, base, forms=MIXED):
        torch.manual_seed(5)
        model, self.run = MODELS[name]()
        self.kind, self.small, self.dense = type(model), base / "small", base / "dense"
        model.eval().save_pretrained(self.dense)
        state, self.layers = load_file(self.dense / "model.safetensors"), {}
        stored = dict(state)
        names = [
            key.removesuffix(".weight")
            for key in state
            if key.endswith(tuple(f"{s}.weight" for s in SUFFIXES))
        ]
        for number, module in enumerate(names):
            weight, turned = stored.pop(f"{module}.weight"), name == "gpt2"
            shape = tuple(weight.shape[::-1] if turned else weight.shape)
            own = [form for form in forms if shape[1] % 32 == 0 or form in NARROW]
            layer = Stored(module, *own[number % len(own)], shape=shape, transposed=turned)
            stored |= layer.tensors
            if f"{module}.bias" in stored:
                stored[layer.bias] = stored.pop(f"{module}.bias")
            state[f"{module}.weight"] = layer.dense.float()
            self.layers[module] = layer.entry
        save_file(state, self.dense / "model.safetensors", {"format": "pt"})
        shutil.copytree(self.dense, self.small, ignore=shutil.ignore_patterns("*.safetensors"))
        entry = json.dumps({"version": 1, "layers": self.layers})
        save_file(stored, self.small / "eckart.safetensors", {"format": "pt", "eckart": entry})
        listed = {
            key: {field: value for field, value in layer.items() if field != "dtype"}
            for key, layer in self.layers.items()
        }
        quantization = {"quant_method": "eckart", "version": 1, "layers": listed}
        change_config(self.small, {"quantization_config": quantization, "transformers_weights": MISSING})

    def computed(self, model):
        with torch.no_grad():
            return self.run(model.eval())

    @property
    def expected(self):
        return self.computed(self.kind.from_pretrained(self.dense))


@pytest.fixture(scope="module", params=["llama", "bert", "gpt2"])
def mixed(request, tmp_path_factory):
    return Mixed(request.param, tmp_path_factory.mktemp(request.param))


def compressed_layers(model):
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "origin")}


def test_each_layer_of_a_folder_runs_in_its_form(mixed):
    model = mixed.kind.from_pretrained(mixed.small)

    layers = compressed_layers(model)
    assert len(layers) == len(mixed.layers)
    assert len({(type(layer), layer.method) for layer in layers.values()}) >= 6
    stored = load_file(mixed.small / "eckart.safetensors")
    state = model.state_dict()
    for name in stored.keys() & state.keys():
        assert torch.equal(stored[name], state[name])
    torch.testing.assert_close(mixed.computed(model), mixed.expected, rtol=0, atol=1e-4)


def test_a_folder_loads_dense_on_demand(mixed):
    model = mixed.kind.from_pretrained(mixed.small, quantization_config=EckartConfig(dequantize=True))

    assert not compressed_layers(model)
    torch.testing.assert_close(mixed.computed(model), mixed.expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", ["1GB", "20kB"])
def test_what_save_pretrained_writes_loads_and_expands(mixed, size, tmp_path):
    model = mixed.kind.from_pretrained(mixed.small)
    model.save_pretrained(tmp_path / "again", max_shard_size=size)
    again = mixed.kind.from_pretrained(tmp_path / "again")

    assert {name: layer.form for name, layer in compressed_layers(again).items()} == {
        name: layer.form for name, layer in compressed_layers(model).items()
    }
    assert torch.equal(mixed.computed(again), mixed.computed(model))
    wanted = quantization_of(mixed.small)["layers"]
    found = quantization_of(tmp_path / "again")["layers"]
    assert {key: entry["method"] for key, entry in found.items()} == {
        key: entry["method"] for key, entry in wanted.items()
    }
    expand(tmp_path / "again", tmp_path / "expanded")
    dense = mixed.kind.from_pretrained(tmp_path / "expanded")
    assert not compressed_layers(dense)
    torch.testing.assert_close(mixed.computed(dense), mixed.expected, rtol=0, atol=1e-4)


def test_a_folder_loads_in_half_precision(mixed):
    model = mixed.kind.from_pretrained(mixed.small, dtype=torch.bfloat16)

    for layer in compressed_layers(model).values():
        assert layer.weight.dtype == torch.bfloat16
        assert {tensor.dtype for tensor in layer.buffers()} <= {
            torch.int8,
            torch.int32,
            torch.int64,
            torch.bfloat16,
        }
    found = mixed.computed(model).float()
    assert float((found - mixed.expected).norm() / mixed.expected.norm()) < 0.1


def test_torchs_loader_takes_the_folder_and_its_own_file(mixed, tmp_path):
    model = load_compressed(mixed.kind(transformers.AutoConfig.from_pretrained(mixed.dense)), mixed.small)
    torch.testing.assert_close(mixed.computed(model), mixed.expected, rtol=0, atol=1e-4)
    save_compressed(model, tmp_path / "again.safetensors")
    again = mixed.kind(transformers.AutoConfig.from_pretrained(mixed.dense))
    load_compressed(again, tmp_path / "again.safetensors")
    assert torch.equal(mixed.computed(again), mixed.computed(model))


def test_integers_of_layers_that_store_their_weight_the_other_way_round_are_loaded(tmp_path):
    folder = Mixed("gpt2", tmp_path, [("int8", None), ("int8+svd", "int8")])
    model = folder.kind.from_pretrained(folder.small)

    assert {type(layer) for layer in compressed_layers(model).values()} == {QuantizedConv1D}
    torch.testing.assert_close(folder.computed(model), folder.expected, rtol=0, atol=1e-4)


JOBS = [
    {"method": "int4+svd", "rank": 2, "group": 32},
    {"method": "int8+svd", "rank": 2, "dtype": "int8"},
    {"method": "pivot", "rank": 6},
    {"method": "cur", "rank": 4, "dtype": "int8"},
    {"method": "svd", "rank": 6, "dtype": "int8", "layout": "dense"},
]


@pytest.mark.parametrize("spec", JOBS, ids=lambda spec: spec["method"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_a_job_writes_is_loaded_and_expanded(name, spec, tmp_path):
    torch.manual_seed(5)
    model, run = MODELS[name]()
    model.eval().save_pretrained(tmp_path / "dense")
    compress(tmp_path / "dense", tmp_path / "small", **spec)
    expand(tmp_path / "small", tmp_path / "expanded")
    found, wanted = (
        type(model).from_pretrained(tmp_path / folder).eval() for folder in ("small", "expanded")
    )

    assert bool(compressed_layers(found)) is ("layout" not in spec)
    with torch.no_grad():
        torch.testing.assert_close(run(found), run(wanted), rtol=0, atol=1e-4)
        assert not torch.equal(run(wanted), run(model))


@pytest.mark.parametrize("ending", ["_scale", "_packed", "_shape", ".rows"])
def test_a_folder_that_lacks_a_tensor_is_refused(ending, tmp_path):
    folder = Mixed("llama", tmp_path)
    path = folder.small / "eckart.safetensors"
    state = load_file(path)
    lost = next(name for name in state if name.endswith(ending))
    del state[lost]
    save_file(state, path, {"format": "pt"})

    with pytest.raises(LoadError, match=f"lacks {lost}"):
        folder.kind.from_pretrained(folder.small)


@pytest.mark.parametrize("forms", [[("int8", None)], [("int4", None), ("int8", None)]])
def test_integers_alone_expand_and_lose_the_entry_of_their_method(forms, tmp_path):
    folder = Mixed("bert", tmp_path, forms)
    (folder.small / "eckart.safetensors").rename(folder.small / "model.safetensors")
    change_config(
        folder.small,
        {"quantization_config": {"quant_method": "compressed-tensors"}, "transformers_weights": None},
    )
    model = load_compressed(folder.kind(transformers.AutoConfig.from_pretrained(folder.dense)), folder.small)
    assert compressed_layers(model)
    expand(folder.small, tmp_path / "expanded")

    assert "quantization_config" not in json.loads((tmp_path / "expanded" / "config.json").read_text())
    dense = folder.kind.from_pretrained(tmp_path / "expanded")
    torch.testing.assert_close(folder.computed(dense), folder.expected, rtol=0, atol=1e-4)
    assert torch.allclose(folder.computed(model), folder.expected, atol=1e-4)
