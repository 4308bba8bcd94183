"""The networks of the larger world: Stable Diffusion 1.x's architecture, and three CLIPs."""

from __future__ import annotations

from typing import Any

import open_clip
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 256,
}
"""Eight groups: see `sgool.lab.training.autoencoder`."""

UNET = {
    "sample_size": 32,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 192,
    "attention_head_dim": 4,
}
"""Cross-attention at 16x16 and 8x8. As in Stable Diffusion 1.x, "attention_head_dim" is the number of heads."""

TEXT = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}

CRITICS: dict[str, dict[str, Any]] = {
    "guide": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "selector": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 12},
    "judge": {"image_size": 256, "layers": [1, 2, 2, 1], "width": 12},
}
"""The guide is a transformer: a small subject is about one of its patches in the whole picture, and clear in a crop.
The selector is a ResNet that sees as much. The judge is a deeper ResNet that sees every pixel of the whole picture."""

RANK = 24
"""Of the few-step sibling's difference: what leaves everything that is shipped below 40 MiB in float16."""

CRITIC_TEXT = {"context_length": 32, "width": 96, "heads": 4, "layers": 2}


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(**VAE)


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNET)


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """vocabulary: its size. The last two tokens are those of start and end."""
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=vocabulary, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, **TEXT)
    )


def critic_config(name: str, vocabulary: int) -> dict[str, Any]:
    return {"embed_dim": 96, "vision_cfg": CRITICS[name], "text_cfg": CRITIC_TEXT | {"vocab_size": vocabulary}}


def critic(name: str, vocabulary: int) -> open_clip.CLIP:
    return open_clip.CLIP(**critic_config(name, vocabulary))
