"""One way from a starting state to the image latent: run it, and pull a gradient back along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgool.errors import NotRepeatable, SgoolError
from sgool.samplers import ddim
from sgool.samplers.double_double import DoubleDouble, exact
from sgool.samplers.network import Network
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.shear import OnStep, adjoint, rewind, run

DRIFT = 1e-4
"""How far the recovered starting state may be from the true one, as a share of its root mean square."""


@dataclass(frozen=True)
class Final:
    """What `run` leaves and `adjoint` needs: the state at node T, in two words, and the state that run was given."""

    latents: list[DoubleDouble]
    start: list[Tensor]


class Trajectory:
    """A sampler on a schedule, from `start_node` (0 is pure noise) to the image at node T.

    A starting state is a list of float64 latents [B, 4, h, w]: one of them (`initial`, `from_noise`) or, carried back
    from an image, the sampler's whole state (`invert`: two for BDIA, O-BELM and EDICT, one for DDIM). Both kinds can be
    run.
    """

    def __init__(self, sampler: Sampler, schedule: Schedule, network: Network, start_node: int = 0) -> None:
        if not 0 <= start_node < schedule.steps:
            raise SgoolError(f"The start node must lie between 0 and {schedule.steps - 1}, not {start_node}.")
        self.sampler = sampler
        self.schedule = schedule
        self.network = network
        self.start_node = start_node
        self._weights = sampler.weights(schedule, start_node)
        self._image = sampler.image_index(schedule, start_node)

    def initial(self, latent: Tensor) -> list[Tensor]:
        """The starting state of one latent at the start node (at node 0: unit Gaussian noise)."""
        return [_latent(latent)]

    def from_noise(self, noise: Tensor, on_step: OnStep | None = None) -> list[Tensor]:
        """The starting state that unit Gaussian noise comes to when plain DDIM carries it to the start node.

        No gradient goes back through these first steps, so they need no reversible sampler.
        """
        x = _latent(noise)
        for i in range(self.start_node):
            keep, c = ddim.step(self.schedule, i, i + 1)
            x = keep * x + c * self.network(x, self.schedule.timesteps[i])
            if on_step:
                on_step(i + 1, self.schedule.steps)
        return [x]

    def invert(self, image: Tensor, on_step: OnStep | None = None) -> list[Tensor]:
        """The starting state from which `run` gives this latent (taken as the latent at node T) again.

        To rounding where `sampler.exact_inverse`; DDIM solves each step by fixed-point iteration and comes only close.
        The state is near the prior only if the sampler damps little (O-BELM, BDIA with gamma = 1, EDICT with p = 0.93).
        Raises SgoolError when the start node is fewer than `sampler.shortest` steps away.
        """
        if self.schedule.steps - self.start_node < self.sampler.shortest:
            raise SgoolError(f"{self.sampler.name} needs at least {self.sampler.shortest} steps from an image.")
        closing = self.sampler.closing(_latent(image), self.schedule, self.network, self.start_node)
        ops = self.sampler.operations(self.schedule, self.start_node, whole=True)
        words = rewind(ops, [exact(x) for x in closing], self.network, self.schedule, on_step)
        state = [word.high for word in words]
        return state if self.sampler.exact_inverse else self._single(state)

    def run(self, state: Sequence[Tensor], on_step: OnStep | None = None) -> Final:
        """From the starting state to node T. on_step(done, total) is called after every operation."""
        whole = list(state) if len(state) > 1 else [weight * state[0] for weight in self._weights]
        ops = self.sampler.operations(self.schedule, self.start_node, len(state) > 1)
        words = run(ops, [exact(x) for x in whole], self.network, self.schedule, on_step)
        return Final(words, list(state))

    def image(self, final: Final) -> Tensor:
        """The latent at node T, float64."""
        return final.latents[self._image].high

    def adjoint(
        self, final: Final, cotangent: Tensor, on_step: OnStep | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """From the gradient of a loss with respect to `image(final)` to that with respect to the starting state.

        Returns (the starting state, recovered on the way; its gradients), lists like the state given to `run`.
        Raises NotRepeatable when what is recovered is not where `run` began: on the way back the network gave other
        predictions for the same latents (a kernel that is not deterministic), and the gradient would be wrong.
        """
        cotangents = [torch.zeros_like(word.high) for word in final.latents]
        cotangents[self._image] = cotangent.detach().double()
        whole = len(final.start) > 1
        ops = self.sampler.operations(self.schedule, self.start_node, whole)
        words, gradients = adjoint(ops, final.latents, cotangents, self.network, self.schedule, on_step)
        state = [word.high for word in words]
        if not whole:
            total = torch.stack([weight * g for weight, g in zip(self._weights, gradients, strict=True)]).sum(0)
            state, gradients = self._single(state), [total]
        for recovered, true in zip(state, final.start, strict=True):
            if not (recovered - true).abs().max() <= DRIFT * true.square().mean().sqrt():
                raise NotRepeatable(
                    "The network does not repeat its predictions exactly, as a reversible sampler needs it; the "
                    "sampler 'ddim' does without."
                )
        return state, gradients

    def _single(self, state: list[Tensor]) -> list[Tensor]:
        return [state[self._weights.index(1.0)]]


def _latent(x: Tensor) -> Tensor:
    # A copy, also because a host may hand over tensors made under inference mode.
    return x.detach().to(torch.float64, copy=True)
