"""worker/forms, worker/codecs.py: this file alone adds a form and a codec, and every room supports them.

It holds the joints of schemas/planning/forms, schemas/planning/codecs, worker/forms and worker/codecs.
"""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from eckart.torch import load_compressed
from schemas.format.files import open_checkpoint
from schemas.format.header import NewTensor
from schemas.planning.codecs import CODECS, Codec
from schemas.planning.documents import plan_document
from schemas.planning.forms import FORMS, Chain, register
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec
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
    register_implementation("sketch", expand=multiply_chain)(compute_sketch)
    yield
    del FORMS["sketch"], FORM_IMPLEMENTATIONS["sketch"]


@dataclass(frozen=True)
class RowScaled(Codec):
    """Eight bits per element, and one scale per row."""

    def tensors(self, name, shape):
        return NewTensor(name, "I8", shape), NewTensor(f"{name}_scale", "F32", (shape[0], 1))


class RowScaledTensors:
    dtype = torch.float32
    is_exact = False

    def encode(self, matrix):
        scale = matrix.abs().amax(dim=1, keepdim=True) / 127
        return (matrix / scale).round().to(torch.int8), scale

    def decode(self, tensors):
        quantized, scale = tensors
        return quantized.float() * scale


@pytest.fixture
def row_scaled(monkeypatch):
    """Replace the codec of float16 by this one."""
    codec = RowScaled("float16", "I8")
    monkeypatch.setitem(CODECS, "float16", codec)
    monkeypatch.setitem(CODEC_IMPLEMENTATIONS, codec, RowScaledTensors())


def distance(weight, product):
    return float((weight - product).norm() / weight.norm())


MODEL = {"a": (40, 60), "b": (70, 30)}


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
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(60, 40), "b": torch.nn.Linear(30, 70, bias=False)})
    load_compressed(module, result.directory)
    assert torch.equal(module["a"](torch.zeros(60)), stored["a.1.bias"])


@pytest.mark.usefixtures("sketch")
def test_a_registered_form_is_in_the_plan(model):
    files = open_checkpoint(model[0])
    spec = CompressionSpec.model_validate(
        {"method": "svd", "rank": 5, "overrides": [{"match": "a", "method": "sketch"}]}
    )

    document = plan_document("m", files.tensors, make_plan(files.tensors, spec))

    assert [(layer.method, layer.parameters_after) for layer in document.layers] == [
        ("sketch", 5 * 100),
        ("svd", 5 * 100),
    ]


def test_a_form_that_is_not_registered_is_refused_with_the_names_that_are():
    with pytest.raises(ValidationError, match="Input should be 'cur', 'cx' or 'svd'"):
        CompressionSpec.model_validate({"method": "sketch", "rank": 5})


@pytest.mark.usefixtures("row_scaled")
@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_a_codec_of_two_tensors_is_stored_and_its_rounding_is_in_the_error(model, compress, method, layout):
    source, weights = model
    result = compress(source, method=method, rank=5, dtype="float16", layout=layout)

    stored = result.tensors()
    count = 3 if method == "cur" else 2
    for layer in result.report.layers:
        names = [f"{layer.name}.weight"]
        if layout == "factored":
            names = [f"{layer.name}.{i}.weight" for i in range(count)]
        matrices = [stored[name].float() * stored[f"{name}_scale"] for name in names]
        weight, product = weights[f"{layer.name}.weight"], multiply_chain(matrices)
        assert layer.relative_error == pytest.approx(
            float((weight - product).norm() / weight.norm()), rel=1e-4
        )
        nbytes = sum(stored[name].nbytes + stored[f"{name}_scale"].nbytes for name in names)
        assert layer.bytes_after == nbytes
