"""A tiny pipeline of diffusers that makes pictures of words, as its own classes save it."""

import json

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def save_pipeline(folder):
    """Save a pipeline whose UNet, text encoder and VAE all have linear layers; return its folder."""
    # Imported here, since it takes seconds and all processes that run tests import their helpers.
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    numbers = {"vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 1, "pad_token_id": 1}
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(bos_token_id=0, **sizes, **numbers)),
        tokenizer=tokenizer(folder.parent),
        unet=unet,
        scheduler=DDIMScheduler(num_train_timesteps=10),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def tokenizer(folder):
    """Make a tokenizer of single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def picture(pipeline):
    """Return what two steps make of a word."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipeline("cat", num_inference_steps=2, output_type="np", generator=noise).images
