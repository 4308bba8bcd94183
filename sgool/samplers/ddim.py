"""DDIM (Song, Meng, Ermon, arXiv 2010.02502, eq. 12 with eta = 0): the reference sampler. It has no exact inverse."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sgool.samplers.network import Network
from sgool.samplers.schedule import Schedule
from sgool.samplers.stored import Step, Stored


def step(schedule: Schedule, i: int, to: int) -> tuple[float, float]:
    """(A, C) of the DDIM step x_to = A * x_i + C * eps(x_i, t_i), in either direction."""
    return schedule.a[to] / schedule.a[i], schedule.a[to] * (schedule.nu(to) - schedule.nu(i))


def _single(schedule: Schedule, i: int) -> tuple[float, float, float]:
    return (*step(schedule, i, i + 1), 0.0)


def invert_step(x: Tensor, i: int, schedule: Schedule, network: Network, iterations: int = 8) -> Tensor:
    """The latent at node i whose DDIM step gives x at node i + 1.

    Solves x_i = (x - C * eps(x_i, t_i)) / A by fixed-point iteration (AIDI, arXiv 2309.04907). The first iterate, from
    eps(x, t_i), is the usual approximate DDIM inversion. Stops after `iterations` evaluations, at a relative change
    below 1e-7, or when the iteration no longer contracts (a high guidance scale on a long step).
    """
    keep, c = step(schedule, i, i + 1)
    solution, last_change = x, float("inf")
    for count in range(iterations):
        candidate = (x - c * network(solution, schedule.timesteps[i])) / keep
        change = float((candidate - solution).norm() / x.norm().clamp_min(1e-30))
        if count > 1 and change > last_change:
            break
        solution, last_change = candidate, change
        if change < 1e-7:
            break
    return solution


@dataclass(frozen=True)
class Ddim(Stored):
    """A sampler of DDIM's steps, on any timesteps and with either end."""

    name: str = "ddim"
    step: Step = _single
    spacing: str = "leading"

    def closing(self, image: Tensor, schedule: Schedule, network: Network, start: int) -> list[Tensor]:
        latents = [image]
        for i in reversed(range(start, schedule.steps)):
            latents.insert(0, invert_step(latents[0], i, schedule, network))
        return latents


def sampler() -> Ddim:
    """Plain DDIM, first order. Its inversion (`invert_step` at every step) is only approximate."""
    return Ddim()


def trailing() -> Ddim:
    """DDIM on trailing timesteps, which models distilled to few steps want (Hyper-SD, PCM)."""
    return Ddim("ddim-trailing", spacing="trailing")
