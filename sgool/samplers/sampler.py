"""What a sampler has to say about itself; everything else is shears."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sgool.errors import SgoolError
from sgool.samplers.network import Network
from sgool.samplers.schedule import Schedule
from sgool.samplers.shear import Shear


class Sampler(ABC):
    """A table of coefficients: name, order of accuracy in the step size, evaluations of eps per step, and the shears.

    A trajectory begins at a node `start` either with one latent (noise) or with a whole state (an image carried back).
    exact_inverse: whether the image start reproduces the image to rounding. shortest: fewest steps it can go back.
    """

    name: str
    order: int
    evals_per_step: ClassVar[int] = 1
    exact_inverse: ClassVar[bool] = True
    shortest: ClassVar[int] = 1

    @abstractmethod
    def operations(self, schedule: Schedule, start: int, whole: bool = False) -> list[Shear]:
        """The shears from node `start` to node T; `whole` when a whole state is given instead of one latent."""

    @abstractmethod
    def weights(self, schedule: Schedule, start: int) -> tuple[float, ...]:
        """One latent x at node `start` becomes the state s[i] = weights[i] * x."""

    @abstractmethod
    def image_index(self, schedule: Schedule, start: int) -> int:
        """Which entry of the final state is the latent at node T."""

    @abstractmethod
    def closing(self, image: Tensor, schedule: Schedule, network: Network, start: int) -> list[Tensor]:
        """A final state whose image is the given latent at node T: where the way back to node `start` begins."""

    def start_node(self, schedule: Schedule, strength: float) -> int:
        """The node that lies T * strength steps (rounded, at least `shortest`) before the image, 0 < strength <= 1."""
        if not 0 < strength <= 1:
            raise SgoolError(f"The strength must be above 0 and at most 1, not {strength}.")
        return schedule.steps - max(self.shortest, int(schedule.steps * strength + 0.5))
