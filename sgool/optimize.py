"""The optimization loop, which keeps the best image. One iteration:

1. run the reversible sampler from the starting state to the image latent
2. decode the latent; every few iterations run the saliency detector
3. compute the loss on the whole image and the salient crops, and its gradient with respect to the image latent
4. pull the gradient back through every sampling step; one network evaluation at a time has a graph in memory
5. move the starting state against the gradient, and keep it close to the prior
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sgool.backends import Backend
from sgool.errors import SgoolError, out_of_memory
from sgool.groups import in_groups
from sgool.guidance.blend import favorite
from sgool.guidance.critic import Critic
from sgool.guidance.loss import SaliencyLoss, gradient_of
from sgool.region import Region
from sgool.result import TRIED, Ending, Progress, Result, Snapshot, Stop
from sgool.saliency import SaliencyFunction
from sgool.samplers import Final, OnStep, Trajectory
from sgool.update import Update

Start = Callable[[Sequence[int]], tuple[Trajectory, list[Tensor]]]
"""Of some candidates, by their numbers: their trajectory and its starting state, with a sample for each of them."""


@dataclass(frozen=True)
class Regions:
    """Where the crops come from.

    detect: the saliency detector. find: turns a saliency map into regions. refresh: the detector runs every `refresh`
    iterations. complete: given the image and these regions, returns those that count.
    """

    detect: SaliencyFunction
    find: Callable[[Tensor], Sequence[Region]]
    refresh: int = 3
    complete: Callable[[Tensor, Sequence[Region]], Sequence[Region]] | None = None

    def look(self, image: Tensor) -> tuple[Tensor, tuple[Region, ...]]:
        """The saliency map [H, W] and the regions of an image [1, 3, H, W]."""
        saliency = self.detect(image)
        found = self.find(saliency)
        return saliency, tuple(self.complete(image, found) if self.complete else found)


@dataclass(frozen=True)
class Problem:
    """What is optimized: the image of a trajectory, for a loss.

    loss: holds the guide and the prompt. selector: gives the score and picks the best image; never optimized against.
    """

    backend: Backend
    trajectory: Trajectory
    loss: SaliencyLoss
    regions: Regions
    selector: Critic


@dataclass(frozen=True)
class Plan:
    """How to optimize: `iterations` updates, but stop after `patience` updates without a better score (0: never stop).

    seed: of the random cutouts. candidates: how many starts there are to choose from; `together`: how many of them are
    made at a time, while memory lasts.
    """

    iterations: int
    update: Update
    patience: int = 0
    seed: int = 0
    candidates: int = 1
    together: int = 1


def optimize(problem: Problem, start: Start, plan: Plan, progress: Progress | None = None) -> Result:
    """Choose one of the candidates and improve it. `Result.first` is always the image of the first candidate.

    A failure after the first image (NaN from a network, out of memory) ends the run with the best image so far. Before
    the first image, SgoolError or the original error is raised.
    """
    begun = time.monotonic()
    run = _Run(problem, plan, progress or Progress())
    network = problem.trajectory.network
    forward, gradients = network.evals_forward, network.evals_backward
    try:
        ending = run.improve(*run.choose(start))
    except (Stop, KeyboardInterrupt):
        if run.result is None:
            raise
        ending = Ending.INTERRUPTED
    except (SgoolError, RuntimeError, MemoryError) as error:
        if run.result is None or not (isinstance(error, SgoolError) or out_of_memory(error)):
            raise
        run.result.error, ending = error, Ending.FAILED
    result = run.result
    assert result is not None
    result.ending = ending
    result.sampler = problem.trajectory.sampler.name
    result.unet_gradients = network.evals_backward - gradients
    result.unet_evals = network.evals_forward - forward + result.unet_gradients
    result.seconds = time.monotonic() - begun
    return result


@dataclass(frozen=True)
class _Tried:
    """A candidate with its image. parts: the guide's scores of it [K], see `Critic.parts`."""

    trajectory: Trajectory
    final: Final
    snapshot: Snapshot
    parts: Tensor


