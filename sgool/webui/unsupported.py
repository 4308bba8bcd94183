"""Cases that cannot work, with one sentence for each. The image stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from modules import devices

from sgool.webui.hosts import host


def reason(p: Any) -> str | None:
    """Why SGOOL cannot work on what is being generated, or None."""
    if sentence := host().refuses(p):
        return sentence
    if host().edits(p.sd_model):
        return "SGOOL does not work with instruct-pix2pix, because its guidance uses a second image."
    if getattr(p, "refiner_checkpoint_info", None) is not None:
        return "SGOOL does not work with a refiner, because two models then make the image; turn the refiner off."
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
