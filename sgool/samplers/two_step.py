"""What BDIA and O-BELM share: a state of two latents at neighboring nodes. Each step overwrites the older latent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sgool.samplers import ddim
from sgool.samplers.network import Network
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.shear import Shear


@dataclass(frozen=True)
class TwoStep(Sampler):
    """x_{i+1} = alpha * x_{i-1} + beta * x_i + c * eps(x_i, t_i). The latent at node i is s[i % 2].

    From one latent, the first step is a DDIM step that overwrites the other entry. A whole state holds the latents at
    nodes start and start + 1.
    """

    name: str
    order: int
    coefficients: Callable[[Schedule, int], tuple[float, float, float]]
    shortest: ClassVar[int] = 2

    def operations(self, schedule: Schedule, start: int, whole: bool = False) -> list[Shear]:
        first = (0.0, *ddim.step(schedule, start, start + 1))
        ops = [] if whole else [Shear((start + 1) % 2, start % 2, *first, start)]
        for i in range(start + 1, schedule.steps):
            ops.append(Shear((i + 1) % 2, i % 2, *self.coefficients(schedule, i), i))
        return ops

    def weights(self, schedule: Schedule, start: int) -> tuple[float, ...]:
        return (1.0, 0.0) if start % 2 == 0 else (0.0, 1.0)

    def image_index(self, schedule: Schedule, start: int) -> int:
        return schedule.steps % 2

    def closing(self, image: Tensor, schedule: Schedule, network: Network, start: int) -> list[Tensor]:
        # A DDIM step from this neighbor gives the image, so the inversion begins with a DDIM inversion step.
        neighbor = ddim.invert_step(image, schedule.steps - 1, schedule, network)
        return [image, neighbor] if schedule.steps % 2 == 0 else [neighbor, image]
