"""What is known of a generation: what it was asked for, what has come of each image, and what the page shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from sgool.pictures import to_uint8
from sgool.region import Region
from sgool.result import Phrases, Result
from sgool.settings import Settings
from sgool.zoom import Repaint, Verdict


@dataclass(frozen=True)
class Outcome:
    """What has come of one image.

    before, after: uint8 [H, W, 3], as the WebUI itself decodes them; saliency: [H, W], float16, and regions: of after.
    score_before: of the WebUI's own image; critic: what the scores are called by. result: the run; its iteration 0 is
    the image sampled again by SGOOL, or the image itself where that was the start. improved: whether something beats
    the WebUI's own. sampled: with what SGOOL sampled, in words; follows: whether that is how the user does. rendered:
    the score of the noise that was found, once the user's own sampler has sampled it; by_yours: whether that image is
    the best. seconds: of the run, for each image's worth of its cost.
    """

    before: np.ndarray
    after: np.ndarray
    saliency: Tensor
    regions: tuple[Region, ...]
    score_before: float
    critic: str
    start: str
    improved: bool
    result: Scores
    sampled: str = ""
    follows: bool = False
    rendered: float | None = None
    by_yours: bool = False
    seconds: float = 0.0

    @property
    def score_resampled(self) -> float | None:
        """The score of iteration 0 where the run sampled another image: by its own sampler, or from another seed."""
        scores = self.result.scores if self.start == "seed" else []
        own = self.follows and scores and abs(scores[0] - self.result.first_score) < 1e-4
        return scores[0] if scores and not own else None

    @property
    def score_after(self) -> float:
        if self.by_yours and self.rendered is not None:
            return self.rendered
        return self.result.best_score if self.improved else self.score_before

    @property
    def best_iteration(self) -> int | None:
        """The iteration of the image after, or of its noise; TRIED (-1): a candidate seed; None: the WebUI's own."""
        return self.result.best_update if self.improved else None


@dataclass(frozen=True)
class Scores:
    """The figures of a run, without its images: see `sgool.result.Result`."""

    losses: list[float]
    scores: list[float]
    first_score: float
    best_score: float
    best_update: int
    ended: str

    @classmethod
    def of(cls, result: Result) -> Scores:
        first, best = result.first.score, result.best.score
        return cls(result.losses, result.scores, first, best, result.best_update, result.ended)

    @property
    def iterations(self) -> int:
        """Updates that were rendered."""
        return max(0, len(self.losses) - 1)


@dataclass(frozen=True)
class ZoomedPlace:
    """What has come of one place; see `sgool.zoom.Repaint`. picture_before, picture_after: uint8 [h, w, 3], or None.

    told: all of it in words.
    """

    name: str
    text: str
    region: Region
    verdict: Verdict
    before: float | None
    after: float | None
    picture_before: np.ndarray | None
    picture_after: np.ndarray | None
    told: str

    @classmethod
    def of(cls, repaint: Repaint) -> ZoomedPlace:
        place = repaint.place
        return cls(
            name=place.name,
            text=place.text,
            region=place.region,
            verdict=repaint.verdict,
            before=repaint.before,
            after=repaint.after,
            picture_before=None if repaint.crop_before is None else to_uint8(repaint.crop_before),
            picture_after=None if repaint.crop_after is None else to_uint8(repaint.crop_after),
            told=str(repaint),
        )


@dataclass(frozen=True)
class ZoomOutcome:
    """What a zoom has made of one image. before, after: uint8 [H, W, 3]; saliency: [H, W], float16, of after; critic:
    what the places' scores are called by.
    """

    before: np.ndarray
    after: np.ndarray
    saliency: Tensor
    places: tuple[ZoomedPlace, ...]
    critic: str

    @property
    def kept(self) -> int:
        return sum(place.verdict is Verdict.KEPT for place in self.places)


@dataclass(frozen=True)
class Score:
    """What the selector says of a finished image; critic: what the score is called by."""

    value: float
    critic: str


