"""A folder of a convolutional network: compressed, loaded by transformers as factors, and saved again."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, ResNetConfig, ResNetModel

import eckart.transformers  # noqa: F401 - it registers the method
from eckart.torch import LowRankConv
from eckart.transformers import EckartConfig
from tests.compression import compress

CONFIG = ResNetConfig(
    num_channels=3, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("resnet")
    ResNetModel(CONFIG).eval().save_pretrained(place / "model")
    return place / "model"


@pytest.mark.parametrize("conv", ["channel", "spatial", "tucker2", "separable"])
def test_from_pretrained_runs_the_factors(folder, tmp_path, conv):
    report = compress(folder, tmp_path / "out", conv=conv, rank={"ratio": 0.6})
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    dense = AutoModel.from_pretrained(
        tmp_path / "out", quantization_config=EckartConfig(dequantize=True)
    ).eval()

    factored = {name for name, module in model.named_modules() if isinstance(module, LowRankConv)}
    assert factored == {layer.name for layer in report.layers if layer.outcome == "factored"}
    assert factored
    with torch.no_grad():
        wanted, found = dense(images).last_hidden_state, model(images).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert (
        f"| method | {', '.join(sorted({'channel', conv}))} |" in (tmp_path / "out" / "README.md").read_text()
    )
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(again(images).last_hidden_state, found)


def test_the_dense_model_has_the_reported_errors(folder, tmp_path):
    report = compress(folder, tmp_path / "out", conv="channel", rank={"ratio": 0.6})
    before = load_file(folder / "model.safetensors")
    dense = AutoModel.from_pretrained(
        tmp_path / "out", quantization_config=EckartConfig(dequantize=True)
    ).state_dict()

    for layer in report.layers:
        weight = before[layer.tensor]
        error = float((dense[layer.tensor] - weight).norm() / weight.norm())
        assert error == pytest.approx(layer.relative_error or 0.0, rel=1e-4, abs=1e-7)
    assert dense.keys() == before.keys()
