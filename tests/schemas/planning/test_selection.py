"""schemas/planning/selection.py: what is selected by default, and by which rule the rest is left out."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    CLIPTextConfig,
    CLIPTextModel,
    DbrxConfig,
    DbrxForCausalLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from schemas.planning.left_out import not_selected
from schemas.spec import DEFAULT_EXCLUDE, CompressionSpec
from tests.schemas.planning.named import Named, planned, selected

SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def tensors_of(model, prefix=""):
    return [Named(prefix + name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def linears(model, prefix=""):
    return {f"{prefix}{name}" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize(
    ("build", "prefix"),
    [
        (FluxTransformer2DModel, ""),
        (SD3Transformer2DModel, ""),
        (lambda: UNet2DConditionModel(**SDXL), ""),
        (lambda: CLIPTextModel(CLIPTextConfig()), "conditioner.embedders.0.transformer."),
    ],
    ids=["flux", "sd3", "sdxl", "sdxl-text"],
)
def test_the_defaults_leave_out_no_linear_of_a_diffusion_model_and_tell_all_else(build, prefix):
    with torch.device("meta"):
        model = build()
    tensors = tensors_of(model, prefix)
    plan = planned(tensors, rank=1)
    names = {layer.name for layer in plan.layers if layer.reason is None}

    assert names == linears(model, prefix)
    told = sum(entry.parameters for entry in not_selected(plan))
    assert told + sum(layer.parameters_before for layer in plan.layers) == sum(t.parameters for t in tensors)


def test_no_embedding_of_t5_is_selected_and_every_linear_is():
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )

    assert set(selected(*tensors_of(model), rank=1)) == linears(model)


def test_the_linear_that_albert_calls_an_embedding_is_selected_as_it_has_a_bias():
    model = AlbertModel(
        AlbertConfig(
            vocab_size=64, embedding_size=16, hidden_size=32, num_attention_heads=4, intermediate_size=64
        )
    )

    assert set(selected(*tensors_of(model), rank=1)) == linears(model)


def test_the_routers_of_mixtral_are_left_out_and_its_experts_are_told():
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=16,
    )
    tensors = tensors_of(MixtralForCausalLM(config))
    plan = planned(tensors, rank=1)
    rules = {entry.rule: entry for entry in not_selected(plan)}

    gates = tuple(f"model.layers.{number}.mlp.gate.weight" for number in range(2))
    assert rules["exclude last:gate"].names == gates
    assert rules["stack"].tensors == 4
    assert rules["stack"].share > 0.9
    assert f"{rules['stack'].share:.1%}" in plan.warnings[0]
    assert "'stack'" in plan.warnings[0]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "emb",
            "tok_emb",
            "pos_emb",
            "wordEmbedding",
            "Embedding",
            "shared",
            "lookup",
            "codebook",
            "wte",
            "wpe",
        ),
        *("token_type", "token_type_embeddings", "relative_attention_bias", "embed_tokens", "pos_embed"),
        *("norm1", "LayerNorm", "final_layer_norm", "ln_f", "gate"),
    ],
)
def test_names_of_embeddings_norms_and_gates_are_left_out_as_last_part_only(name):
    assert selected(Named(f"model.{name}.weight"), Named(f"{name}.weight")) == []
    assert selected(Named(f"model.{name}.linear.weight")) == [f"model.{name}.linear"]


@pytest.mark.parametrize("name", ["router", "block_router", "Router"])
def test_a_router_is_left_out_with_the_linears_right_below_it(name):
    assert selected(Named(f"model.{name}.weight"), Named(f"{name}.weight")) == []
    assert selected(Named(f"model.{name}.proj.weight"), Named(f"{name}.0.weight")) == []
    # As where a whole network is called so.
    assert selected(Named(f"{name}.encoder.fc.weight")) == [f"{name}.encoder.fc"]


def routed_classes():
    """Models whose routers have Linears of their own, and the last parts of these."""
    switch = SwitchTransformersConfig(
        vocab_size=50,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=3,
    )
    dbrx = DbrxConfig(
        vocab_size=50,
        d_model=16,
        n_heads=2,
        n_layers=1,
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 3, "moe_top_k": 1, "hidden_size": 16},
        attn_config={"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 1e4},
    )
    jetmoe = JetMoeConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_key_value_heads=2,
        kv_channels=8,
        intermediate_size=32,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    return {
        "router.classifier": SwitchTransformersForConditionalGeneration(switch),
        "ffn.router.layer": DbrxForCausalLM(dbrx),
        "mlp.router.layer": JetMoeForCausalLM(jetmoe),
    }


def test_routers_with_linears_of_their_own_are_left_out_and_no_other_linear_is():
    for ending, model in routed_classes().items():
        routers = {name for name in linears(model) if "router" in name}

        assert any(name.endswith(ending) for name in routers)
        assert {layer.name for layer in planned(tensors_of(model), rank=1).layers} == linears(model) - routers


@pytest.mark.parametrize("name", ["embed_tokens", "decoder_embed", "Embedding", "emb", "shared"])
def test_a_bias_tells_a_linear_from_an_embedding(name):
    weight = Named(f"model.{name}.weight", (64, 32))

    assert selected(weight, Named(f"model.{name}.bias", (64,))) == [f"model.{name}"]
    assert selected(weight, Named(f"model.{name}.bias", (5,))) == []


@pytest.mark.parametrize("name", ["router", "router.layer", "gate", "norm", "ln_1"])
def test_a_router_or_a_norm_with_a_bias_is_left_out(name):
    assert selected(Named(f"m.{name}.weight", (64, 32)), Named(f"m.{name}.bias", (64,))) == []


@pytest.mark.parametrize(
    "name", ["gate_proj", "x_embedder", "context_embedder", "shared_head", "o_proj", "fc"]
)
def test_names_that_only_resemble_those_stay_selected(name):
    assert selected(Named(f"model.{name}.weight")) == [f"model.{name}"]


def test_a_list_of_the_user_replaces_the_defaults_and_is_matched_with_whole_names():
    tensors = [
        Named("embed.weight"),
        Named("model.embed.weight"),
        Named("lm_head.weight"),
        Named("fc.weight"),
    ]

    assert selected(*tensors, exclude=["embed*", "lm_head"]) == ["model.embed", "fc"]
    assert selected(*tensors, exclude=[*DEFAULT_EXCLUDE, "lm_head"]) == ["fc"]
    assert selected(*tensors, exclude=["last:lm_head"]) == ["embed", "model.embed", "fc"]


def test_the_document_of_a_spec_shows_the_default_patterns_and_gives_the_same_spec():
    spec = CompressionSpec(rank=1)

    assert "last:embed*" in spec.document()["exclude"]
    assert CompressionSpec.model_validate(spec.document()) == spec
