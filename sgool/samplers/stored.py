"""What all samplers with stored latents share: one latent for each node, and kept noises.

A step of these samplers is x_{i+1} = keep * x_i + c * eps(x_i, t_i) + noise * z_i, which is no shear on a pair of
latents. Here the state has one entry for each node, and each step is a shear that overwrites the next entry. The state
therefore stores all latents (50 latents of 4 x 64 x 64 take 6.5 MB), and the adjoint reads them backwards.

The noises z_i of a random sampler are drawn once for a run and kept. Sampling is then a map that can be repeated and
differentiated, as for any other sampler. Each z_i is one more latent of the state, and a second shear adds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sgool.errors import SgoolError
from sgool.samplers.network import Network
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.shear import Shear

Step = Callable[[Schedule, int], tuple[float, float, float]]
"""(keep, c, noise) of step i -> i + 1."""


@dataclass(frozen=True)
class Stored(Sampler):
    """A sampler of single steps. step: see `Step`.

    random: whether its steps need noises; then it has no inverse. clean, sigma_start: see `Sampler`.
    """

    name: str
    step: Step
    spacing: str = "trailing"
    clean: bool = False
    sigma_start: bool = False
    random: bool = False
    order: int = 1
    exact_inverse: ClassVar[bool] = False

    @property
    def invertible(self) -> bool:
        return not self.random

    def operations(self, schedule: Schedule, start: int, whole: bool = False) -> list[Shear]:
        ops = []
        for entry, i in enumerate(range(start, schedule.steps)):
            keep, c, noise = self.step(schedule, i)
            ops.append(Shear(entry + 1, entry, 0.0, keep, c, i))
            if noise:
                kept = schedule.steps - start + 1 + entry  # behind the latents of the nodes
                ops.append(Shear(entry + 1, kept, 1.0, noise))
        return ops

    def noises(self, schedule: Schedule) -> int:
        return sum(1 for i in range(schedule.steps) if self.step(schedule, i)[2])

    def weights(self, schedule: Schedule, start: int) -> tuple[float, ...]:
        return (1.0,) + (0.0,) * (schedule.steps - start)

    def image_index(self, schedule: Schedule, start: int) -> int:
        return schedule.steps - start

    def closing(self, image: Tensor, schedule: Schedule, network: Network, start: int) -> list[Tensor]:
        raise SgoolError(
            f"The sampler {self.name} draws noise between its steps, so it cannot carry an image back: start from an "
            "image with o-belm or ddim."
        )
