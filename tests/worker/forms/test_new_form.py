"""worker/forms, worker/codecs.py: this file alone adds a form and a codec, from the spec to the loaded model.

A form has two entries: in FORMS and in FORM_IMPLEMENTATIONS. A codec has three: in CODECS, in
CODEC_IMPLEMENTATIONS and in the loader's DECODERS.
"""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eckart import LoadError
from eckart.torch import DECODERS, Decoder, load_compressed
from schemas.format.files import open_checkpoint
from schemas.format.header import NewTensor
from schemas.planning.codecs import CODECS, FLOAT_CODECS, Codec
from schemas.planning.documents import plan_document
from schemas.planning.forms import FORMS, Chain, register
from schemas.planning.output_size import OutputSize
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec
from tests.schemas.format.checkpoints import chosen_at
from worker.checkpoint.reader import dtype_name
from worker.codecs import CODEC_IMPLEMENTATIONS
from worker.forms import FORM_IMPLEMENTATIONS, FormInputs, multiply_chain
from worker.forms import register as register_implementation
from worker.lowrank import Factored, relative_error


@dataclass(frozen=True)
class Sketch(Chain):
    """W ≈ Q·(QᵀW) for an orthonormal basis Q of W·Ω, Ω random (Halko et al. 2011, algorithm 4.1)."""

    name: ClassVar[str] = "sketch"
    num_factors: ClassVar[int] = 2

    @classmethod
    def of(cls, options):
        return cls()


