"""schemas/planning/modules.py: what names, shapes and metadata around a weight say of its module."""

import pytest
from torch import nn
from transformers import GPT2Config, GPT2DoubleHeadsModel
from transformers.pytorch_utils import Conv1D

from tests.schemas.planning.named import Named, planned, reasons


@pytest.mark.parametrize(
    "other",
    [
        "weight_scale",
        "weight_scale_inv",
        "input_scale",
        "weight_mask",
        "lora_A.default.weight",
        "norm.weight",
    ],
)
@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_a_module_with_tensors_beside_weight_and_bias_stays_dense(other, layout):
    tensors = [
        Named("a.up.weight"),
        Named("a.up.bias", (64,)),
        Named("a.up." + other, (1,)),
        Named("a.b.weight"),
    ]

    assert reasons(*tensors, layout=layout) == {"a.up": "more_than_a_linear", "a.b": None}


def test_names_that_only_begin_alike_are_other_modules():
    names = ["a.weight", "a-b.weight", "a_scale", "ab.weight", "a0.weight"]

    assert set(reasons(*map(Named, names)).values()) == {None}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("q.lora_A.weight", "q.lora_B.weight"),
        ("q.lora_A.default.weight", "q.lora_B.default.weight"),
        ("lora_unet_mid_attn.lora_down.weight", "lora_unet_mid_attn.lora_up.weight"),
        ("processor.to_q_lora.down.weight", "processor.to_q_lora.up.weight"),
        ("to_q.lora.down.weight", "to_q.lora.up.weight"),
        ("to_q.lora_linear_layer.down.weight", "to_q.lora_linear_layer.up.weight"),
    ],
)
def test_the_two_matrices_of_an_adapter_stay_as_they_are(one, other):
    pair = [Named(one, (16, 64)), Named(other, (64, 16))]

    assert set(reasons(*pair, rank=1).values()) == {"adapter"}
    assert (
        planned(pair, rank=1).warnings[0] == "every selected layer stays dense: the output equals the input"
    )


def test_down_and_up_alone_are_no_adapter():
    assert set(reasons(Named("mlp.down.weight"), Named("mlp.up.weight")).values()) == {None}


@pytest.mark.parametrize("attention", [nn.MultiheadAttention(64, 4), nn.MultiheadAttention(64, 4, kdim=32)])
def test_an_out_proj_that_torch_does_not_call_stays_dense(attention):
    net = nn.ModuleDict({"self_attn": attention, "other": nn.ModuleDict({"out_proj": nn.Linear(64, 64)})})
    tensors = [Named(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]

    assert reasons(*tensors) == {"self_attn.out_proj": "not_called", "other.out_proj": None}
    assert reasons(Named("out_proj.weight"), Named("in_proj_weight")) == {"out_proj": "not_called"}


def test_a_weight_that_metadata_names_for_another_stays_dense():
    tensors = [Named("lm_head.weight"), Named("fc.weight")]

    assert reasons(*tensors, aliases={"embed.weight": "lm_head.weight"}) == {"lm_head": "tied", "fc": None}


def test_biases_tell_that_all_layers_of_gpt2_are_transposed_but_those_that_are_linear():
    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=48, n_layer=2, n_head=4, add_cross_attention=True
    )
    model = GPT2DoubleHeadsModel(config)
    tensors = [Named(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    plan = planned(tensors, rank=1)
    conv = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}

    assert {layer.name for layer in plan.layers if layer.transposed} == conv
    assert len(conv) == 2 * 7
    assert any(layer.rows == layer.columns for layer in plan.layers if layer.transposed)
    assert (
        "transposed: taken as stored [inputs, outputs], since biases say so: transformer.h.0.attn.c_attn"
        in (plan.warnings[0])
    )
    # What the spec says itself is not told again.
    assert not [w for w in planned(tensors, rank=1, transposed=["*.h.*"]).warnings if "transposed" in w]


@pytest.mark.parametrize(
    ("tensors", "transposed"),
    [
        ([Named("h.0.c.weight", (24, 72)), Named("h.0.c.bias", (72,))], {"h.0.c"}),
        ([Named("h.0.c.weight", (72, 24)), Named("h.0.c.bias", (72,))], set()),
        ([Named("h.0.c.weight", (24, 72)), Named("h.0.c.bias", (5,))], set()),
        ([Named("h.0.c.weight", (24, 72)), Named("h.0.c.bias", (1, 72))], set()),
        ([Named("h.0.c.weight", (24, 72))], set()),
        ([Named("h.0.c.weight"), Named("h.0.c.bias", (64,))], set()),
    ],
)
def test_only_a_bias_that_fits_the_second_side_alone_tells_a_transposed_weight(tensors, transposed):
    assert {layer.name for layer in planned(tensors, rank=1).layers if layer.transposed} == transposed


def test_a_square_weight_is_stored_like_the_nearest_others_of_its_block():
    wide, tall = Named("x.weight", (24, 72)).shape, (72, 24)

    def layer(name, shape, bias):
        return [Named(name + ".weight", shape), Named(name + ".bias", (bias,))]

    tensors = [
        *layer("h.0.attn.qkv", wide, 72),
        *layer("h.0.attn.square", (24, 24), 24),
        *layer("h.0.adapter.up", tall, 72),
        *layer("h.0.adapter.square", (24, 24), 24),
        *layer("h.0.mixed", (24, 24), 24),
        Named("h.0.attn.unbiased.weight", (24, 24)),
        *layer("h.1.square", (24, 24), 24),
        *layer("pooler", (24, 24), 24),
    ]

    transposed = {layer.name for layer in planned(tensors, rank=1).layers if layer.transposed}
    assert transposed == {"h.0.attn.qkv", "h.0.attn.square"}
