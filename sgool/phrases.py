"""What the prompt asks for, phrase by phrase: whether an image shows it, and where.

`measure` is called once, at the end of a run, for the first and the best image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgool.errors import SgoolError, brief
from sgool.guidance.critic import Critic, EmbeddingCritic
from sgool.guidance.evidence import evidence
from sgool.guidance.maps import heat, suitable
from sgool.guidance.prompt import clean_prompt, phrases

MOST = 16
"""Phrases that are measured; those of a longer prompt beyond it are left out."""

EVEN = 2.0
"""The strength of the evidence at which a phrase is as likely to be there as not; see `presence`."""

SLOPE = 1.5
"""How fast the presence grows around it."""


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


def measure(critics: Sequence[Critic], images: Sequence[Tensor], prompt: str) -> Phrases:
    """How much of each phrase of the prompt the images show, and where.

    critics: the first that can read phrases is asked; the selector should come first, because it is never optimized.
    images: the first and the best [1, 3, H, W] in [0, 1], or a single one. Never raises because of a network: what
    fails is told in `Phrases.note`.
    """
    try:
        critic = reader(critics)
        return _measured(critic, images, phrases_of(prompt))
    except Exception as error:
        return Phrases(note=f"The phrases of the prompt could not be measured: {brief(error)}")


def phrases_of(prompt: str) -> list[str]:
    """The phrases of a prompt as the WebUI takes it; at least the prompt itself."""
    text = clean_prompt(prompt)
    return (phrases(text) or [text])[:MOST]


def reader(critics: Sequence[Critic]) -> EmbeddingCritic:
    """The critic that measures phrases: the first that can, with heat maps or else without.

    Of a sum of critics each counts. Raises SgoolError where none can.
    """
    single = [each for critic in critics for each in getattr(critic, "critics", (critic,))]
    able = [each for each in single if isinstance(each, EmbeddingCritic)]
    if not able:
        names = " and ".join(critic.name or type(critic).__name__ for critic in critics)
        raise SgoolError(f"{names} cannot compare an image with phrases; a CLIP can.")
    return next(filter(_has_maps, able), able[0])


def _has_maps(critic: Critic) -> bool:
    try:
        return bool(suitable(critic))
    except SgoolError:
        return False


def _measured(critic: EmbeddingCritic, images: Sequence[Tensor], texts: Sequence[str]) -> Phrases:
    maps: list[Tensor | None] = []
    shares, note, kind = [], "", ""
    try:
        kind = suitable(critic)
        for image in images:
            where, seen = heat(critic, image, texts, kind)
            maps.append(where)
            shares.append(presence(seen.strength))
    except SgoolError as error:
        if kind:
            raise
        note = str(error)
        maps = [None] * len(images)
        shares = [presence(evidence(critic, image, texts).strength) for image in images]
    found = []
    for number, text in enumerate(texts):
        own = [None if each is None else each[number] for each in maps]
        peak = max((float(each.max()) for each in own if each is not None), default=0.0) or 1.0
        scaled = [None if each is None else each / peak for each in own]
        found.append(Presence(text, shares[0][number], shares[-1][number], scaled[0], scaled[-1]))
    return Phrases(tuple(found), critic.name, kind, note)


def presence(strength: Tensor) -> list[float]:
    """How likely each phrase is there, in [0, 1]: of the part [parts, phrases] that speaks for it most."""
    shares: list[float] = torch.sigmoid(SLOPE * (strength.max(0).values - EVEN)).tolist()
    return shares
