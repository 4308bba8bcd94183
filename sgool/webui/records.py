"""What is known of a generation: what it was asked for, what has come of each image, and what the page shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from sgool.region import Region
from sgool.result import Result
from sgool.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """What has come of one image.

    before, after: uint8 [H, W, 3], as the WebUI itself decodes them; saliency: [H, W], float16, and regions: of after.
    score_before: of the WebUI's own image. result: the run; its iteration 0 is the image sampled again by SGOOL, or the
    image itself where that was the start. improved: whether the run's best image beats the WebUI's own.
    """

    before: np.ndarray
    after: np.ndarray
    saliency: Tensor
    regions: tuple[Region, ...]
    score_before: float
    start: str
    improved: bool
    result: Scores

    @property
    def score_resampled(self) -> float | None:
        """The score of iteration 0 where the run sampled the image again."""
        return self.result.scores[0] if self.start == "seed" and self.result.scores else None

    @property
    def score_after(self) -> float:
        return self.result.best_score if self.improved else self.score_before

    @property
    def best_iteration(self) -> int | None:
        """The iteration that made the image after; TRIED (-1) for a candidate seed; None for the WebUI's own image."""
        return self.result.best_update if self.improved else None


@dataclass(frozen=True)
class Scores:
    """The figures of a run, without its images: see `sgool.result.Result`."""

    losses: list[float]
    scores: list[float]
    best_score: float
    best_update: int
    ended: str

    @classmethod
    def of(cls, result: Result) -> Scores:
        return cls(result.losses, result.scores, result.best.score, result.best_update, result.ended)

    @property
    def iterations(self) -> int:
        """Updates that were rendered."""
        return max(0, len(self.losses) - 1)


@dataclass
class Run:
    """What is known of one generation.

    owner: gives its processing object, while that lives. noise: of the batch at hand. outcomes, notes: by the image's
    number. files: the number of the image that each saved file belongs to. interrupted: whether the user has stopped
    the run.
    """

    settings: Settings
    owner: Callable[[], Any]
    noise: Tensor | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
