"""The loop: sample, look, measure, pull the gradient back to the start, move it; keep the best image seen.

1. run the reversible sampler from the starting state to the image latent
2. decode it; now and then ask the detector where people look
3. the loss on the whole image and the salient crops; its gradient with respect to the image latent
4. pull that back through every sampling step, in flat memory
5. move the starting state, and keep it on the prior
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgool.backends import Backend
from sgool.errors import SgoolError, out_of_memory
from sgool.guidance.loss import SaliencyLoss
from sgool.saliency import SaliencyFunction
from sgool.saliency.regions import Region
from sgool.samplers import Trajectory
from sgool.update import Update

INTERRUPTED = "Interrupted; this is the best image so far."

Select = Callable[[Tensor], float]
"""An image [1, 3, H, W] in [0, 1] -> score, the higher the better."""


@dataclass(frozen=True)
class Snapshot:
    """One image of the run. image: [1, 3, H, W] in [0, 1]; latent: [1, 4, h, w], float64; saliency: [H, W] or None."""

    iteration: int
    image: Tensor
    latent: Tensor
    score: float
    saliency: Tensor | None = None
    regions: tuple[Region, ...] = ()


@dataclass
class Result:
    """What a run has come to. losses and scores: one per image made.

    best: of the images along the run the one with the highest score, `first` when none beats it. sampler: its name.
    ended: why the run ended early, one sentence; empty when it did all its iterations. error: what made it fail.
    """

    first: Snapshot
    best: Snapshot
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ended: str = ""
    error: Exception | None = None
    sampler: str = ""
    unet_evals: int = 0
    seconds: float = 0.0

    @property
    def iterations(self) -> int:
        """Updates that were rendered; 0 also for a run that ended while its starts were tried."""
        return max(0, len(self.losses) - 1)

    @property
    def best_update(self) -> int:
        """Which of `scores` is the best image's; -1 where it comes from a start that was tried, but not improved."""
        number = self.best.iteration
        return number if self.scores[number : number + 1] == [self.best.score] else -1

    @property
    def failed(self) -> bool:
        return self.error is not None


class Stop(Exception):
    """Raised by a callback: end the run now and keep the best image so far."""


@dataclass(frozen=True)
class Regions:
    """Where the crops come from: a detector, how its map becomes regions, and how often it is asked."""

    detect: SaliencyFunction
    find: Callable[[Tensor], Sequence[Region]]
    refresh: int = 3


