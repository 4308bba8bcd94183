"""Regions for what the image hardly shows: the place that is most like each such phrase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance.critic import Critic
from sgool.guidance.evidence import evidence
from sgool.guidance.maps import heat, suitable
from sgool.phrases import phrases_of, presence, reader
from sgool.region import Region
from sgool.saliency.regions import alike

WEAK = 0.5
"""A phrase whose presence is below this share is weak."""


class WeakPhrases:
    """Gives each phrase of a prompt that an image hardly shows a region, which is compared with that phrase alone.

    critics: as `sgool.phrases.measure` takes them. find: from a map [H, W] to its regions, the most salient first.
    most: regions, at most. Raises SgoolError where no critic can compare an image with phrases.
    """

    def __init__(
        self, critics: Sequence[Critic], prompt: str, find: Callable[[Tensor], Sequence[Region]], most: int
    ) -> None:
        self.critic, _ = reader(critics)
        self.phrases = phrases_of(prompt)
        self.find = find
        self.most = most

    def __call__(self, image: Tensor, regions: Sequence[Region]) -> list[Region]:
        """The regions of an image [1, 3, H, W], and then the places of its weak phrases, the weakest first.

        A place stands for the regions that it overlaps strongly, and weighs as much as an average region. Where there
        are too many, the least salient regions go.
        """
        shares, likest = self._look(image)
        weak = sorted((number for number, share in enumerate(shares) if share < WEAK), key=shares.__getitem__)
        mass = 1 / max(1, len(regions))
        places = [replace(likest(number), mass=mass, text=self.phrases[number]) for number in weak[: self.most]]
        others = [region for region in regions if not any(alike(region, place) for place in places)]
        return [*others[: self.most - len(places)], *places]

    def _look(self, image: Tensor) -> tuple[list[float], Callable[[int], Region]]:
        """The presence of each phrase, and the place most like one: the peak of its map, or else the likest part."""
        try:
            suitable(self.critic)
        except SgoolError:
            seen = evidence(self.critic, image, self.phrases)
            return presence(seen.strength), lambda number: seen.regions[int(seen.found[:, number].argmax())]
        maps, seen = heat(self.critic, image, self.phrases)
        return presence(seen.strength), lambda number: self.find(maps[number])[0]
