"""HPSv2.1, a CLIP trained on which of two images people prefer (Wu et al. 2023, arXiv 2306.09341)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sgool.guidance.clip import Clip
from sgool.guidance.clip_loading import open_model
from sgool.guidance.clip_weights import on_hub
from sgool.guidance.critic import CriticKind, Role
from sgool.guidance.views import letterboxed
from sgool.weights import Weight, ensure

MODEL = "ViT-H-14"
"""Its architecture, by open_clip's name."""

WEIGHT = ("xswu/HPSv2", "HPS_v2.1_compressed.pt", "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837")
"""Repository, file and SHA-256."""


class Preference(Clip):
    """A CLIP that was trained on people's choices. Text beyond its context is cut off, as in its authors' code."""

    def split(self, text: str) -> list[str]:
        return [text]


class Hps(Preference):
    """Score: the cosine. The whole image counts, on a black square where it is none."""

    def resize(self, images: Tensor) -> Tensor:
        return letterboxed(images, self.image_size)


def weights(variant: str, role: Role) -> tuple[Weight, ...]:
    """See CriticKind."""
    repository, file, digest = WEIGHT
    return (on_hub(repository, file, file, digest),)


def load(variant: str, role: Role, models_dir: Path, device: torch.device) -> Hps:
    """See CriticKind."""
    path = ensure(weights(variant, role)[0], models_dir)
    return Hps(*open_model(MODEL, path), device=device)


KIND = CriticKind(
    "what people prefer, for the prompt (HPSv2.1)",
    load,
    weights=weights,
    licence="Apache-2.0",
    download=2.0,
    memory=1.2,
)