@dataclass(frozen=True)
class Entry:
    """An image's part in a run: what SGOOL made of it as a whole, and what the zoom made of that. Either may be None.

    Of the best of a batch: score, rank ("1 of 8", or ""), and picture, uint8 [H, W, 3], where the image is only scored.
    phrases: how much of each it shows before and after, where that was measured; the maps are small.
    """

    outcome: Outcome | None = None
    zoom: ZoomOutcome | None = None
    score: Score | None = None
    rank: str = ""
    picture: np.ndarray | None = None
    phrases: Phrases | None = None

    @property
    def changed(self) -> bool:
        """Whether SGOOL has worked on the image, and not only scored it."""
        return self.outcome is not None or self.zoom is not None

    @property
    def before(self) -> np.ndarray:
        """uint8 [H, W, 3]: the WebUI's own image. With hires fix, which upscales in between, it is that before zoom."""
        if not self.changed:
            return self.after
        if self.zoom is None or (self.outcome is not None and self.outcome.before.shape == self.zoom.after.shape):
            assert self.outcome is not None
            return self.outcome.before
        return self.zoom.before

    @property
    def after(self) -> np.ndarray:
        """uint8 [H, W, 3]: what came out."""
        shown = self.zoom or self.outcome
        if shown is not None:
            return shown.after
        assert self.picture is not None
        return self.picture

    @property
    def saliency(self) -> Tensor:
        """[H, W]: where people look in the image after."""
        shown = self.zoom or self.outcome
        assert shown is not None
        return shown.saliency

    @property
    def regions(self) -> tuple[Region, ...]:
        """The places of a zoom, else the regions that SGOOL looked at."""
        if self.zoom is not None:
            return tuple(place.region for place in self.zoom.places)
        assert self.outcome is not None
        return self.outcome.regions


@dataclass
class Run:
    """What is known of one generation.

    owner: gives its processing object, while that lives. whole: whether SGOOL improves its images as a whole. mask: a
    picture, white where the zoom may paint, as the API gave it; look_at: likewise, where to look. noise: of the batch
    at hand. recording: hears how that batch is sampled, where SGOOL should sample likewise (`sgool.webui.follow`).
    uploaded: its pictures, where they are improved as they are (`sgool.webui.uploaded`). outcomes, zooms, notes: by the
    image's number. files: the number of the image that each saved file belongs to. interrupted: whether the user has
    stopped the run; stopped: the numbers of the images that were in work when the user stopped it, or skipped them.

    Of the best of a batch: sorts: whether the gallery is to be sorted; held: what the processing object saved before
    some of that had to wait; waiting: the pictures that are saved at the end. made: the numbers of all finished images;
    scores: theirs; unscored: whether scoring has failed. ranks: from 1, the best first, once all are made; shown: the
    numbers of those that the gallery keeps, the best first, or [] for all as they came. first_ranks: where only the
    best of a batch are improved, each one's place in it and its score before. pictures: the finished images, uint8
    [H, W, 3].

    phrases: what the images show of the prompt's, once all are made.
    """

    settings: Settings
    owner: Callable[[], Any]
    whole: bool = True
    mask: Any = None
    look_at: Any = None
    noise: Tensor | None = None
    recording: Any = None
    uploaded: list[np.ndarray] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    zooms: dict[int, ZoomOutcome] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
    stopped: set[int] = field(default_factory=set)
    first_ranks: dict[int, str] = field(default_factory=dict)
    made: list[int] = field(default_factory=list)
    waiting: dict[int, Any] = field(default_factory=dict)
    scores: dict[int, Score] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    sorts: bool = False
    unscored: bool = False
    shown: list[int] = field(default_factory=list)
    held: dict[str, bool] = field(default_factory=dict)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    phrases: dict[int, Phrases] = field(default_factory=dict)

    def place(self, number: int) -> str:
        """The rank of an image, in words."""
        return f"{self.ranks[number]} of {len(self.ranks)}" if number in self.ranks else ""

    @property
    def entries(self) -> dict[int, Entry]:
        """By the image's number, in the gallery's order: all that are shown and that something has come of."""
        found = {*self.outcomes, *self.zooms, *self.scores}
        numbers = [number for number in self.shown if number in found] if self.shown else sorted(found)
        return {number: self._entry(number) for number in numbers}

    def _entry(self, number: int) -> Entry:
        return Entry(
            self.outcomes.get(number),
            self.zooms.get(number),
            self.scores.get(number),
            self.place(number),
            None if number in {*self.outcomes, *self.zooms} else self.pictures.get(number),
            self.phrases.get(number),
        )
