"""EDICT: exact inversion by coupled transformations (Wallace, Gokul, Naik, arXiv 2211.12446)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sgool.errors import SgoolError
from sgool.samplers import ddim
from sgool.samplers.network import Network
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.shear import Shear


@dataclass(frozen=True)
class Edict(Sampler):
    """Two copies (x, y) of the latent. Each steps with the other's eps, then both are mixed. The image is x = s[0]."""

    p: float
    name: str = "edict"
    order: int = 1
    evals_per_step: ClassVar[int] = 2

    def operations(self, schedule: Schedule, start: int, whole: bool = False) -> list[Shear]:
        ops = []
        for i in range(start, schedule.steps):
            keep, c = ddim.step(schedule, i, i + 1)
            first, second = i % 2, (i + 1) % 2  # The copies take turns to go first, so neither drifts.
            ops += [Shear(first, second, keep, 0.0, c, i), Shear(second, first, keep, 0.0, c, i)]
            ops += [Shear(0, 1, self.p, 1 - self.p), Shear(1, 0, self.p, 1 - self.p)]
        return ops

    def weights(self, schedule: Schedule, start: int) -> tuple[float, ...]:
        return (1.0, 1.0)

    def image_index(self, schedule: Schedule, start: int) -> int:
        return 0

    def closing(self, image: Tensor, schedule: Schedule, network: Network, start: int) -> list[Tensor]:
        return [image, image]


def sampler(p: float = 0.93) -> Sampler:
    """EDICT with mixing weight 0 < p <= 1 (0.93 in the paper). A smaller p damps more but costs precision.

    Raises SgoolError for any other p.
    """
    if not 0 < p <= 1:
        raise SgoolError(f"EDICT's mixing weight must be above 0 and at most 1, not {p}.")
    return Edict(p)
