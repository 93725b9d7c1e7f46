"""Results of quantized models load in transformers, factors beside weights that are quantized as before."""

import pytest
import torch
from safetensors.torch import load_file

from eckart.torch import LowRankLinear
from tests.compression import compress
from tests.eckart.transformers.folders import QUIET, ids, llama
from tests.layouts import LAYOUTS, quantize_folder

COMPRESSED = ["fp8_channel", "fp8_tensor", "int4", "nvfp4_divided"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    torch.manual_seed(0)
    model, _ = llama(tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("dense") / "dense"
    model.to(torch.bfloat16).save_pretrained(folder)
    return type(model), folder


def logits(model):
    with torch.no_grad():
        return model(ids()).logits


def loaded(kind, folder):
    """Load a model, and widen it; compressed-tensors decodes weights at the first call, NVFP4 in bfloat16."""
    model = kind.from_pretrained(folder, dtype=torch.bfloat16)
    logits(model)
    return torch.nn.Module.float(model)  # of its own, a quantized model refuses it


@QUIET
@pytest.mark.parametrize("layout", ["fp8_block", *COMPRESSED])
@pytest.mark.parametrize("include", [["*.mlp.*"], ["*_proj"]], ids=["some", "all"])
def test_a_factored_result_computes_what_the_product_computes(dense, tmp_path, layout, include):
    kind, folder = dense
    source = quantize_folder(folder, tmp_path / "quantized", LAYOUTS[layout])
    report = compress(source, tmp_path / "result", rank=2, include=include)
    names = [layer.name for layer in report.layers if layer.rank]
    assert len(names) == len(report.layers)
    model = loaded(kind, tmp_path / "result")
    assert all(isinstance(model.get_submodule(name), LowRankLinear) for name in names)
    expected = loaded(kind, source)
    factors = load_file(tmp_path / "result" / "eckart.safetensors")
    for name in names:
        product = factors[f"{name}.1.weight"].float() @ factors[f"{name}.0.weight"].float()
        expected.get_submodule(name).weight.data = product
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-5)


@QUIET
@pytest.mark.parametrize("layout", ["fp8_block", *COMPRESSED])
def test_a_dense_result_loads_without_eckart(dense, tmp_path, layout):
    kind, folder = dense
    source = quantize_folder(folder, tmp_path / "quantized", LAYOUTS[layout])
    report = compress(source, tmp_path / "result", rank=2, include=["*.mlp.*"], layout="dense")
    expected = loaded(kind, source)
    products = load_file(tmp_path / "result" / "model.safetensors")
    for layer in report.layers:
        expected.get_submodule(layer.name).weight.data = products[layer.tensor].float()
    model = loaded(kind, tmp_path / "result")
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-5)
