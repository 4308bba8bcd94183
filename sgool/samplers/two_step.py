"""What BDIA and O-BELM share: two latents of neighboring nodes, the older of which is written over."""

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
    """x_{i+1} = alpha * x_{i-1} + beta * x_i + c * eps(x_i, t_i); the latent of node i lives in s[i % 2].

    From one latent the first step is DDIM's, which drops whatever the other entry held. A whole state is the pair of
    nodes (start, start + 1).
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
        # With a neighbor whose DDIM step is exactly the image, the first step back is a DDIM inversion step.
        neighbor = ddim.invert_step(image, schedule.steps - 1, schedule, network)
        return [image, neighbor] if schedule.steps % 2 == 0 else [neighbor, image]