def compute_sketch(inputs: FormInputs):
    weight, rank = inputs.weight.double(), inputs.layer.rank
    generator = torch.Generator().manual_seed(inputs.seed)
    probes = torch.randn(weight.shape[1], rank, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(weight @ probes).Q
    factors = ((basis.mT @ weight).to(inputs.dtype), basis.to(inputs.dtype))
    error, norm = relative_error(inputs.weight, factors), float(torch.linalg.norm(weight))
    return Factored(
        factors=factors,
        rank=rank,
        relative_error=error,
        squared_error=(error * norm) ** 2,
        squared_norm=norm**2,
        optimal_error=None,
        singular_values=torch.linalg.svdvals(weight),
        decomposition=None,
    )


@pytest.fixture
def sketch():
    """Register the form, and remove it after the test."""
    register(Sketch)
    register_implementation("sketch", to_dense=multiply_chain)(compute_sketch)
    yield
    del FORMS["sketch"], FORM_IMPLEMENTATIONS["sketch"]


@dataclass(frozen=True)
class RowScaled(Codec):
    """Eight bits per element, and one scale per row."""

    def tensors(self, name, shape):
        return NewTensor(name, "I8", shape), NewTensor(f"{name}_scale", "F32", (shape[0], 1))


class RowScaledImplementation:
    dtype = torch.float32
    is_exact = False

    def encode(self, matrix):
        scale = matrix.abs().amax(dim=1, keepdim=True) / 127
        return (matrix / scale).round().to(torch.int8), scale

    def decode(self, tensors):
        return unscaled(*tensors)


def unscaled(quantized, scale):
    return quantized.float() * scale


@pytest.fixture
def rows8(monkeypatch):
    """Add this codec, and remove it after the test."""
    monkeypatch.setitem(CODECS, "rows8", RowScaled("rows8", "I8"))
    monkeypatch.setitem(CODEC_IMPLEMENTATIONS, "rows8", RowScaledImplementation())
    decoder = Decoder(("", "_scale"), shape=lambda quantized, scale: quantized, decode=unscaled)
    monkeypatch.setitem(DECODERS, "rows8", decoder)


MODEL = {"a": (40, 60), "b": (70, 30)}


def network():
    return torch.nn.ModuleDict({"a": torch.nn.Linear(60, 40), "b": torch.nn.Linear(30, 70, bias=False)})


@pytest.fixture
def model(save, gaussian):
    tensors = {f"{name}.weight": gaussian(*shape) for name, shape in MODEL.items()}
    return save(tensors | {"a.bias": gaussian(40)}), tensors


@pytest.mark.usefixtures("sketch")
@pytest.mark.parametrize("rank", [7, {"ratio": 0.5}, {"budget": 0.5}])
def test_a_registered_form_is_planned_computed_stored_reported_and_loaded(model, compress, rank):
    source, weights = model
    result = compress(source, method="sketch", rank=rank)

    stored = result.tensors()
    assert {"a.0.weight", "a.1.weight", "a.1.bias", "b.0.weight", "b.1.weight"} == set(stored)
    for layer in result.report.layers:
        product = stored[f"{layer.name}.1.weight"] @ stored[f"{layer.name}.0.weight"]
        weight = weights[f"{layer.name}.weight"]
        assert (layer.method, layer.outcome) == ("sketch", "factored")
        assert layer.relative_error == pytest.approx(
            float((weight - product).norm() / weight.norm()), rel=1e-4
        )
        assert layer.parameters_after == layer.rank * sum(weight.shape)
    with safe_open(result.directory / source.name, "pt") as file:
        assert '"method":"sketch"' in file.metadata()["eckart"]
    module = network()
    load_compressed(module, result.directory)
    assert torch.equal(module["a"](torch.zeros(60)), stored["a.1.bias"])


@pytest.mark.usefixtures("sketch")
def test_a_registered_form_is_in_the_plan(model):
    files = open_checkpoint(model[0])
    spec = CompressionSpec.model_validate(
        {"method": "svd", "rank": 5, "overrides": [{"match": "a", "method": "sketch"}]}
    )

    document = plan_document("m", make_plan(files.tensors, spec))

    assert [(layer.method, layer.parameters_after) for layer in document.layers] == [
        ("sketch", 5 * 100),
        ("svd", 5 * 100),
    ]


def test_a_form_that_is_not_registered_is_refused_with_the_names_that_are():
    with pytest.raises(ValidationError, match=r"Input should be 'cur', 'cx', .* or 'svd'"):
        CompressionSpec.model_validate({"method": "sketch", "rank": 5})


@pytest.mark.usefixtures("rows8")
@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_a_registered_codec_is_stored_measured_and_loaded(model, compress, method, layout):
    source, weights = model
    result = compress(source, method=method, rank=5, dtype="rows8", layout=layout)

    stored = result.tensors()
    count = 3 if method == "cur" else 2
    module = network()
    load_compressed(module, result.directory)
    for layer in result.report.layers:
        names = [f"{layer.name}.weight"]
        if layout == "factored":
            names = [f"{layer.name}.{i}.weight" for i in range(count)]
        matrices = [unscaled(stored[name], stored[f"{name}_scale"]) for name in names]
        weight, product = weights[f"{layer.name}.weight"], multiply_chain(matrices)
        assert layer.relative_error == pytest.approx(
            float((weight - product).norm() / weight.norm()), rel=1e-4
        )
        nbytes = sum(stored[name].nbytes + stored[f"{name}_scale"].nbytes for name in names)
        assert layer.bytes_after == nbytes
        loaded = module.state_dict()
        assert all(map(torch.equal, matrices, (loaded[name] for name in names)))


@pytest.mark.usefixtures("rows8")
@pytest.mark.parametrize(
    ("rank", "layout"), [({"budget": 0.5}, "factored"), ({"ratio": 0.5}, "factored"), (5, "dense")]
)
def test_the_size_of_a_file_in_a_registered_codec_is_known_from_its_ranks(model, compress, rank, layout):
    source, _ = model
    result = compress(source, method="svd", rank=rank, dtype="rows8", layout=layout)

    files = open_checkpoint(source)
    spec = CompressionSpec.model_validate({"rank": 5, "dtype": "rows8", "layout": layout})
    layers = make_plan(files.tensors, spec).layers
    ranks = {number: layer.rank for number, layer in enumerate(result.report.layers)}
    size_bytes = (result.directory / source.name).stat().st_size
    assert (
        size_bytes <= OutputSize(files, layers).at(chosen_at(layers, ranks)) <= size_bytes + 24 * len(layers)
    )


def test_a_codec_that_the_loader_does_not_know_is_refused(model, compress, rows8, monkeypatch):
    result = compress(model[0], method="svd", rank=5, dtype="rows8")
    monkeypatch.delitem(DECODERS, "rows8")

    with pytest.raises(
        LoadError, match="codec 'rows8', which this version of eckart cannot read; upgrade it"
    ):
        load_compressed(network(), result.directory)


@pytest.mark.usefixtures("rows8")
def test_a_tensor_that_a_codec_lacks_is_named(model, compress):
    result = compress(model[0], method="svd", rank=5, dtype="rows8")
    path = result.directory / model[0].name
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["b.1.weight_scale"]
    save_file(tensors, path, metadata)

    with pytest.raises(LoadError, match=r"lacks b\.1\.weight_scale; the file is damaged"):
        load_compressed(network(), result.directory)


def test_a_file_of_floats_names_no_codec(model, compress):
    result = compress(model[0], method="svd", rank=5, dtype="float16")

    with safe_open(result.directory / model[0].name, "pt") as file:
        assert "codec" not in file.metadata()["eckart"]


def test_every_codec_has_an_implementation():
    names = {codec.name for codec in FLOAT_CODECS.values()} | set(CODECS)
    assert names == set(CODEC_IMPLEMENTATIONS)
    for codec in FLOAT_CODECS.values():
        implementation = CODEC_IMPLEMENTATIONS[codec.name]
        assert (dtype_name(implementation.dtype), implementation.is_exact) == (codec.dtype, True)


@dataclass(frozen=True)
class Square(Sketch):
    """A form for square matrices only."""

    name: ClassVar[str] = "square"

    def applies_to(self, shape):
        return super().applies_to(shape) and shape[0] == shape[1]


def test_a_form_decides_which_weights_it_applies_to(save, gaussian, monkeypatch):
    monkeypatch.setitem(FORMS, "square", Square)
    files = open_checkpoint(
        save({"a.weight": gaussian(8, 8), "b.weight": gaussian(8, 9), "c.weight": gaussian(8)})
    )
    spec = CompressionSpec.model_validate(
        {"method": "square", "rank": 2, "include": ["b", "a"], "overrides": [{"match": "d", "method": "svd"}]}
    )

    plan = make_plan(files.tensors, spec)

    assert [layer.name for layer in plan.layers] == ["a"]
    assert "include: the pattern 'b' matches no layer" in plan.warnings
