"""Stable Diffusion at its published sizes, with random weights: their values do not change the cost of an update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sgool.backends.diffusers import DiffusersBackend
from sgool.guidance.clip import Clip
from sgool.guidance.clip_loading import BpeTokenizer

TOKENS = 77


@dataclass(frozen=True)
class Size:
    """The configuration of a model: its differences from diffusers' defaults, which are those of SD 1.x.

    latent: side of the square latent, an eighth of the picture's side. steps: sampling steps of the benchmark. unet,
    vae: keywords of UNet2DConditionModel and AutoencoderKL. guide, selector: CLIPs, as an open_clip name or
    configuration. transalnet: whether the detector is TranSalNet (ResNet-50, 288x384 for any picture size) or spectral
    residual. extra: names and widths of the UNet's additional conditions.
    """

    latent: int
    steps: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    guide: str | Mapping[str, Any]
    selector: str | Mapping[str, Any]
    transalnet: bool = True
    extra: Mapping[str, int] = field(default_factory=dict)


def _vae(*channels: int, groups: int = 32, scaling: float = 0.18215) -> dict[str, Any]:
    return {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": 2,
        "norm_num_groups": groups,
        "scaling_factor": scaling,
    }


_SMALL_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": TOKENS, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}

SIZES = {
    # runwayml/stable-diffusion-v1-5, unet/config.json and vae/config.json
    "sd15": Size(64, 20, {"cross_attention_dim": 768}, _vae(128, 256, 512, 512), "ViT-B-32", "ViT-B-16"),
    # stabilityai/stable-diffusion-xl-base-1.0, the same files
    "sdxl": Size(
        128,
        20,
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        _vae(128, 256, 512, 512, scaling=0.13025),
        "ViT-B-32",
        "ViT-B-16",
        extra={"text_embeds": 1280, "time_ids": 6},
    ),
    # SD 1.5 with a tenth of the channels and a sixteenth of the picture area, for the CPU
    "small": Size(
        16,
        4,
        {
            "block_out_channels": (32, 64, 128, 128),
            "norm_num_groups": 8,
            "attention_head_dim": 2,
            "cross_attention_dim": 64,
        },
        _vae(16, 32, 64, 64, groups=8),
        _SMALL_CLIP,
        _SMALL_CLIP,
        transalnet=False,
    ),
}


class RandomBackend(DiffusersBackend):
    """A backend of the given size with random weights, all in `dtype` and the same every time. No text encoder.

    On the device "meta" there are only shapes, so the cost can be counted on any machine.
    """

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype, memory: str = "fast") -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from diffusers.utils import logging

        logging.set_verbosity_error()
        with initializing(device, dtype):
            unet = UNet2DConditionModel(sample_size=size.latent, **size.unet)
            vae = AutoencoderKL(sample_size=8 * size.latent, **size.vae)
            self.condition = torch.randn(1, TOKENS, size.unet["cross_attention_dim"])
            self.extra = {name: torch.randn(1, width) for name, width in size.extra.items()}
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
        scheduler = SimpleNamespace(
            alphas_cumprod=(1 - betas).cumprod(0), config=SimpleNamespace(prediction_type="epsilon")
        )
        parts = SimpleNamespace(unet=unet, vae=vae, scheduler=scheduler, tokenizer=None, text_encoder=nn.Identity())
        super().__init__(parts, memory)
        self.prepare()

    def check(self, pipeline: Any) -> None:
        """Any networks will do, SDXL's too, and on the device "meta"."""

    def _encode_text(self, prompts: Sequence[str]) -> Tensor:
        return self.condition.repeat(len(prompts), 1, 1)

    def predict(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """The UNet's output. SDXL's UNet also gets pooled text and a picture size, with random values."""
        extra = {name: value.expand(len(x), -1) for name, value in self.extra.items()}
        return self.unet(x, timesteps, encoder_hidden_states=condition, added_cond_kwargs=extra).sample


def random_clip(config: str | Mapping[str, Any], device: torch.device) -> Clip:
    """A CLIP with random weights, for an open_clip name or configuration, in float32 as in a run."""
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    built = device if device.type == "meta" else torch.device("cpu")  # Clip keeps its text encoder on the CPU
    with initializing(built, torch.float32):
        model = open_clip.CLIP(**(open_clip.get_model_config(config) if isinstance(config, str) else config))
    return Clip(model, BpeTokenizer(SimpleTokenizer(), TOKENS), device=device)


@contextmanager
def initializing(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New modules get the same random weights every time, directly on `device` and in `dtype`."""
    before = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices), torch.device(device):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)
