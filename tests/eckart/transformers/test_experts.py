"""Mixtures of experts, made by their own classes: a result runs, and computes what the product does."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from eckart.torch import expand
from tests.compression import compress
from tests.eckart.transformers.folders import FIVE, QUIET, SIZES, ids
from tests.layouts import fp8_block_layout, mxfp4_folder, quantize_folder

pytestmark = pytest.mark.skipif(not FIVE, reason="transformers 4 has modules for experts")
GROUPED = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}


def gpt_oss(width=48):
    config = transformers.GptOssConfig(
        **GROUPED, head_dim=8, intermediate_size=width, num_local_experts=3, num_experts_per_tok=2
    )
    return transformers.GptOssForCausalLM(config)


def llama4():
    config = transformers.Llama4TextConfig(
        **GROUPED,
        head_dim=8,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_local_experts=3,
        interleave_moe_layer_step=1,
        no_rope_layers=[1, 1],
        pad_token_id=0,
    )
    return transformers.Llama4ForCausalLM(config)


def qwen3(width=40):
    config = transformers.Qwen3MoeConfig(
        **GROUPED,
        head_dim=8,
        intermediate_size=48,
        moe_intermediate_size=width,
        num_experts=3,
        num_experts_per_tok=2,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def mixtral():
    config = transformers.MixtralConfig(
        **GROUPED, intermediate_size=48, num_local_experts=3, num_experts_per_tok=2
    )
    return transformers.MixtralForCausalLM(config)


STACKS = {"gpt_oss": gpt_oss, "llama4": llama4}
MODELS = {**STACKS, "qwen3": qwen3, "mixtral": mixtral}


def logits(model):
    with torch.no_grad():
        return model.eval()(ids()).logits


def save(name, folder, **changes):
    """Save a model with random weights; return its class."""
    torch.manual_seed(0)
    model = MODELS[name](**changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return type(model)


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """Return the name, the class and the folder of each model."""
    folder = tmp_path_factory.mktemp(request.param) / "dense"
    return request.param, save(request.param, folder), folder


@QUIET
@pytest.mark.parametrize("exclude", [[], ["*.1", "*.experts.1.*"]], ids=["all", "but one"])
def test_a_factored_result_computes_what_the_dense_one_computes(saved, tmp_path, exclude):
    name, kind, folder = saved
    spec = {"rank": {"ratio": 0.5}, "include": ["*experts*"], "exclude": exclude}
    report = compress(folder, tmp_path / "factored", **spec)
    experts = 3 - bool(exclude)
    assert report.totals.layers_factored == 2 * experts * (2 if name in STACKS else 3)
    compress(folder, tmp_path / "dense", layout="dense", **spec)
    expected = logits(kind.from_pretrained(tmp_path / "dense"))
    assert (logits(kind.from_pretrained(folder)) - expected).abs().max() > 1e-3
    with pytest.warns(UserWarning, match="loaded with dense weights"):
        model = kind.from_pretrained(tmp_path / "factored")
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@QUIET
@pytest.mark.parametrize("name", STACKS)
def test_stacks_keep_their_names_in_the_dense_layout_and_give_them_up_for_factors(name, tmp_path):
    folder = tmp_path / "input"
    save(name, folder)
    before = load_file(folder / "model.safetensors")
    spec = {"rank": 4, "include": ["*.experts.gate_up_proj.[02]"]}
    compress(folder, tmp_path / "dense", layout="dense", **spec)
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    assert {n: t.shape for n, t in dense.items()} == {n: t.shape for n, t in before.items()}
    report = compress(folder, tmp_path / "factored", **spec)
    factored = load_file(tmp_path / "factored" / "eckart.safetensors")
    for layer in report.layers:
        stack, _, number = layer.name.rpartition(".")
        rows, columns = layer.shape
        first, second = factored[f"{layer.name}.0.weight"], factored[f"{layer.name}.1.weight"]
        assert (first.shape, second.shape) == ((rows, 4), (4, columns))
        torch.testing.assert_close(dense[stack][int(number)], first @ second, rtol=1e-5, atol=1e-6)
        assert torch.equal(dense[stack][1], before[stack][1])
        assert torch.equal(factored[f"{stack}.1.weight"], before[stack][1])
        assert stack not in factored
        assert stack.replace("gate_up", "down") in factored


@QUIET
@pytest.mark.parametrize("exclude", [[], ["*.1"], ["*down_proj*"]], ids=["all", "but one", "but a stack"])
def test_experts_that_stay_quantized_lie_beside_factored_ones(tmp_path, exclude):
    kind = save("gpt_oss", tmp_path / "dense", width=64)
    source = mxfp4_folder(tmp_path / "dense", tmp_path / "quantized")
    spec = {"rank": 3, "include": ["*experts*"], "exclude": exclude}
    report = compress(source, tmp_path / "result", **spec)
    assert {layer.encoding for layer in report.layers} == {"mxfp4"}
    assert all(layer.bytes_after < layer.bytes_before for layer in report.layers)
    factors = load_file(tmp_path / "result" / "eckart.safetensors")
    assert not [name for name in factors if name.endswith(("up_proj_blocks", "up_proj_scales"))]
    expected = kind.from_pretrained(source, dtype=torch.float32)
    for layer in report.layers:
        stack, _, number = layer.name.rpartition(".")
        product = factors[f"{layer.name}.0.weight"].float() @ factors[f"{layer.name}.1.weight"].float()
        expected.get_parameter(stack).data[int(number)] = product.bfloat16()
    with pytest.warns(UserWarning, match="loaded with dense weights"):
        model = kind.from_pretrained(tmp_path / "result", dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)


def test_a_quantized_stack_stays_whole_in_the_dense_layout(tmp_path):
    save("gpt_oss", tmp_path / "dense", width=64)
    source = mxfp4_folder(tmp_path / "dense", tmp_path / "quantized")
    report = compress(source, tmp_path / "result", rank=3, include=["*experts*", "*_proj"], layout="dense")
    assert all(".experts." not in layer.name for layer in report.layers)
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "result" / "model.safetensors")
    stacks = [name for name in before if ".experts." in name]
    assert all(torch.equal(after[name], before[name]) for name in stacks)


@pytest.mark.parametrize("name", STACKS)
def test_an_expanded_result_has_the_stacks_of_the_dense_layout(name, tmp_path):
    save(name, tmp_path / "input")
    spec = {"rank": 4, "include": ["*.experts.*.[02]"]}
    compress(tmp_path / "input", tmp_path / "factored", **spec)
    compress(tmp_path / "input", tmp_path / "dense", layout="dense", **spec)
    expand(tmp_path / "factored", tmp_path / "expanded")
    expanded = load_file(tmp_path / "expanded" / "model.safetensors")
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    assert expanded.keys() == dense.keys()
    for tensor, expected in dense.items():
        assert expanded[tensor].dtype == expected.dtype
        torch.testing.assert_close(expanded[tensor], expected, rtol=1e-5, atol=1e-6)


def test_a_stack_may_be_asked_for_whatever_its_name(tmp_path):
    torch.manual_seed(0)
    before = {"blocks.0.w.weight": torch.randn(3, 20, 40), "blocks.0.conv": torch.randn(3, 20, 40)}
    (tmp_path / "input").mkdir()
    save_file(before, tmp_path / "input" / "model.safetensors")
    experts = [{"match": "*.w", "transposed": False}]
    report = compress(tmp_path / "input", tmp_path / "result", rank=4, experts=experts)
    assert [layer.name for layer in report.layers] == [f"blocks.0.w.{number}" for number in range(3)]
    assert not any(layer.transposed for layer in report.layers)
    assert not [text for text in report.warnings if "experts" in text]
    expand(tmp_path / "result", tmp_path / "expanded")
    after = load_file(tmp_path / "expanded" / "model.safetensors")
    assert torch.equal(after["blocks.0.conv"], before["blocks.0.conv"])
    for number, layer in enumerate(report.layers):
        matrix = before["blocks.0.w.weight"][number]
        error = torch.linalg.norm(after["blocks.0.w.weight"][number] - matrix) / torch.linalg.norm(matrix)
        assert layer.relative_error == pytest.approx(float(error), rel=1e-4)
    idle = [{"match": "*.v", "transposed": False}]
    warnings = compress(tmp_path / "input", tmp_path / "other", rank=4, experts=idle).warnings
    assert "experts: the pattern '*.v' matches no layer" in warnings


@QUIET
@pytest.mark.parametrize(
    "exclude", [[], ["*.experts.1.*"], ["*.gate_proj"]], ids=["all", "but one", "but a side"]
)
def test_fp8_experts_lie_beside_factored_ones(tmp_path, exclude):
    kind = save("qwen3", tmp_path / "dense", width=48)
    source = quantize_folder(tmp_path / "dense", tmp_path / "quantized", fp8_block_layout)
    spec = {"rank": 3, "include": ["*experts*"], "exclude": exclude}
    report = compress(source, tmp_path / "result", **spec)
    factors = load_file(tmp_path / "result" / "eckart.safetensors")
    expected = kind.from_pretrained(source, dtype=torch.float32)
    for layer in report.layers:
        place, number, which = layer.name.rsplit(".", 2)
        product = factors[f"{layer.name}.1.weight"].float() @ factors[f"{layer.name}.0.weight"].float()
        stack = "down_proj" if which == "down_proj" else "gate_up_proj"
        half = slice(48, None) if which == "up_proj" else slice(0, None if stack == which else 48)
        expected.get_parameter(f"{place}.{stack}").data[int(number), half] = product.bfloat16()
    with pytest.warns(UserWarning, match="loaded with dense weights"):
        model = kind.from_pretrained(tmp_path / "result", dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
