"""What a run comes to: its images, its scores, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from sgool.errors import SgoolError
from sgool.region import Region

TRIED = -1
"""The iteration of an image whose starting noise was tried, but not improved."""


class Stop(Exception):
    """Raised by `Progress`: end the run now and keep the best image so far."""


class Ending(Enum):
    """How a run ended; every ending keeps the best image so far."""

    DONE = "done"
    PATIENCE = "patience"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True)
class Snapshot:
    """One image of the run. image: [1, 3, H, W] in [0, 1]; latent: [1, 4, h, w], float64; saliency: [H, W] or None.

    noise: what all of it was sampled from, [1, 4, h, w], float64, of unit variance; see `Trajectory.noise`.
    """

    iteration: int
    image: Tensor
    latent: Tensor
    score: float
    saliency: Tensor | None = None
    regions: tuple[Region, ...] = ()
    noise: Tensor | None = None


@dataclass(frozen=True)
class Presence:
    """How much of a phrase two images show. before, after: presence in [0, 1]; of a single image both are the same.

    map_before, map_after: [H, W] in [0, 1] on the CPU, where; both on one scale, the larger peak is 1. None where the
    critic has no maps.
    """

    phrase: str
    before: float
    after: float
    map_before: Tensor | None = None
    map_after: Tensor | None = None

    def __str__(self) -> str:
        """For people, such as: a frog: 34 % -> 81 %."""
        return f"{self.phrase}: {self.before:.0%} -> {self.after:.0%}".replace("%", " %")


@dataclass(frozen=True)
class Phrases:
    """The phrases of a prompt, in its order. critic: who has looked; map: the kind of its maps, "" without.

    note: a sentence where something could not be measured; empty when there is nothing to say.
    """

    found: tuple[Presence, ...] = ()
    critic: str = ""
    map: str = ""
    note: str = ""

    def as_list(self) -> list[dict[str, object]]:
        """For JSON: phrase, before, after."""
        return [
            {"phrase": each.phrase, "before": round(each.before, 4), "after": round(each.after, 4)}
            for each in self.found
        ]


@dataclass
class Result:
    """What a run comes to.

    first: the image of the seed (or of the image start) before any update. best: the image with the highest score;
    `first` where none beats it. losses, scores: one for each image of the run, from iteration 0. error: what made it
    fail. stored_latents: whether the run began again with stored latents, because its network does not repeat its
    predictions. left_out: the errors of candidates that gave no image. sampler: the sampler's name. unet_evals:
    evaluations of the UNet, with and without a gradient; unet_gradients: those with one. phrases: how much of each
    phrase of the prompt the first and the last image show, where that was measured.
    """

    first: Snapshot
    best: Snapshot
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ending: Ending = Ending.DONE
    error: Exception | None = None
    stored_latents: bool = False
    left_out: list[SgoolError] = field(default_factory=list)
    sampler: str = ""
    unet_evals: int = 0
    unet_gradients: int = 0
    seconds: float = 0.0
    phrases: Phrases | None = None

    @property
    def forward_equivalents(self) -> int:
        """The cost in evaluations without a gradient. An evaluation with one counts as two, its way back as the other:
        frozen networks compute no gradients of weights.
        """
        return self.unet_evals + self.unet_gradients

    @property
    def iterations(self) -> int:
        """Updates that were rendered; 0 also for a run that ended while its starts were tried."""
        return max(0, len(self.losses) - 1)

    @property
    def score_start(self) -> float | None:
        """The score of iteration 0, from which the updates begin; another image than `first` where several starts were
        tried. None for a run that ended before it.
        """
        return self.scores[0] if self.scores else None

    @property
    def best_update(self) -> int:
        """Which of `scores` is the best image's; TRIED (-1) where a start that was only tried is the best."""
        return self.best.iteration

    @property
    def failed(self) -> bool:
        return self.ending is Ending.FAILED

    @property
    def ended(self) -> str:
        """Why the run ended early and what was different, for people; empty when there is nothing to say."""
        waited = self.iterations - max(0, self.best_update)
        told = {
            Ending.DONE: "",
            Ending.PATIENCE: f"Stopped early: no better image in {waited} iteration{'s' if waited != 1 else ''}.",
            Ending.INTERRUPTED: "Interrupted; this is the best image so far.",
            Ending.FAILED: f"Ended at iteration {len(self.losses)}; this is the best image so far. {self.error}",
        }[self.ending]
        if self.stored_latents:
            told += " The network does not repeat its predictions exactly, so the latents of all steps were stored."
        if self.left_out:
            told += f" {len(self.left_out)} of the candidate seeds gave no image. {self.left_out[-1]}"
        return told.strip()


class Progress:
    """Hears how a run goes on. Either method may raise Stop, and Ctrl-C counts as that. Here both do nothing."""

    def step(self, done: int, total: int) -> None:
        """After each operation of the sampler, `done` of `total` in this pass."""

    def image(self, result: Result, newest: Snapshot) -> None:
        """After each image of the run; `result` is what the run has come to so far."""
