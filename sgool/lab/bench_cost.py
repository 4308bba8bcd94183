"""What one update costs, as a multiple of one image."""

from __future__ import annotations

import statistics
import time
from typing import Any

from torch import Tensor

from sgool.backends import Backend
from sgool.samplers import Trajectory, get_sampler

KINDS = (
    ("euler", 1.0, "full"),
    ("bdia", 4.0, "full"),
    ("bdia", 4.0, "prompt"),
)
"""Sampler, guidance scale and way back: of models for few steps, and with guidance."""


def update_cost(
    backend: Backend, prompt: str, kind: tuple[str, float, str], steps: int, repeats: int = 5
) -> dict[str, Any]:
    """The network's part of one update: the image's latent, the way back, and the next image's latent.

    equivalents, image_equivalents: forward evaluations, where one with a gradient counts as two; counted. seconds: the
    medians' ratio; image and update take turns.
    """
    name, scale, way_back = kind
    sampler = get_sampler(name)
    schedule = sampler.schedule(backend.alphas_cumprod, steps)
    network = backend.network(prompt, "", scale)
    trajectory = Trajectory(sampler, schedule, network, 0, way_back=way_back)
    start = trajectory.from_noise(backend.noise(0))

    def image() -> tuple[float, Any]:
        begun = time.perf_counter()
        final = trajectory.run(start)
        _wait(trajectory.image(final))
        return time.perf_counter() - begun, final

    def update(final: Any) -> float:
        begun = time.perf_counter()
        state, gradients = trajectory.adjoint(final, trajectory.image(final))
        moved = [x - 1e-3 * gradient for x, gradient in zip(state, gradients, strict=True)]
        _wait(trajectory.image(trajectory.run(moved)))
        return time.perf_counter() - begun

    def equivalents() -> int:
        return network.evals_forward + 2 * network.evals_backward

    _, final = image()
    one = equivalents()
    update(final)
    own = equivalents() - one
    times = [(image()[0], update(final)) for _ in range(repeats)]
    seconds_image, seconds_update = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "sampler": name,
        "steps": steps,
        "guidance_scale": scale,
        "way_back": way_back,
        "image_equivalents": one,
        "update_equivalents": own,
        "update_in_images": own / one,
        "update_in_images_by_seconds": seconds_update / seconds_image,
    }


def _wait(latent: Tensor) -> None:
    latent.sum().item()  # waits for the device
