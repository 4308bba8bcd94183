"""What a sampler defines. The shears do everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sgool.errors import SgoolError
from sgool.samplers.network import Network
from sgool.samplers.schedule import Schedule, make_schedule
from sgool.samplers.shear import Shear


class Sampler(ABC):
    """A sampler: its name, order of accuracy in the step size, evaluations of eps per step, and shears.

    A trajectory begins at node `start`, either with one latent (from noise) or with a whole state (from an inverted
    image). exact_inverse: whether sampling from an inverted image reproduces the image up to rounding. invertible:
    whether there is an inverse at all. shortest: the fewest steps of an inversion.

    spacing, clean: its timesteps and its last node, see `make_schedule`. sigma_start: whether it begins with sigma_0
    times the seed's noise, else with that noise.
    """

    name: str
    order: int
    evals_per_step: ClassVar[int] = 1
    exact_inverse: ClassVar[bool] = True
    shortest: ClassVar[int] = 1
    spacing: str = "leading"
    clean: bool = False
    sigma_start: bool = False

    @property
    def invertible(self) -> bool:
        return True

    def schedule(self, alphas_cumprod: Tensor, steps: int) -> Schedule:
        """The schedule of so many steps that this sampler wants. Raises SgoolError like `make_schedule`."""
        return make_schedule(alphas_cumprod, steps, self.spacing, self.clean)

    def noises(self, schedule: Schedule) -> int:
        """How many kept noises it needs: none, or one after every step that adds noise, which are the first ones."""
        return 0

    @abstractmethod
    def operations(self, schedule: Schedule, start: int, whole: bool = False) -> list[Shear]:
        """The shears from node `start` to node T. whole: the trajectory begins with a whole state, not one latent."""

    @abstractmethod
    def weights(self, schedule: Schedule, start: int) -> tuple[float, ...]:
        """One latent x at node `start` becomes the state s[i] = weights[i] * x."""

    @abstractmethod
    def image_index(self, schedule: Schedule, start: int) -> int:
        """Which entry of the final state is the latent at node T."""

    @abstractmethod
    def closing(self, image: Tensor, schedule: Schedule, network: Network, start: int) -> list[Tensor]:
        """A final state with the given image latent at node T. Inversion to node `start` begins with this state."""

    def start_node(self, schedule: Schedule, strength: float) -> int:
        """The node T * strength steps before the image (rounded, at least `shortest` steps).

        Raises SgoolError unless 0 < strength <= 1.
        """
        if not 0 < strength <= 1:
            raise SgoolError(f"The strength must be above 0 and at most 1, not {strength}.")
        return schedule.steps - max(self.shortest, int(schedule.steps * strength + 0.5))
