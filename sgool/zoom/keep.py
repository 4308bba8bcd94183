"""Paint places again, one after another, and keep each repaint only where the judge finds it better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance.critic import Critic
from sgool.guidance.loss import crop
from sgool.result import Stop
from sgool.zoom.place import Paint, Place, Repaint, Verdict, Zoomed, ZoomProgress


class Judge:
    """Whether a repaint earns its place: the place must score higher for its text, and the whole image higher for the
    prompt.

    critic: one that is never optimized. good: a place with this score is not painted at all; a cosine, so it holds for
    critics that give these.
    """

    def __init__(self, critic: Critic, prompt: str, good: float = 1.0) -> None:
        self.critic = critic
        self.prompt = prompt
        self.good = good if critic.unit == "cosine" else inf

    def of_place(self, image: Tensor, place: Place) -> float:
        """The score of a place for its own text."""
        return self.critic.judge(crop(image, place.region), place.text)

    def of_image(self, image: Tensor) -> float:
        """The score of the whole image for the whole prompt."""
        return self.critic.judge(image, self.prompt)


@torch.no_grad()
def zoom(
    image: Tensor, places: Sequence[Place], paint: Paint, judge: Judge | None, progress: ZoomProgress | None = None
) -> Zoomed:
    """Paint the places of an image [1, 3, H, W] in [0, 1] again. judge: None keeps every repaint.

    A failure leaves its place as it was; after one that is no SgoolError, the rest is not tried. `Stop` and Ctrl-C end
    the zoom, and what has been kept stays.
    """
    work = _Work(image, paint, judge, progress or ZoomProgress())
    for number, place in enumerate(places):
        if work.go_on:
            work.attempt(place, number, len(places))
        else:
            work.repaints.append(Repaint(place, Verdict.STOPPED))
    return Zoomed(work.image, work.repaints)


class _Work:
    """A zoom in progress. image: as it is by now; go_on: whether the next place is tried."""

    def __init__(self, image: Tensor, paint: Paint, judge: Judge | None, progress: ZoomProgress) -> None:
        self.image = image
        self.paint = paint
        self.judge = judge
        self.progress = progress
        self.repaints: list[Repaint] = []
        self.go_on = True

    def attempt(self, place: Place, number: int, count: int) -> None:
        """Paint one place again, and keep it where it is better."""
        begun = Repaint(place, Verdict.STOPPED, crop_before=crop(self.image, place.region))
        self.repaints.append(begun)
        try:
            if self.judge:
                score = self.judge.of_place(self.image, place)
                begun = self.repaints[-1] = replace(begun, before=score)
                if score >= self.judge.good:
                    self.repaints[-1] = replace(begun, verdict=Verdict.GOOD)
                    self.progress.end(self.repaints[-1], self.image)
                    return
            self.progress.begin(number, count, place)
            painted = self.paint(self.image, place, number)
            self.repaints[-1] = self._judged(begun, painted)
            if self.repaints[-1].verdict is Verdict.KEPT:
                self.image = painted
            self.progress.end(self.repaints[-1], self.image)
        except (Stop, KeyboardInterrupt):
            self.go_on = False
        except Exception as error:
            self.repaints[-1] = replace(begun, verdict=Verdict.FAILED, error=error)
            self.go_on = isinstance(error, SgoolError)

    def _judged(self, begun: Repaint, painted: Tensor) -> Repaint:
        """What comes of a repaint; `painted` is the whole image with it."""
        place = begun.place
        kept = replace(begun, verdict=Verdict.KEPT, crop_after=crop(painted, place.region))
        if self.judge is None or begun.before is None:
            return kept
        after = self.judge.of_place(painted, place)
        kept = replace(kept, after=after)
        if not after > begun.before:
            return replace(kept, verdict=Verdict.REFUSED)
        whole = self.judge.of_image(painted) > self.judge.of_image(self.image)
        return kept if whole else replace(kept, verdict=Verdict.SPOILS)
