"""48 classes of transformers, tiny and with random weights, and an input for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

VOCABULARY, WIDTH, HEADS, LAYERS, INNER, PLACES = 61, 32, 4, 2, 48, 64
IMAGE, PATCH = 32, 8
# What most text models call their sizes.
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": PLACES,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PATCHES = {**TEXT, "image_size": IMAGE, "patch_size": PATCH}
SPEECH = {
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
PAIR = {
    **ENDS,
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "max_position_embeddings": PLACES,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": INNER,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
}


class Case(NamedTuple):
    """A class, the class of its config, the config's entries, and what its forward takes."""

    model: str
    config: str
    entries: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(3, 15).reshape(2, 6)}


def two_texts() -> dict[str, Tensor]:
    return {**tokens(), "decoder_input_ids": torch.arange(5, 13).reshape(2, 4)}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * IMAGE * IMAGE).sin().reshape(2, 3, IMAGE, IMAGE)}


def sound() -> dict[str, Tensor]:
    return {"input_values": torch.linspace(-50, 50, 2 * 400).sin().reshape(2, 400)}


def whisper_input() -> dict[str, Tensor]:
    features = torch.linspace(-9, 9, 2 * 8 * 32).sin().reshape(2, 8, 32)
    return {"input_features": features, "decoder_input_ids": torch.arange(5, 13).reshape(2, 4)}


def text_and_image() -> dict[str, Tensor]:
    return {**tokens(), **image()}


CASES = (
    # Encoders of text.
    Case("BertModel", "BertConfig", TEXT, tokens),
    Case("RobertaForMaskedLM", "RobertaConfig", {**TEXT, **ENDS}, tokens),
    Case("AlbertModel", "AlbertConfig", {**TEXT, "embedding_size": 16}, tokens),
    Case(
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INNER,
            "max_position_embeddings": PLACES,
        },
        tokens,
    ),
    Case("ElectraModel", "ElectraConfig", {**TEXT, "embedding_size": 16}, tokens),
    Case(
        "DebertaV2Model",
        "DebertaV2Config",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
        tokens,
    ),
    Case("EsmModel", "EsmConfig", {**TEXT, "pad_token_id": 1, "position_embedding_type": "rotary"}, tokens),
    Case("MPNetModel", "MPNetConfig", {**TEXT, **ENDS}, tokens),
    Case("XLMRobertaModel", "XLMRobertaConfig", {**TEXT, **ENDS}, tokens),
    Case(
        "ModernBertModel",
        "ModernBertConfig",
        {**TEXT, **ENDS, "cls_token_id": 1, "sep_token_id": 2},
        tokens,
    ),
    # Encoders with decoders.
    Case("T5ForConditionalGeneration", "T5Config", T5, two_texts),
    Case("MT5ForConditionalGeneration", "MT5Config", T5, two_texts),
    Case("BartForConditionalGeneration", "BartConfig", PAIR, two_texts),
    Case("PegasusForConditionalGeneration", "PegasusConfig", PAIR, two_texts),
    Case("MarianMTModel", "MarianConfig", {**PAIR, "pad_token_id": 60}, two_texts),
    Case(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**PAIR, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
        whisper_input,
    ),
    # Decoders.
    Case(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": PLACES,
        },
        tokens,
    ),
    Case("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, tokens),
    Case("FalconForCausalLM", "FalconConfig", {**TEXT, "alibi": False}, tokens),
    Case(
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
        tokens,
    ),
    Case(
        "OPTForCausalLM", "OPTConfig", {**TEXT, **ENDS, "ffn_dim": INNER, "word_embed_proj_dim": 32}, tokens
    ),
    Case("PhiForCausalLM", "PhiConfig", GROUPED, tokens),
    Case("Phi3ForCausalLM", "Phi3Config", {**GROUPED, **ENDS}, tokens),
    Case("GemmaForCausalLM", "GemmaConfig", {**GROUPED, "head_dim": 8}, tokens),
    Case("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 8}, tokens),
    Case("LlamaForCausalLM", "LlamaConfig", GROUPED, tokens),
    Case("MistralForCausalLM", "MistralConfig", GROUPED, tokens),
    Case("Qwen2ForCausalLM", "Qwen2Config", {**GROUPED, "tie_word_embeddings": True}, tokens),
    Case("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8}, tokens),
    # Mixtures of experts.
    Case("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 3}, tokens),
    Case(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **GROUPED,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
        tokens,
    ),
    Case(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **TEXT,
            "num_key_value_heads": HEADS,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        tokens,
    ),
    Case(
        "GptOssForCausalLM",
        "GptOssConfig",
        {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        tokens,
    ),
    # State spaces.
    Case(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8},
        tokens,
    ),
    Case(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "state_size": 8,
            "head_dim": 16,
            "num_heads": 4,
            "n_groups": 1,
            "chunk_size": 8,
        },
        tokens,
    ),
    # Vision.
    Case("ViTForImageClassification", "ViTConfig", {**PATCHES, "num_labels": 40}, image),
    Case("DeiTModel", "DeiTConfig", PATCHES, image),
    Case("Dinov2Model", "Dinov2Config", PATCHES, image),
    Case("BeitModel", "BeitConfig", PATCHES, image),
    Case(
        "SwinModel",
        "SwinConfig",
        {
            "image_size": IMAGE,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        image,
    ),
    Case(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 16, 32, 32],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 32,
        },
        image,
    ),
    Case(
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
        image,
    ),
    # Audio.
    Case("Wav2Vec2Model", "Wav2Vec2Config", {**TEXT, **SPEECH}, sound),
    Case("HubertModel", "HubertConfig", {**TEXT, **SPEECH}, sound),
    Case("WavLMModel", "WavLMConfig", {**TEXT, **SPEECH}, sound),
    # Several kinds of input.
    Case(
        "CLIPModel",
        "CLIPConfig",
        {"text_config": {**TEXT, **ENDS, "eos_token_id": 14}, "vision_config": PATCHES},
        text_and_image,
    ),
    Case(
        "SiglipModel",
        "SiglipConfig",
        {"text_config": {**TEXT, **ENDS}, "vision_config": PATCHES},
        text_and_image,
    ),
    Case(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**GROUPED, "model_type": "llama"},
            "vision_config": {**PATCHES, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": 60,
        },
        lambda: {
            "input_ids": torch.tensor([[1, *[60] * 16, 3, 4]] * 2),
            **image(),
        },
    ),
)

# Transformers makes the biases of its queries and values of tensors with other names.
VIDEO = Case(
    "VideoMAEModel",
    "VideoMAEConfig",
    {**PATCHES, "num_frames": 2, "tubelet_size": 2},
    lambda: {"pixel_values": torch.stack([*image().values()] * 2, dim=1)},
)


def build(case: Case) -> transformers.PreTrainedModel:
    """Make the model, with weights so large that each of them matters for what it computes."""
    torch.manual_seed(1)
    config = getattr(transformers, case.config)(**case.entries)
    model = getattr(transformers, case.model)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() < 2:
                parameter.add_(0.1 * noise)
            elif "A_log" not in name:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()
