"""Small pipelines with random weights, of the classes that publish large ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import tests.tvshim  # noqa: F401  (must come before transformers)

EMBEDDING = 24
TEXT = 32


def tokenizer(folder: Path):
    """Return a tokenizer that knows a few letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", "a", "b", "a</w>", "b</w>", "ab"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def _text_config():
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=8,
        hidden_size=TEXT,
        intermediate_size=37,
        projection_dim=TEXT,
        num_attention_heads=4,
        num_hidden_layers=1,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def autoencoder(folder: Path | None = None):
    """Return an AutoencoderKL whose latents cover 2 x 2 pixels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )
    if folder is not None:
        vae.save_pretrained(folder)
    return vae


_UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
}


def sdxl(folder: Path) -> Path:
    """Write a StableDiffusionXLPipeline and an IP-Adapter of its UNet."""
    from diffusers import (
        EulerAncestralDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **_UNET,
        cross_attention_dim=2 * TEXT,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT,
    )
    tokens = tokenizer(folder / "tokens")
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder / "sdxl")
    crossing = [name for name in unet.attn_processors if "attn2" in name]
    state = {
        "image_proj.proj.weight": torch.randn(4 * 2 * TEXT, EMBEDDING),
        "image_proj.proj.bias": torch.randn(4 * 2 * TEXT),
        "image_proj.norm.weight": torch.ones(2 * TEXT),
        "image_proj.norm.bias": torch.zeros(2 * TEXT),
    }
    for i, _ in enumerate(crossing):
        for side in "kv":
            weight = torch.randn(16, 2 * TEXT)
            state[f"ip_adapter.{2 * i + 1}.to_{side}_ip.weight"] = weight
    (folder / "adapter" / "models").mkdir(parents=True)
    save_file(state, folder / "adapter" / "models" / "adapter.safetensors")
    return folder


def unclip(folder: Path) -> Path:
    """Write a StableUnCLIPImg2ImgPipeline."""
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        StableUnCLIPImg2ImgPipeline,
        UNet2DConditionModel,
    )
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=EMBEDDING,
        projection_dim=EMBEDDING,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        intermediate_size=16,
        patch_size=4,
    )
    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(size=8, crop_size=8),
        image_encoder=CLIPVisionModelWithProjection(vision),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=EMBEDDING),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer(folder / "tokens"),
        text_encoder=CLIPTextModel(_text_config()),
        unet=UNet2DConditionModel(
            **_UNET,
            cross_attention_dim=TEXT,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * EMBEDDING,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
        vae=autoencoder(),
    )
    pipeline.save_pretrained(folder / "unclip")
    return folder / "unclip"
