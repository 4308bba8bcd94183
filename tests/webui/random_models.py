"""Small checkpoints with random weights, built like Stable Diffusion 2.x (which predicts v), 2 for inpainting and SDXL.

Their pictures are noise, but the networks are built, loaded, conditioned and called like the large ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from webui_server import WebUI

TEXT = "ViT-S-32-alt"
TEXT_WIDTH = 256
"""The smallest text encoder of open_clip."""

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [2, 1],
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_checkpoint": False,
    "legacy": False,
}

AUTOENCODER: dict[str, Any] = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
    "lossconfig": {"target": "torch.nn.Identity"},
}


def sd2() -> dict[str, Any]:
    return {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "parameterization": "v",
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "timesteps": 1000,
            "first_stage_key": "jpg",
            "cond_stage_key": "txt",
            "image_size": 16,
            "channels": 4,
            "conditioning_key": "crossattn",
            "scale_factor": 0.18215,
            "use_ema": False,
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {**UNET, "image_size": 16, "transformer_depth": 1, "context_dim": TEXT_WIDTH},
            },
            "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": AUTOENCODER},
            "cond_stage_config": {
                "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
                "params": {"arch": TEXT, "layer": "penultimate"},
            },
        },
    }


def inpainting() -> dict[str, Any]:
    """The UNet also sees a mask and the picture outside the mask, which the WebUI passes as conditions."""
    config = sd2()
    config["target"] = "ldm.models.diffusion.ddpm.LatentInpaintDiffusion"
    config["params"] |= {"parameterization": "eps", "conditioning_key": "hybrid", "finetune_keys": None}
    config["params"]["unet_config"]["params"]["in_channels"] = 4 + 1 + 4
    return config


def sdxl(tokenizer: Path) -> dict[str, Any]:
    """tokenizer: the exported tiny model's folder, with its text encoder's configuration."""
    width = json.loads((tokenizer / "config.json").read_text())["hidden_size"]
    encoders = "sgm.modules.encoders.modules"
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    embedders: list[dict[str, Any]] = [
        {
            "target": f"{encoders}.FrozenCLIPEmbedder",
            "input_key": "txt",
            "params": {"version": str(tokenizer), "layer": "hidden", "layer_idx": 1},
        },
        {
            "target": f"{encoders}.FrozenOpenCLIPEmbedder2",
            "input_key": "txt",
            "params": {"arch": TEXT, "layer": "penultimate", "always_return_pooled": True, "legacy": False},
        },
        *(
            {"target": f"{encoders}.ConcatTimestepEmbedderND", "input_key": key, "params": {"outdim": 32}}
            for key in sizes
        ),
    ]
    diffusion = "sgm.modules.diffusionmodules"
    unet = {
        **UNET,
        "num_classes": "sequential",
        "adm_in_channels": TEXT_WIDTH + len(sizes) * 2 * 32,
        "transformer_depth": [1, 2],
        "context_dim": width + TEXT_WIDTH,
        "spatial_transformer_attn_type": "softmax",
    }
    denoiser = {
        "num_idx": 1000,
        "weighting_config": {"target": f"{diffusion}.denoiser_weighting.EpsWeighting"},
        "scaling_config": {"target": f"{diffusion}.denoiser_scaling.EpsScaling"},
        "discretization_config": {"target": f"{diffusion}.discretizer.LegacyDDPMDiscretization"},
    }
    return {
        "target": "sgm.models.diffusion.DiffusionEngine",
        "params": {
            "scale_factor": 0.13025,
            "disable_first_stage_autocast": True,
            "denoiser_config": {"target": f"{diffusion}.denoiser.DiscreteDenoiser", "params": denoiser},
            "network_config": {"target": f"{diffusion}.openaimodel.UNetModel", "params": unet},
            "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": embedders}},
            "first_stage_config": {
                "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
                "params": AUTOENCODER,
            },
        },
    }


def write(server: WebUI, name: str, config: dict[str, Any]) -> str:
    """Let the WebUI's own classes write the checkpoint beside the tiny model. Returns the name that selects it."""
    checkpoint = server.home / "models" / "Stable-diffusion" / f"{name}.safetensors"
    checkpoint.with_suffix(".yaml").write_text(json.dumps({"model": config}))
    server.post("/sgool-probe/random-model", {"path": str(checkpoint)})
    server.post("/sdapi/v1/refresh-checkpoints", {})
    return checkpoint.name
