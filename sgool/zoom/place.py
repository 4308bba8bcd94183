"""What a zoom works on and what comes of it: places in an image, and how each repaint ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from sgool.errors import brief
from sgool.region import Region


@dataclass(frozen=True)
class Picture:
    """What is zoomed into. image: [1, 3, H, W] in [0, 1]; prompt: what it was made from; mask: [H, W] in [0, 1], or
    None: where it may be painted again, if the user says so. within: [H, W] in [0, 1], or None: places that do not
    touch it are no places, whatever finds them.
    """

    image: Tensor
    prompt: str
    mask: Tensor | None = None
    within: Tensor | None = None


@dataclass(frozen=True)
class Place:
    """A part of an image that may be painted again.

    region: where it is; nothing outside it changes. name: what people call it ("face", "a frog"). text: what it should
    show, which it is judged by. prompt: what it is painted with; the text and what else belongs to it.
    """

    region: Region
    name: str
    text: str
    prompt: str


class Verdict(Enum):
    """What became of a place."""

    KEPT = "kept"
    REFUSED = "not better, left as it was"
    SPOILS = "better by itself but not in the image, left as it was"
    GOOD = "already good, left"
    STOPPED = "not reached"
    FAILED = "failed, left as it was"


@dataclass(frozen=True)
class Repaint:
    """One place's outcome. before, after: the judge's score of the place for its text; None where it was not judged.

    crop_before, crop_after: [1, 3, h, w] in [0, 1], the place as it was, and as it was painted (None where it was not).
    error: why it failed.
    """

    place: Place
    verdict: Verdict
    before: float | None = None
    after: float | None = None
    crop_before: Tensor | None = None
    crop_after: Tensor | None = None
    error: Exception | None = None

    def __str__(self) -> str:
        """For people, such as: a frog: 0.61 -> 0.74, kept."""
        scores = "" if self.before is None else f"{self.before:.3f}"
        if self.after is not None:
            scores += f" -> {self.after:.3f}"
        return f"{self.place.name}: {scores}{', ' if scores else ''}{self.verdict.value}"


@dataclass(frozen=True)
class Zoomed:
    """What a zoom comes to. image: [1, 3, H, W], the very tensor that was given where nothing was kept.

    note: what people should know besides, such as that faces were looked for by an older detector. error: why no place
    could be looked for at all.
    """

    image: Tensor
    repaints: list[Repaint] = field(default_factory=list)
    note: str = ""
    error: Exception | None = None

    @property
    def kept(self) -> int:
        """How many places were painted anew."""
        return sum(repaint.verdict is Verdict.KEPT for repaint in self.repaints)

    @property
    def ended(self) -> str:
        """What did not go as asked, for people; empty when there is nothing to say."""
        if self.error is not None:
            return f"Zoom left the image as it was. {brief(self.error)}"
        if not self.repaints:
            return " ".join(filter(None, (self.note, "Zoom found no place to paint again.")))
        failed = [f"{each.place.name} ({brief(each.error)})" for each in self.repaints if each.error]
        told = [self.note] if self.note else []
        told += [f"Zoom failed and left as it was: {', '.join(failed)}."] if failed else []
        if any(each.verdict is Verdict.STOPPED for each in self.repaints):
            told.append("Zoom ended early; what it had kept stays.")
        return " ".join(told)


Paint = Callable[[Tensor, Place, int], Tensor]
"""(image [1, 3, H, W], place, its number from 0) -> the image with that place painted again, of the same shape."""


class ZoomProgress:
    """Hears how a zoom goes on. Either method may raise `sgool.Stop`: the places done so far are kept."""

    def begin(self, number: int, count: int, place: Place) -> None:
        """Before a place is painted, `number` of `count` from 0."""

    def end(self, repaint: Repaint, image: Tensor) -> None:
        """After a place; image: as it is now."""
