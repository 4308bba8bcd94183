"""Cases that cannot work, with one sentence for each. The image stays as it is."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from modules import devices, sd_unet, shared


def reason(p: Any) -> str | None:
    """Why SGOOL cannot work on what is being generated, or None."""
    model = p.sd_model
    if importlib.util.find_spec("modules_forge") or torch.is_inference_mode_enabled():
        return "SGOOL needs gradients, which Forge and reForge switch off (inference mode); use AUTOMATIC1111's WebUI."
    if getattr(model, "is_sd3", False):
        return "SGOOL does not work with Stable Diffusion 3; use a model that predicts noise (SD 1.x, 2.x or SDXL)."
    if getattr(model, "cond_stage_key", None) == "edit":
        return "SGOOL does not work with instruct-pix2pix, because its guidance uses a second image."
    if sd_unet.current_unet is not None:
        return "SGOOL needs gradients, but a replaced UNet (such as TensorRT) has none; set SD Unet to None."
    if shared.cmd_opts.lowvram and torch.device(devices.device).type != "cpu":
        return "SGOOL does not work with --lowvram on a GPU: this unloads weights that gradients need; use --medvram."
    if getattr(p, "refiner_checkpoint_info", None) is not None:
        return "SGOOL does not work with a refiner, because two models then make the image; turn the refiner off."
    if not hasattr(model, "alphas_cumprod") or not hasattr(model.model, "diffusion_model"):
        return "SGOOL does not know this kind of model; it works with Stable Diffusion 1.x, 2.x and SDXL."
    if not any(prompt.strip() for prompt in p.prompts):
        return "SGOOL needs a prompt that says what the image should show."
    if not _has_double(devices.device):
        return f"SGOOL does not work on this device ({devices.device}), which has no 64-bit floats."
    return None


def _has_double(device: Any) -> bool:
    """Whether the device has 64-bit floats. Apple's MPS, DirectML and some Intel devices have none."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True
