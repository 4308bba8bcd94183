"""DDIM (Song, Meng, Ermon, arXiv 2010.02502, eq. 12 with eta = 0): the reference sampler.

DDIM is not a shear on a pair of latents, so it has no exact inverse. Here the state has one entry per node, and each
step is a shear that overwrites the next entry. The state therefore stores all latents (50 latents of 4 x 64 x 64 take
6.5 MB), and the adjoint reads them backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sgool.samplers.network import Network
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.shear import Shear


def step(schedule: Schedule, i: int, to: int) -> tuple[float, float]:
    """(A, C) of the DDIM step x_to = A * x_i + C * eps(x_i, t_i), in either direction."""
    return schedule.a[to] / schedule.a[i], schedule.a[to] * (schedule.nu(to) - schedule.nu(i))


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
class Ddim(Sampler):
    name: str = "ddim"
    order: int = 1
    exact_inverse: ClassVar[bool] = False

    def operations(self, schedule: Schedule, start: int, whole: bool = False) -> list[Shear]:
        nodes = range(start, schedule.steps)
        return [Shear(i + 1 - start, i - start, 0.0, *step(schedule, i, i + 1), i) for i in nodes]

    def weights(self, schedule: Schedule, start: int) -> tuple[float, ...]:
        return (1.0,) + (0.0,) * (schedule.steps - start)

    def image_index(self, schedule: Schedule, start: int) -> int:
        return schedule.steps - start

    def closing(self, image: Tensor, schedule: Schedule, network: Network, start: int) -> list[Tensor]:
        latents = [image]
        for i in reversed(range(start, schedule.steps)):
            latents.insert(0, invert_step(latents[0], i, schedule, network))
        return latents


def sampler() -> Sampler:
    """Plain DDIM, first order. Its inversion (`invert_step` at every step) is only approximate."""
    return Ddim()
