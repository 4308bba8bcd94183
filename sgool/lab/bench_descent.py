"""Measures how far the gradient of the loss can be trusted: how a step of a given length changes the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sgool.backends import Backend
from sgool.guidance.clip import Clip
from sgool.guidance.critic import spherical_distance
from sgool.samplers import Trajectory, get_sampler, make_schedule

RATES = (0.003, 0.01, 0.03, 0.1)
"""Step lengths, as a share of the starting noise's root mean square. The default learning rate is 0.05."""


def descent(backend: Backend, clip: Clip, captions: Sequence[str], scale: float, steps: int = 6) -> dict[str, Any]:
    """The mean change of CLIP's distance after one step from each caption's noise (the i-th from seed i).

    scale: the guidance scale. gradient: the changes by steps of `RATES` against the gradient. random: the changes by
    steps of the same lengths in a random direction. lowered: the share of gradient steps that lower the loss.
    """
    network = backend.network(captions, "", scale)
    trajectory = Trajectory(get_sampler("bdia"), make_schedule(backend.alphas_cumprod, steps), network)
    noise = torch.cat([backend.noise(seed) for seed in range(len(captions))])
    texts = torch.stack([clip.encode_text(caption) for caption in captions])

    def distances(latent: Tensor) -> Tensor:
        return spherical_distance(clip.encode_image(backend.decode(latent).clamp(0, 1)), texts)

    @torch.no_grad()
    def changes(direction: Tensor) -> Tensor:
        """[rates, captions]"""
        moved = [noise - rate * direction / _rms(direction) for rate in RATES]
        moved = [x * _rms(noise) / _rms(x) for x in moved]
        return torch.stack([distances(trajectory.image(trajectory.run([x])).float()) for x in moved]) - first

    final = trajectory.run([noise])
    latent = trajectory.image(final).float().requires_grad_()
    values = distances(latent)
    (cotangent,) = torch.autograd.grad(values.sum(), latent)
    first = values.detach()
    along = changes(trajectory.adjoint(final, cotangent)[1][0])
    generator = torch.Generator().manual_seed(0)
    random = changes(torch.randn(noise.shape, generator=generator, dtype=noise.dtype).to(noise))
    return {
        "guidance_scale": scale,
        "loss": first.mean().item(),
        "rates": list(RATES),
        "gradient": along.mean(1).tolist(),
        "random": random.mean(1).tolist(),
        "lowered": (along < 0).float().mean(1).tolist(),
    }


def _rms(x: Tensor) -> Tensor:
    return x.square().mean((-3, -2, -1), keepdim=True).sqrt()
