"""A trajectory from a starting state to the image latent: sampling, inversion and the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from sgool.errors import NotRepeatable, SgoolError
from sgool.samplers import ddim
from sgool.samplers.double_double import DoubleDouble, exact
from sgool.samplers.network import Network
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.shear import OnStep, adjoint, pull, rewind, run
from sgool.samplers.stored import Stored

DRIFT = 1e-4
"""The largest allowed error of the recovered starting state, relative to the root mean square of the true one."""

WAYS_BACK = ("full", "prompt")


@dataclass(frozen=True)
class Final:
    """The result of `run`, which `adjoint` needs: the state at node T as double-doubles, and the starting state.

    inputs: what each operation read, where that was stored; then nothing has to be recovered.
    """

    latents: list[DoubleDouble]
    start: list[Tensor]
    inputs: list[Tensor] | None = None

    def sample(self, i: int) -> Final:
        """The result of one sample of the batch."""
        latents = [DoubleDouble(_sample(high, i), _sample(low, i)) for high, low in self.latents]
        inputs = None if self.inputs is None else [_sample(x, i) for x in self.inputs]
        return Final(latents, [_sample(x, i) for x in self.start], inputs)


class Trajectory:
    """A sampler on a schedule, from `start_node` (0 is pure noise) to the image at node T.

    A starting state is a list of float64 latents [B, 4, h, w]. `initial` and `from_noise` give one latent. `invert`
    gives the sampler's whole state: two latents for BDIA, O-BELM and EDICT, one for DDIM. `run` takes either kind.

    noises: unit Gaussian noise [B or 1, 4, h, w] between the steps, as many as `sampler.noises` says. They stay the
    same in every `run`. way_back: what the gradient goes through. "full": the whole prediction. "prompt": the prompt's
    half alone, with all latents stored. Raises SgoolError unless 0 <= start_node < T, and for other noises.
    """

    def __init__(
        self,
        sampler: Sampler,
        schedule: Schedule,
        network: Network,
        start_node: int = 0,
        noises: Sequence[Tensor] = (),
        way_back: str = "full",
    ) -> None:
        if not 0 <= start_node < schedule.steps:
            raise SgoolError(f"The start node must lie between 0 and {schedule.steps - 1}, not {start_node}.")
        if len(noises) != (needed := sampler.noises(schedule)):
            raise SgoolError(f"The sampler {sampler.name} needs {needed} noises for these steps, not {len(noises)}.")
        if way_back not in WAYS_BACK:
            raise SgoolError(f"The way back must be one of {', '.join(WAYS_BACK)}, not {way_back!r}.")
        self.sampler = sampler
        self.schedule = schedule
        self.network = network
        self.start_node = start_node
        self.way_back = way_back
        self.noises = [_latent(noise) for noise in noises]
        self._weights = sampler.weights(schedule, start_node)
        self._image = sampler.image_index(schedule, start_node)

    def with_noises(self, noises: Sequence[Tensor]) -> Trajectory:
        """The same with other noises between the steps, as many."""
        other = copy(self)
        other.noises = [_latent(noise) for noise in noises]
        return other

    def sample(self, i: int) -> Trajectory:
        """The trajectory of one sample of a batch, with its own noises between the steps."""
        return self.with_noises([_sample(noise, i) for noise in self.noises])

    def initial(self, latent: Tensor) -> list[Tensor]:
        """The starting state from one latent at the start node. At node 0 this is unit Gaussian noise."""
        return [_latent(latent)]

    def from_noise(self, noise: Tensor, on_step: OnStep | None = None) -> list[Tensor]:
        """The starting state from unit Gaussian noise. Plain DDIM samples from node 0 to the start node, or a sampler
        with stored latents does itself.

        No gradient goes through these first steps, so they need no reversible sampler.
        """
        sampler = self.sampler if isinstance(self.sampler, Stored) else ddim.sampler()
        x = _latent(noise) * (self.schedule.sigma[0] if sampler.sigma_start else 1.0)
        for i in range(self.start_node):
            keep, c, added = sampler.step(self.schedule, i)
            x = keep * x + c * self.network(x, self.schedule.timesteps[i])
            if added:
                x = x + added * self.noises[i]
            if on_step:
                on_step(i + 1, self.schedule.steps)
        return [x]

    def invert(self, image: Tensor, on_step: OnStep | None = None) -> list[Tensor]:
        """The starting state from which `run` reproduces this latent at node T.

        With `sampler.exact_inverse` the reproduction is exact up to rounding. DDIM solves each step by fixed-point
        iteration and is only approximate. The state is close to the prior only if the sampler damps little (O-BELM,
        BDIA with gamma = 1, EDICT with p = 0.93). Raises SgoolError for a sampler that draws noise between its steps,
        and if the start node is fewer than `sampler.shortest` steps before node T.
        """
        if self.schedule.steps - self.start_node < self.sampler.shortest:
            raise SgoolError(f"{self.sampler.name} needs at least {self.sampler.shortest} steps to invert an image.")
        closing = self.sampler.closing(_latent(image), self.schedule, self.network, self.start_node)
        ops = self.sampler.operations(self.schedule, self.start_node, whole=True)
        words = rewind(ops, [exact(x) for x in closing], self.network, self.schedule, on_step)
        state = [word.high for word in words]
        return state if self.sampler.exact_inverse else self._single(state)

    def run(self, state: Sequence[Tensor], on_step: OnStep | None = None, store: bool = False) -> Final:
        """Sample from the starting state to node T. on_step(done, total) is called after every operation.

        store: keep what each operation reads, as for the way back "prompt". The gradient of one `sample` of a batch
        needs it: alone a sample is predicted with other rounding, from which its latents could not be recovered.
        """
        whole = list(state) if len(state) > 1 else [weight * state[0] for weight in self._weights]
        whole += self.noises[self.start_node :]
        ops = self.sampler.operations(self.schedule, self.start_node, len(state) > 1)
        stored = store or self.way_back == "prompt" or not self.network.repeats
        inputs: list[Tensor] | None = [] if stored else None
        words = run(ops, [exact(x) for x in whole], self.network, self.schedule, on_step, inputs)
        return Final(words, list(state), inputs)

    def image(self, final: Final) -> Tensor:
        """The latent at node T, float64."""
        return final.latents[self._image].high

    def noise(self, final: Final) -> Tensor | None:
        """The unit Gaussian noise that a run has come from; None where it began later, or from an image."""
        if self.start_node or len(final.start) > 1:
            return None
        return final.start[0] / (self.schedule.sigma[0] if self.sampler.sigma_start else 1.0)

    def adjoint(
        self, final: Final, cotangent: Tensor, on_step: OnStep | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Pull the gradient of a loss with respect to `image(final)` back to the starting state.

        Returns (recovered starting state, its gradients), two lists like the state given to `run`. Raises NotRepeatable
        if the recovered state differs from the state given to `run`. The network then gave other predictions for the
        same latents in the backward pass (a nondeterministic kernel), and the gradient would be wrong.
        """
        cotangents = [torch.zeros_like(word.high) for word in final.latents]
        cotangents[self._image] = cotangent.detach().double()
        whole = len(final.start) > 1
        ops = self.sampler.operations(self.schedule, self.start_node, whole)
        if final.inputs is not None:
            gradients = pull(ops, final.inputs, cotangents, self._product, self.schedule, on_step)
            return final.start, gradients if whole else [self._gathered(gradients)]
        words, gradients = adjoint(ops, final.latents, cotangents, self.network, self.schedule, on_step)
        state = [word.high for word in words]
        if not whole:
            state, gradients = self._single(state), [self._gathered(gradients)]
        for recovered, true in zip(state, final.start, strict=True):
            if not (recovered - true).abs().max() <= DRIFT * true.square().mean().sqrt():
                raise NotRepeatable(
                    "The network does not repeat its predictions exactly, which a reversible sampler needs; use the "
                    "sampler 'ddim', which stores its latents."
                )
        return state, gradients

    def _product(self, x: Tensor, t: float, cotangent: Tensor) -> Tensor:
        if self.way_back == "prompt":
            return self.network.prompt_vjp(x, t, cotangent)
        return self.network.vjp(x, t, cotangent)[1]

    def _gathered(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient of the one latent that the state began with; kept noises are constants."""
        used = gradients[: len(self._weights)]
        return torch.stack([weight * g for weight, g in zip(self._weights, used, strict=True)]).sum(0)

    def _single(self, state: list[Tensor]) -> list[Tensor]:
        return [state[self._weights.index(1.0)]]


def _sample(x: Tensor, i: int) -> Tensor:
    # A copy, because a part of the batch would keep all of it in memory. What is the same for all samples stays.
    return x[i : i + 1].clone() if x.ndim and len(x) > 1 else x


def _latent(x: Tensor) -> Tensor:
    # A copy, because the caller keeps its tensor and a host may pass a tensor from inference mode.
    return x.detach().to(torch.float64, copy=True)
