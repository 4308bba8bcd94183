"""What is known of a generation: what it was asked for, what has come of each image, and what the page shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from sgool.region import Region
from sgool.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """What has come of one image. before, after: uint8 [H, W, 3]; saliency: [H, W], float16, and regions: of after."""

    before: np.ndarray
    after: np.ndarray
    saliency: Tensor
    regions: tuple[Region, ...]
    score_before: float
    score_after: float
    losses: list[float]
    scores: list[float]
    best: int
    iterations: int
    seed: int
    prompt: str
    ended: str


@dataclass
class Run:
    """What is known of one generation.

    owner: gives its processing object, while that lives. noise: of the batch at hand. outcomes, notes: by the image's
    number. interrupted: whether the user has stopped it.
    """

    settings: Settings
    owner: Callable[[], Any]
    noise: Tensor | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True)
class LastRun:
    """A run that the page can show. number: differs from that of every other run, also from before a restart."""

    number: int
    outcomes: list[Outcome]