class _Run:
    """A run in progress. `result` is the result so far; None before the first image."""

    def __init__(self, problem: Problem, plan: Plan, progress: Progress) -> None:
        self.problem = problem
        self.plan = plan
        self.progress = progress
        self.result: Result | None = None
        self._random = torch.Generator().manual_seed(plan.seed)

    def choose(self, start: Start) -> tuple[Trajectory, Final]:
        """Make the candidates, and return the one that guide and selector together like best (see `favorite`).

        That is fair, because nothing has been optimized against either critic yet. A single one is only sampled. One
        that fails is left out, but not the first.
        """
        if self.plan.candidates == 1:
            trajectory, state = start([0])
            return trajectory, trajectory.run(state, self.progress.step)
        first: _Tried | None = None
        parts: dict[int, Tensor] = {}
        scores: list[float] = []
        held = 0
        groups = in_groups(partial(self._tried, start), self.plan.candidates, self.plan.together)
        for number, tried in enumerate(groups):
            if isinstance(tried, SgoolError):
                if self.result is None:
                    raise tried
                self.result.left_out.append(tried)
                continue
            parts[number] = tried.parts
            scores.append(tried.snapshot.score)
            if first is None or self.result is None:
                first = chosen = tried
                own = self._seen(tried.snapshot)
                self.result = Result(own, own)
            elif self._favorite(parts, scores) == number:
                chosen, held = tried, number
                self.result.best = self._better(first, tried)
        assert self.result is not None and first is not None
        # Where the critics' scores differ in scale, a later candidate can bring an earlier one to the front again.
        if (leader := self._favorite(parts, scores)) != held:
            chosen = self._tried(start, [leader])[0] if leader else first
            self.result.best = self._better(first, chosen)
        if not leader:
            self.result.first = self.result.best = replace(self.result.first, iteration=0)  # the updates begin with it
        return chosen.trajectory, chosen.final

    def _favorite(self, parts: dict[int, Tensor], scores: Sequence[float]) -> int:
        guide, selector = self.problem.loss.critic, self.problem.selector
        return list(parts)[favorite(guide, selector, torch.stack(list(parts.values())), scores)]

    def _better(self, first: _Tried, tried: _Tried) -> Snapshot:
        """The candidate's image, or the first one where that has no lower score."""
        assert self.result is not None
        return self._seen(tried.snapshot) if tried.snapshot.score > first.snapshot.score else self.result.first

    def improve(self, trajectory: Trajectory, final: Final) -> Ending:
        """Update the start of this trajectory, render every update, and keep the best image in `result`."""
        plan, step = self.plan, self.progress.step
        newest: Snapshot | None = None
        for iteration in range(plan.iterations + 1):
            last = iteration == plan.iterations
            newest, loss, cotangent = self._look(trajectory.image(final).detach(), iteration, newest, last)
            newest = replace(newest, noise=trajectory.noise(final))
            result = self._record(newest, loss)
            self.progress.image(result, newest)
            if last:
                break
            if plan.patience and iteration - result.scores.index(max(result.scores)) >= plan.patience:
                return Ending.PATIENCE
            state, gradients = trajectory.adjoint(final, cotangent, step)
            final = trajectory.run(plan.update.step(state, gradients), step)
        return Ending.DONE

    def _record(self, newest: Snapshot, loss: float) -> Result:
        result = self.result = self.result or Result(newest, newest)
        result.losses.append(loss)
        result.scores.append(newest.score)
        if newest.score > result.best.score:
            result.best = newest
        return result

    @torch.no_grad()
    def _tried(self, start: Start, numbers: Sequence[int]) -> list[_Tried]:
        """Some candidates, made together without a gradient."""
        trajectory, state = start(numbers)
        final = trajectory.run(state, _each(len(numbers), self.progress.step), store=True)
        latents = trajectory.image(final)
        images = _visible(self.problem.backend.decode(latents.float()))
        prompt = self.problem.loss.prompt
        scores = self.problem.selector.judge_all(images, prompt)
        guided = self.problem.loss.critic.judge_parts(images, prompt)
        tried = []
        for i, (score, parts) in enumerate(zip(scores, guided, strict=True)):
            own, end = trajectory.sample(i), final.sample(i)
            image, latent = images[i : i + 1].clone(), latents[i : i + 1].clone()
            tried.append(_Tried(own, end, Snapshot(TRIED, image, latent, score, noise=own.noise(end)), parts))
        return tried

    def _seen(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with its saliency and its regions."""
        saliency, found = self.problem.regions.look(snapshot.image)
        return replace(snapshot, saliency=saliency, regions=found)

    def _score(self, image: Tensor) -> float:
        return self.problem.selector.judge(image, self.problem.loss.prompt)

    def _look(
        self, latent: Tensor, iteration: int, previous: Snapshot | None, last: bool
    ) -> tuple[Snapshot, float, Tensor]:
        """Decode the latent. Returns the image, its loss, and the gradient of the loss with respect to the latent.

        The guide's graph is freed before the decoder's backward pass, and the decoder's graph before the sampler's.
        """
        regions = self.problem.regions
        leaf = latent.float().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            decoded = self.problem.backend.decode(leaf)
            pixels = decoded.detach().float().requires_grad_(not last)
            image = _visible(pixels.detach())
            saliency, found = (None, ()) if previous is None else (previous.saliency, previous.regions)
            if saliency is None or (iteration % regions.refresh == 0 and not last):
                saliency, found = regions.look(image)
            value = self.problem.loss(pixels.clamp(0, 1), found, self._random)
            cotangent = torch.zeros_like(latent) if last else gradient_of(value, pixels, decoded, leaf)
        return Snapshot(iteration, image, latent, self._score(image), saliency, found), value.item(), cotangent


def _each(count: int, step: OnStep) -> OnStep:
    """Tells of a pass of so many samples together as of that many passes, one after another."""

    def on_step(done: int, total: int) -> None:
        for number in range(count * (done - 1), count * done):
            step(number % total + 1, total)

    return on_step


def _visible(decoded: Tensor) -> Tensor:
    """The decoder's output as an image in [0, 1]. Raises SgoolError if a value is not finite."""
    if not torch.isfinite(decoded).all():
        raise SgoolError("The decoder returned NaN or infinite values; use a higher precision.")
    return decoded.clamp(0, 1)
