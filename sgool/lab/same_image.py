"""Improving this very image, as methods of ``compare``: SGOOL from the image, and the best of its img2img variations.

"improved-S" and "varied-S" both change a plain image with the strength S, for the same budget. What they gain is held
against how far the image has moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from sgool import pictures
from sgool.backends.diffusers import DiffusersBackend
from sgool.checks import SEEDS
from sgool.cost import halves
from sgool.generate import CANDIDATE_STRIDE, Critics, Request, generate
from sgool.samplers import Trajectory, get_sampler
from sgool.settings import Settings

STRENGTHS = (0.3, 0.5, 0.8)

CHANGES = tuple(f"{how}-{strength}" for strength in STRENGTHS for how in ("varied", "improved"))
"""The methods."""


@dataclass(frozen=True)
class Changed:
    """An image that was changed, and the forward equivalents the change cost.

    similarity: to the image as it was, see `structural_similarity`. distance: 1 less the cosine of the selector's
    embeddings.
    """

    image: Tensor
    equivalents: int
    similarity: float
    distance: float


def changed(
    backend: DiffusersBackend, critics: Critics, request: Request, plain: Settings, method: str, budget: int
) -> Changed:
    """Make a plain image, and change it by a method of `CHANGES` within a budget of forward equivalents."""
    how, _, share = method.partition("-")
    first = generate(backend, critics, request, plain).first
    change = _improved if how == "improved" else _varied
    latent = first.latent.to(backend.device)
    begun = Request(request.prompt, request.negative_prompt, request.seed, latent)
    image, equivalents = change(backend, critics, begun, plain.changed(strength=float(share)), budget)
    return Changed(
        image,
        equivalents,
        structural_similarity(pictures.to_uint8(first.image), pictures.to_uint8(image)),
        1 - float(critics.selector.encode_image(first.image)[0] @ critics.selector.encode_image(image)[0]),
    )


def _improved(
    backend: DiffusersBackend, critics: Critics, request: Request, settings: Settings, budget: int
) -> tuple[Tensor, int]:
    """SGOOL from the image: it is carried back and rendered again, and each update costs three such runs.

    O-BELM steps from two latents to the next, and an image that was carried back is two: one step needs no evaluation.
    Up to eight more find the second one at its end.
    """
    network = halves(settings)
    share = network * (max(2, round(settings.strength * settings.steps)) - 1)
    beside = 2 * share + 8 * network
    own = settings.changed(
        method="sgool",
        start="image",
        sampler="auto",
        steps=max(2, settings.steps),
        iterations=max(0, (budget - beside) // (3 * share)),
        patience=0,
    )
    result = generate(backend, critics, request, own)
    return result.best.image, result.forward_equivalents


@torch.no_grad()
def _varied(
    backend: DiffusersBackend, critics: Critics, request: Request, settings: Settings, budget: int
) -> tuple[Tensor, int]:
    """The best of the variations by guide and selector together, or the image where the selector prefers it."""
    assert request.init_latent is not None
    latent = request.init_latent
    sampler = get_sampler(settings.sampler if settings.sampler != "auto" else "ddim")
    schedule = sampler.schedule(backend.alphas_cumprod, settings.steps)
    network = backend.network(request.prompt, request.negative_prompt, settings.guidance_scale)
    trajectory = Trajectory(sampler, schedule, network, sampler.start_node(schedule, settings.strength))
    node = trajectory.start_node
    made = [backend.decode(latent.float()).clamp(0, 1)]
    for number in range(max(1, budget // (halves(settings) * (schedule.steps - node)))):
        noise = backend.noise((request.seed + CANDIDATE_STRIDE * (number + 1)) % SEEDS)
        noisy = schedule.a[node] * latent + schedule.sigma[node] * noise
        final = trajectory.run(trajectory.initial(noisy))
        made.append(backend.decode(trajectory.image(final).float()).clamp(0, 1))
    scores = [critics.selector.judge(image, request.prompt) for image in made]
    sums = [score + critics.guide.judge(image, request.prompt) for score, image in zip(scores, made, strict=True)]
    best = int(np.argmax(sums[1:])) + 1
    return made[best if scores[best] > scores[0] else 0], network.evals_forward


def structural_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """SSIM (Wang et al. 2004) of two pictures, uint8 RGB [H, W, 3], on their luma: 1 for the same picture."""
    x, y = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float64) for picture in (one, other))

    def smooth(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    both = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ratio = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(ratio.mean())
