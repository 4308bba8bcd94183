"""The CLIPs of the embedded model: a guide and a selector of different architectures, without a download."""

from __future__ import annotations

from pathlib import Path

import torch

from sgool import tiny
from sgool.guidance.clip import Clip, load_clip_folder
from sgool.guidance.critic import CriticKind, Role
from sgool.tiny.words import SUBJECTS

GENERIC = tuple(f"a {size}{word}" for size in ("", "small ") for word in SUBJECTS)
"""Phrases of all kinds, in its little world."""


def load(variant: str, role: Role, models_dir: Path, device: torch.device) -> Clip:
    """The embedded CLIP of that role."""
    clip = load_clip_folder(tiny.CLIPS[role], device=device)
    clip.generic = GENERIC
    return clip


def network(variant: str, role: Role) -> str:
    """See CriticKind."""
    return f"embedded {role}"


KIND = CriticKind(
    "how well the image fits the prompt; the embedded model's own small CLIPs, which know its little world only",
    load,
    network=network,
    licence="MIT",
)
