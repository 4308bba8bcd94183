"""LAION's aesthetic predictor V2 (Schuhmann 2022): how people rate an image from 1 to 10, whatever it shows.

A linear map of CLIP's embedding: the published head has five layers, but nothing between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance.clip import Clip
from sgool.guidance.clip_loading import State, open_model
from sgool.guidance.clip_weights import published
from sgool.guidance.critic import CriticKind, Role
from sgool.guidance.views import center_cropped
from sgool.weights import Weight, ensure, load_state_dict

MODEL, TAG = "ViT-L-14", "openai"
"""The CLIP below the head."""

HEAD = Weight(
    "sac+logos+ava1-l14-linearMSE.pth",
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)

LAYERS = (0, 2, 4, 6, 7)
"""The numbers of the head's linear layers; between them it has dropout, which does nothing after training."""


class Aesthetic(Clip):
    """Score: the predicted rating. The middle square of the image counts, and no text does."""

    unit = "rating"

    def __init__(self, model: Any, tokenizer: Any, head: State, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self._weight, self._bias = (each.to(self.device) for each in folded(head))

    def to(self, device: torch.device | str, half: bool | None = None) -> Aesthetic:
        super().to(device, half)
        self._weight, self._bias = self._weight.to(self.device), self._bias.to(self.device)
        return self

    def resize(self, images: Tensor) -> Tensor:
        return center_cropped(images, self.image_size)

    def rate(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return features @ self._weight + self._bias

    def table(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return self.rate(features, texts)[:, None].expand(-1, len(texts))

    def distance(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return -self.rate(features, texts)


def folded(head: State) -> tuple[Tensor, Tensor]:
    """The head's layers as one: weights [D], and what is added. Raises SgoolError for another head."""
    try:
        layers = [
            (head[f"layers.{number}.weight"].double(), head[f"layers.{number}.bias"].double()) for number in LAYERS
        ]
        weight, bias = layers[0]
        for weights, biases in layers[1:]:
            weight, bias = weights @ weight, weights @ bias + biases
        return weight[0].float(), bias[0].float()
    except (KeyError, RuntimeError) as error:
        raise SgoolError(f"{HEAD.file} does not hold the aesthetic predictor's layers.") from error


def weights(variant: str, role: Role) -> tuple[Weight, ...]:
    """See CriticKind."""
    return published(MODEL, TAG), HEAD


def network(variant: str, role: Role) -> str:
    """See CriticKind. The name of the CLIP below, see `sgool.guidance.clip.network`."""
    return f"{MODEL}/{TAG}"


def load(variant: str, role: Role, models_dir: Path, device: torch.device) -> Aesthetic:
    """See CriticKind."""
    clip, head = weights(variant, role)
    path, layers = ensure(clip, models_dir), load_state_dict(ensure(head, models_dir))
    return Aesthetic(*open_model(MODEL, path, program=clip.pins(path), quick=True), layers, device=device)


KIND = CriticKind(
    "how beautiful people find the image, whatever the prompt (LAION's aesthetic predictor V2)",
    load,
    weights=weights,
    network=network,
    licence="MIT (CLIP), Apache-2.0 (head)",
    download=0.9,
    memory=0.6,
)
