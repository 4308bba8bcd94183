"""The CLIPs of the embedded model: a guide and a selector of different architectures, without a download."""

from __future__ import annotations

from pathlib import Path

import torch

from sgool import tiny
from sgool.guidance.clip import Clip, load_clip_folder
from sgool.guidance.critic import CriticKind, Role


def load(variant: str, role: Role, models_dir: Path, device: torch.device) -> Clip:
    """The embedded CLIP of that role."""
    return load_clip_folder(tiny.CLIPS[role], device=device)


KIND = CriticKind("The embedded model's own small CLIPs; they know its little world only", load)
