"""The protocol for what differs between hosts: how to get a noise prediction, a picture and a latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sgool.samplers import Network


class Backend(Protocol):
    """A latent diffusion model as the core sees it.

    alphas_cumprod: [N], float64. size: the default (height, width) of its pictures, in pixels.
    """

    device: torch.device
    alphas_cumprod: Tensor

    @property
    def size(self) -> tuple[int, int]: ...

    def network(self, prompt: str | Sequence[str], negative_prompt: str, guidance_scale: float) -> Network:
        """The guided noise prediction for one prompt, or for a batch with a prompt per sample."""
        ...

    def noise(self, seed: int) -> Tensor:
        """The seed's unit Gaussian noise, float64 [1, 4, h, w], the same on every device."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Latent [B, 4, h, w] -> images [B, 3, H, W], roughly in [0, 1] but not clamped; differentiable."""
        ...


class ImageBackend(Backend, Protocol):
    """A backend that can also encode pictures."""

    def encode(self, image: Tensor) -> Tensor:
        """Image [1, 3, H, W] in [0, 1] -> latent [1, 4, h, w], float64."""
        ...
