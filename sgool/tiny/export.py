"""Write the embedded model as a Stable Diffusion 1.x checkpoint. The WebUI loads it with the ``.yaml`` file beside it.

The keys are those of CompVis' latent diffusion (LDM). LDM normalizes in 32 groups everywhere, but the embedded
autoencoder has fewer groups. Every inner channel dimension of the autoencoder is therefore padded with zero channels,
up to 32 groups of the same size. Zero channels stay zero, because their weights, biases and scales are zero. No group
mixes zero channels with other channels, so the function is exactly the same.

The UNet has 32 groups, but also a level that is 1.5 times as wide as the first. LDM needs the class in sgool.tiny.ldm
for this level, so a WebUI can load the checkpoint only if it has this extension.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgool.tiny import MODEL, few_step

GROUPS = 32
"""Groups of every GroupNorm in LDM."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}

VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "resnets": "block",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}

OUTER = {"encoder.conv_in": (1,), "encoder.conv_out": (0,), "decoder.conv_in": (1,), "decoder.conv_out": (0,)}
"""Dimensions that hold the channels of the picture or the latent. They are not padded."""


def export(folder: Path, model: Path = MODEL) -> Path:
    """Write the checkpoint to `folder`, usually the WebUI's ``models/Stable-diffusion``, and return its path.

    Writes ``sgool-tiny.safetensors``, ``sgool-tiny.yaml`` and ``sgool-tiny/`` (diffusers' configuration files and the
    tokenizer), about 40 MiB in all. The ``.yaml`` file holds the absolute path of the tokenizer, so export again
    instead of moving the files.

    model: the diffusers folder of a Stable Diffusion 1.x model. Its autoencoder's number of groups must divide 32.
    """
    parts = {part: _json(model / part / "config.json") for part in ("unet", "vae", "text_encoder")}
    schedule = _json(model / "scheduler" / "scheduler_config.json")
    checkpoint = folder / "sgool-tiny.safetensors"
    configs = checkpoint.with_suffix("")
    shutil.copytree(model, configs, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    padding = GROUPS // parts["vae"]["norm_num_groups"]
    parts["vae"]["norm_num_groups"] = GROUPS
    parts["vae"]["block_out_channels"] = [padding * width for width in parts["vae"]["block_out_channels"]]
    _write(configs / "vae" / "config.json", parts["vae"])
    # LDM's text encoder reads tokenizer and configuration from one folder.
    _write(configs / "tokenizer" / "config.json", parts["text_encoder"])
    _write(checkpoint.with_suffix(".yaml"), _ldm_config(parts, schedule, configs / "tokenizer"))

    root = (schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5)
    betas = torch.linspace(*root, schedule["num_train_timesteps"], dtype=torch.float64) ** 2
    weights = {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    for key, value in _weights(model / "unet").items():
        weights["model.diffusion_model." + _unet_key(key, parts["unet"])] = value
    for key, value in _weights(model / "vae").items():
        weights["first_stage_model." + _vae_key(key, parts["vae"])] = _padded(key, value, padding)
    for key, value in _weights(model / "text_encoder").items():
        weights["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = value
    save_file({key: value.contiguous() for key, value in weights.items()}, checkpoint, {"format": "pt"})
    return checkpoint


def export_few_step(folder: Path) -> Path:
    """Write the few-step sibling beside the model that `export` has written there, and return its path."""
    model = folder / "sgool-tiny.safetensors"
    checkpoint = folder / "sgool-tiny-lcm.safetensors"
    config = _json(MODEL / "unet" / "config.json")
    unet = few_step.merged(_weights(MODEL / "unet"), load_file(few_step.FILE))
    weights = load_file(model)
    weights |= {"model.diffusion_model." + _unet_key(key, config): value.half() for key, value in unet.items()}
    save_file(weights, checkpoint, {"format": "pt"})
    shutil.copy(model.with_suffix(".yaml"), checkpoint.with_suffix(".yaml"))
    shutil.copytree(model.with_suffix(""), checkpoint.with_suffix(""), dirs_exist_ok=True)
    return checkpoint


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _weights(folder: Path) -> dict[str, Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def _replace(key: str, names: dict[str, str]) -> str:
    """Replace whole parts of a dotted key."""
    for old, new in names.items():
        key = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, key)
    return key


def _unet_key(key: str, config: dict[str, Any]) -> str:
    """LDM numbers the blocks of all levels in a row. A block holds a ResNet (0) and an attention (1), or resamples."""
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key)
    if not match:
        name = _replace(key, UNET)
        return _replace(name, RESNET) if "resnets" in key else name
    way, level, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    layers = config["layers_per_block"]
    block = f"input_blocks.{1 + level * (layers + 1)}" if way == "down" else f"output_blocks.{level * (layers + 1)}"
    block, number = block.rsplit(".", 1)
    if kind == "downsamplers":
        return f"{block}.{int(number) + layers}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        place = 2 if "Attn" in config["up_block_types"][level] else 1
        return f"{block}.{int(number) + layers}.{place}.{rest}"
    if kind == "attentions":
        return f"{block}.{int(number) + layer}.1.{rest}"
    return f"{block}.{int(number) + layer}.0.{_replace(rest, RESNET)}"


def _vae_key(key: str, config: dict[str, Any]) -> str:
    """LDM counts the decoder's levels from the finest."""
    last = len(config["block_out_channels"]) - 1
    key = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", key)
    return _replace(key.replace("down_blocks", "down"), VAE)


def _padded(key: str, value: Tensor, padding: int) -> Tensor:
    """The autoencoder's tensor `value` with `padding` times as many inner channels."""
    layer = key.rpartition(".")[0]
    if "attentions" in key and layer.rpartition(".")[2] == "to_q":
        value = value * math.sqrt(padding)  # attention divides by the square root of the channel count, now larger
    if "attentions" in key and value.ndim == 2:
        value = value[:, :, None, None]  # linear in diffusers, a 1x1 convolution in LDM
    if layer in ("quant_conv", "post_quant_conv"):
        return value
    shape = list(value.shape)
    for dim in range(min(value.ndim, 2)):
        shape[dim] *= 1 if dim in OUTER.get(layer, ()) else padding
    out = value.new_zeros(shape)
    out[tuple(slice(size) for size in value.shape)] = value
    return out


def _ldm_config(parts: dict[str, dict[str, Any]], schedule: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """LatentDiffusion's configuration. It is written as JSON, which is also YAML."""
    unet, vae = parts["unet"], parts["vae"]
    width = unet["block_out_channels"][0]
    unet_params = {
        "image_size": unet["sample_size"],
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "model_channels": width,
        "channel_mult": [channels / width for channels in unet["block_out_channels"]],
        "attention_resolutions": [2**i for i, kind in enumerate(unet["down_block_types"]) if "Attn" in kind],
        "num_res_blocks": unet["layers_per_block"],
        "num_heads": unet["attention_head_dim"],
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": unet["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }
    channels = vae["block_out_channels"]
    autoencoder = {
        "double_z": True,
        "z_channels": vae["latent_channels"],
        "resolution": vae["sample_size"],
        "in_channels": vae["in_channels"],
        "out_ch": vae["out_channels"],
        "ch": channels[0],
        "ch_mult": [channel // channels[0] for channel in channels],
        "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {
        "model": {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": schedule["beta_start"],
                "linear_end": schedule["beta_end"],
                "timesteps": schedule["num_train_timesteps"],
                "num_timesteps_cond": 1,
                "first_stage_key": "jpg",
                "cond_stage_key": "txt",
                "image_size": unet["sample_size"],
                "channels": unet["in_channels"],
                "cond_stage_trainable": False,
                "conditioning_key": "crossattn",
                "scale_factor": vae["scaling_factor"],
                "use_ema": False,
                "unet_config": {"target": "sgool.tiny.ldm.UNetModel", "params": unet_params},
                "first_stage_config": {
                    "target": "ldm.models.autoencoder.AutoencoderKL",
                    "params": {
                        "embed_dim": vae["latent_channels"],
                        "ddconfig": autoencoder,
                        "lossconfig": {"target": "torch.nn.Identity"},
                    },
                },
                "cond_stage_config": {
                    "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                    "params": {"version": str(tokenizer.resolve())},
                },
            },
        }
    }
