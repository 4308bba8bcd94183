"""A small network for the tests of the samplers, and helpers that measure with it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sgool.guidance.critic import Critic
from sgool.samplers import Branch, Network, Sampler, Trajectory

SHEARS = ["bdia", "o-belm", "edict"]
RANDOM = ["euler-a", "lcm", "tcd"]
"""The samplers that draw noise between their steps."""
SD = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).neg().add(1).cumprod(0)
"""Stable Diffusion's alphabar."""


class Toy(nn.Module):
    """A convolution, attention over the pixels and a time embedding. `text` makes two toys differ as two prompts do."""

    def __init__(self, text: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward, self.time, self.outward = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(2, 8), nn.Conv2d(8, 4, 1)
        self.text = text
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: int) -> Tensor:
        wave = torch.tensor([math.sin(t / 150) + self.text, math.cos(t / 150)], dtype=x.dtype)
        h = torch.nn.functional.silu(self.inward(x) + self.time(wave)[:, None, None])
        q = h.flatten(2).transpose(1, 2)
        attended = torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(h.shape)
        return 0.7 * x + self.outward(h + attended)


def toys(dtype: torch.dtype = torch.float32) -> tuple[Toy, Toy]:
    return Toy(0.0).to(dtype), Toy(0.4).to(dtype)


def guided(scale: float = 7.5, dtype: torch.dtype = torch.float32, prediction: str = "epsilon") -> Network:
    """Sequential classifier-free guidance over the two toys."""
    uncond, cond = toys(dtype)
    return Network([Branch(1 - scale, uncond), Branch(scale, cond)], SD, prediction, dtype)


def latent(seed: int = 1, batch: int = 1) -> Tensor:
    return torch.randn(batch, 4, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def begun(sampler: Sampler, steps: int, network: Network, start: int = 0, way_back: str = "full") -> Trajectory:
    """The sampler's trajectory on its own timesteps, with noises of its own between the steps."""
    schedule = sampler.schedule(SD, steps)
    noises = [latent(100 + number) for number in range(sampler.noises(schedule))]
    return Trajectory(sampler, schedule, network, start, noises, way_back)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def brute(network: Network):
    """The network as one differentiable function."""

    def eps(x: Tensor, t: int) -> Tensor:
        out = sum(b.weight * b.function(x.to(network.dtype), t).double() for b in network.branches)
        if network.prediction == "epsilon":
            return out
        return SD[t].sqrt() * out + (1 - SD[t]).sqrt() * x

    return eps


class Colors(Critic):
    """Scores how red, green or blue an image is; a text of several colors asks for all of them."""

    image_size = (8, 8)

    def to(self, device, half=None):
        return self

    def encode_image(self, images):
        return images.mean((2, 3))

    def rate(self, features, texts):
        wanted = torch.tensor([[float(color in text) for color in ("red", "green", "blue")] for text in texts])
        return (features * (2 * wanted - 1)).sum(-1)


class Rater(Critic):
    """A critic that embeds nothing."""

    image_size = (8, 8)
    name = "rater"

    def to(self, device: torch.device, half: bool | None = None) -> Rater:
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def rate(self, features: Tensor, texts: Any) -> Tensor:
        return features.sum(1)
