"""docs/9-running-the-result.md: its blocks run, in the order of the page."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.cli import main
from eckart.torch import expand
from tests.compression import compress
from tests.pipelines import picture, save_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "9-running-the-result.md"
BLOCK = re.compile(
    r"^## (?P<title>.+?)$|^```(?P<kind>python|sh)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:::transformers",
        "ignore:::torch",
        "ignore:::peft",
        "ignore:::onnxscript",
        "ignore:::diffusers",
    ),
    pytest.mark.filterwarnings("ignore:::sentence_transformers", "ignore:::copyreg", "ignore:::onnx_ir"),
]


def blocks():
    """Return the kind and the code of each block, by the title of its section."""
    sections, title = {}, ""
    for found in BLOCK.finditer(PAGE.read_text()):
        if found["title"]:
            title = found["title"]
        else:
            sections.setdefault(title, []).append((found["kind"], found["code"]))
    return sections


def unet(folder):
    """Save a tiny model of diffusers."""
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    UNet2DConditionModel(sample_size=8, cross_attention_dim=16, **blocks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm):
    """Return the folder that the page describes, and the fine-tuned model that its adapter is of."""
    root = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, num_key_value_heads=2, **sizes))
    model.save_pretrained(root / "llama")
    with torch.no_grad():
        for layer in model.model.layers:
            weight = layer.self_attn.q_proj.weight
            weight += 0.1 * torch.randn(32, 8) @ torch.randn(8, 32)
    model.save_pretrained(root / "tuned")
    compress(root / "llama", root / "llama-compressed")
    compress(unet(root / "unet"), root / "unet-compressed")
    save_pipeline(root / "pictures")
    shutil.copytree(minilm.parent, root / "sentences", ignore=shutil.ignore_patterns(".*"))
    # The command line also copies the subfolder with the pooling.
    options = ["--include", "*.layer.5.*", "--ratio", "0.5", "--out", str(root / "sentences-compressed")]
    assert main(["compress", str(root / "sentences"), *options, "--local"]) == 0
    return root


def test_every_block_of_the_page_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    sections = blocks()
    assert sum(map(len, sections.values())) == 18
    for section in sections.values():
        for kind, code in section:
            if kind == "sh":
                command, *arguments = shlex.split(code)
                assert command == "eckart"
                local = ["--local"] if arguments[0] == "compress" else []
                assert main([*arguments, *local]) == 0, code
            else:
                exec(compile(code, str(PAGE), "exec"), names)
    check(folder, names)


def check(folder, names):
    """Check what the blocks left: each model is the one that its section promises."""
    # Imported here, since they take seconds and all processes that run tests import this file.
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    tokens = torch.arange(6)[None]
    with torch.no_grad():
        factored = LlamaForCausalLM.from_pretrained("llama-compressed").eval()(tokens).logits
        for same in (names["again"], names["dense"], LlamaForCausalLM.from_pretrained("llama-dense")):
            torch.testing.assert_close(same.eval()(tokens).logits, factored, rtol=1e-4, atol=1e-5)
        tuned = LlamaForCausalLM.from_pretrained("tuned").eval()(tokens).logits
        merged = names["base"].eval()(tokens).logits
        torch.testing.assert_close(merged, tuned, rtol=1e-3, atol=1e-4)
        adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("llama-dense"), "tuned-adapter")
        wanted = adapted.eval()(tokens).logits
        torch.testing.assert_close(names["tuned"].eval()(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(wanted, factored, atol=1e-3), "the adapter changes the model"
    ranks = {layer.r["default"] for layer in names["smaller"].modules() if isinstance(layer, LoraLayer)}
    assert ranks == {4}
    check_unet(names["unet"].eval())
    assert picture(names["pipeline"]).shape == (1, 16, 16, 3)
    (exported,) = onnxruntime.InferenceSession("llama.onnx").run(["logits"], {"tokens": tokens.numpy()})
    np.testing.assert_allclose(exported, factored.numpy(), rtol=1e-3, atol=1e-4)
    original = SentenceTransformer(str(folder / "sentences"), device="cpu").encode(["A man is eating food."])
    assert names["vectors"].shape == original.shape
    assert not np.allclose(names["vectors"], original)


def check_unet(factored):
    expand("unet-compressed", "unet-dense")
    dense = UNet2DConditionModel.from_pretrained("unet-dense").eval()
    noise, text = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8), torch.linspace(-1, 1, 48).reshape(1, 3, 16)
    with torch.no_grad():
        expected = dense(noise, 3, text).sample
        torch.testing.assert_close(factored(noise, 3, text).sample, expected, rtol=1e-4, atol=1e-5)
    factored.save_pretrained("unet-again")
    with pytest.raises(ValueError, match="Unknown quantization type, got eckart"):
        UNet2DConditionModel.from_pretrained("unet-again")