def optimise(
    backend: Backend,
    trajectory: Trajectory,
    starts: Sequence[Callable[[], list[Tensor]]],
    *,
    iterations: int,
    loss: SaliencyLoss,
    regions: Regions,
    select: Select,
    guide: Select,
    update: Update,
    patience: int = 0,
    seed: int = 0,
    on_image: Callable[[Result, Snapshot], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Result:
    """Improve a starting state over `iterations` updates, each of them rendered.

    select: the selector, which is never optimised against and picks the best image. starts: each makes a starting
    state; where there are several, each is rendered once, and the one whose image has the largest sum of the selector's
    and the guide's score is improved, as nothing has been optimised against either yet. `Result.first` is always that
    of the first.

    on_image is called with the result so far and the newest image; on_step(done, total) after every sampler step.
    Both may raise Stop, and Ctrl-C counts as that. A failure after the first image (a network that returns NaN, no
    memory left) ends the run with the best image so far; before it, SgoolError or the failure itself is raised.
    """
    begun = time.monotonic()
    evals = _evals(trajectory)
    generator = torch.Generator().manual_seed(seed)
    result: Result | None = None
    newest: Snapshot | None = None
    try:
        final = trajectory.run(starts[0](), on_step)
        promise = -math.inf
        for rival in starts[1:]:
            if result is None:
                result = _plain(backend, trajectory.image(final), regions, select)
                promise = result.first.score + guide(result.first.image)
            other = trajectory.run(rival(), on_step)
            seen = _plain(backend, trajectory.image(other), regions, select).best
            promised = seen.score + guide(seen.image)
            if promised > promise:
                final, promise = other, promised
                result.best = max(result.first, seen, key=lambda snapshot: snapshot.score)
        for iteration in range(iterations + 1):
            latent = trajectory.image(final).detach()
            last = iteration == iterations
            newest, value, cotangent = _look(backend, latent, iteration, newest, loss, regions, select, generator, last)
            result = result or Result(newest, newest)
            result.losses.append(value)
            result.scores.append(newest.score)
            if newest.score > result.best.score:
                result.best = newest
            if on_image:
                on_image(result, newest)
            if last:
                break
            if patience and iteration - result.scores.index(max(result.scores)) >= patience:
                result.ended = f"Stopped early: no better image in {patience} iterations."
                break
            state, gradients = trajectory.adjoint(final, cotangent, on_step)
            final = trajectory.run(update.step(state, gradients), on_step)
    except (Stop, KeyboardInterrupt):
        if result is None:
            raise
        result.ended = INTERRUPTED
    except (SgoolError, RuntimeError, MemoryError) as error:
        if result is None or not (isinstance(error, SgoolError) or out_of_memory(error)):
            raise
        result.error = error
        result.ended = f"Ended at iteration {len(result.losses)}; this is the best image so far. {error}"
    assert result is not None
    result.sampler = trajectory.sampler.name
    result.unet_evals = _evals(trajectory) - evals
    result.seconds = time.monotonic() - begun
    return result


@torch.no_grad()
def _plain(backend: Backend, latent: Tensor, regions: Regions, select: Select) -> Result:
    """A result of one image that was only rendered."""
    image = _visible(backend.decode(latent.float()))
    saliency = regions.detect(image)
    only = Snapshot(0, image, latent, select(image), saliency, tuple(regions.find(saliency)))
    return Result(only, only)


def _look(
    backend: Backend,
    latent: Tensor,
    iteration: int,
    previous: Snapshot | None,
    loss: SaliencyLoss,
    regions: Regions,
    select: Select,
    generator: torch.Generator,
    last: bool,
) -> tuple[Snapshot, float, Tensor]:
    """Decode the latent and measure: the image, its loss, and the loss's gradient with respect to the latent.

    CLIP's graph is gone before the decoder's is walked, and the decoder's when this returns, before the sampler's.
    """
    leaf = latent.float().requires_grad_(not last)
    with torch.set_grad_enabled(not last):
        decoded = backend.decode(leaf)
        pixels = decoded.detach().float().requires_grad_(not last)
        image = _visible(pixels.detach())
        saliency, found = (None, ()) if previous is None else (previous.saliency, previous.regions)
        if saliency is None or (iteration % regions.refresh == 0 and not last):
            saliency = regions.detect(image)
            found = tuple(regions.find(saliency))
        value = loss(pixels.clamp(0, 1), found, generator)
        cotangent = torch.zeros_like(latent) if last else _pull(value, pixels, decoded, leaf)
    return Snapshot(iteration, image, latent, select(image), saliency, found), value.item(), cotangent


def _visible(decoded: Tensor) -> Tensor:
    """What the decoder returned, as an image with values in [0, 1]; SgoolError where it has none."""
    if not torch.isfinite(decoded).all():
        raise SgoolError("The decoder returned NaN or infinite values; use a higher precision.")
    return decoded.clamp(0, 1)


def _pull(value: Tensor, pixels: Tensor, decoded: Tensor, leaf: Tensor) -> Tensor:
    """The loss's gradient with respect to the latent, float64.

    Scaled to unit rms on its way through the decoder, whose half precision could not hold the loss's small numbers.
    """
    (gradient,) = torch.autograd.grad(value, pixels)
    scale = gradient.square().mean().sqrt().item() or 1.0
    (pulled,) = torch.autograd.grad(decoded, leaf, (gradient / scale).to(decoded.dtype))
    return scale * pulled.double()


def _evals(trajectory: Trajectory) -> int:
    return trajectory.network.evals_forward + trajectory.network.evals_backward
