"""Small models in each quantized layout go through the service, and their results run."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

import eckart.transformers  # noqa: F401 - registers the method
from eckart.torch import LowRankLinear, load_compressed
from tests.layouts import LAYOUTS, mxfp4_folder, quantize_folder

pytestmark = pytest.mark.filterwarnings("ignore:::transformers", "ignore:::torch")
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "tie_word_embeddings": False,
}


def save(model, folder):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.to(torch.bfloat16).save_pretrained(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama") / "dense"
    save(LlamaForCausalLM(LlamaConfig(**SIZES)), folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(1, 13).reshape(2, 6)).logits


def through(service, source, target):
    """Send a folder, fetch its result, and return the factored layers and all tensors."""
    job = service.client.compress(source, {"rank": 3, "include": ["*_proj", "*_proj.[0-9]*"]})
    service.client.download(job.id, target, source=source)
    report = service.client.report(job.id)
    names = [layer.name for layer in report.layers if layer.outcome == "factored"]
    assert len(names) == len(report.layers)
    return names, load_file(target / "eckart.safetensors")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_of_a_quantized_model_computes_what_the_product_computes(service, llama, tmp_path, layout):
    source = quantize_folder(llama, tmp_path / "quantized", LAYOUTS[layout])
    names, factors = through(service, source, tmp_path / "result")
    assert len(names) == 7
    expected = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32)
    if layout == "comfy":  # No config.json says that its weights are quantized.
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).float()
        load_compressed(model, tmp_path / "result")
        model.float()
    else:
        model = LlamaForCausalLM.from_pretrained(tmp_path / "result", dtype=torch.float32)
    for name in names:
        assert isinstance(model.get_submodule(name), LowRankLinear)
        product = factors[f"{name}.1.weight"].float() @ factors[f"{name}.0.weight"].float()
        expected.get_submodule(name).weight.data = product
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-5)


def test_the_experts_of_gpt_oss_are_stacked_again(service, tmp_path):
    torch.manual_seed(0)
    config = GptOssConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2)
    save(GptOssForCausalLM(config), tmp_path / "dense")
    source = mxfp4_folder(tmp_path / "dense", tmp_path / "quantized")
    names, factors = through(service, source, tmp_path / "result")
    experts = [name for name in names if ".experts." in name]
    assert len(experts) == 2 * 3
    with pytest.warns(UserWarning, match="loaded with dense weights"):
        model = GptOssForCausalLM.from_pretrained(tmp_path / "result", dtype=torch.float32)
    expected = GptOssForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    for name in names:
        first, second = factors[f"{name}.0.weight"], factors[f"{name}.1.weight"]
        if name in experts:
            stack, _, number = name.rpartition(".")
            # Stored as [inputs, outputs], and multiplied in the dtype of the factors.
            expected.get_parameter(stack).data[int(number)] = (first.float() @ second.float()).bfloat16()
        else:
            expected.get_submodule(name).weight.data = second.float() @ first.float()
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
