"""What the prompt asks for, phrase by phrase: whether an image shows it, and where.

`measure` is called once, at the end of a run, for the first and the best image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sgool.errors import SgoolError, brief
from sgool.guidance.critic import Critic, EmbeddingCritic, singles
from sgool.guidance.evidence import evidence
from sgool.guidance.maps import heat, suitable
from sgool.guidance.prompt import clean_prompt, phrases
from sgool.result import Phrases, Presence

MOST = 16
"""Phrases that are measured; those of a longer prompt beyond it are left out."""

EVEN = 2.25
"""The strength of evidence at which a phrase is as likely there as not. Of ten parts that say nothing, the strongest
reaches it in at most an eighth of images: 1 - Phi(2.25)^10."""


def measure(critics: Sequence[Critic], images: Sequence[Tensor], prompt: str) -> Phrases:
    """How much of each phrase of the prompt the images show, and where.

    critics: the first that can compare an image with phrases is asked; the selector should come first, because it is
    never optimized. images: the first and the best [1, 3, H, W] in [0, 1], or a single one. Raises nothing: what fails
    is told in `Phrases.note`.
    """
    try:
        return _measured(*reader(critics), images, phrases_of(prompt))
    except Exception as error:
        return Phrases(note=f"The phrases of the prompt could not be measured: {brief(error)}")


def phrases_of(prompt: str) -> list[str]:
    """The phrases of a prompt as the WebUI takes it; at least the prompt itself."""
    text = clean_prompt(prompt)
    return (phrases(text) or [text])[:MOST]


def reader(critics: Sequence[Critic]) -> tuple[EmbeddingCritic, str]:
    """The first critic that can compare an image with phrases, and a note where that is another than the first.

    Raises SgoolError where none can.
    """
    every = singles(critics)
    able = [each for each in every if isinstance(each, EmbeddingCritic)]
    if not able:
        raise SgoolError(f"{' and '.join(map(_name, every))} cannot compare an image with phrases, as a CLIP can.")
    if able[0] is every[0]:
        return able[0], ""
    return able[0], f"{_name(every[0])} cannot tell phrases, so the guide {_name(able[0])} did, which was optimized."


def _name(critic: Critic) -> str:
    return critic.name or type(critic).__name__


def _measured(critic: EmbeddingCritic, note: str, images: Sequence[Tensor], texts: Sequence[str]) -> Phrases:
    kind = ""
    maps: list[Tensor | None] = [None] * len(images)
    try:
        kind = suitable(critic)
    except SgoolError as error:
        note = f"{note} {error}".strip()
        strengths = [evidence(critic, image, texts).strength for image in images]
    else:
        every = [heat(critic, image, texts, kind) for image in images]
        maps, strengths = [where for where, _ in every], [seen.strength for _, seen in every]
    shares = [presence(each) for each in strengths]
    found = []
    for number, text in enumerate(texts):
        own = [None if each is None else each[number] for each in maps]
        peak = max((float(each.max()) for each in own if each is not None), default=0.0) or 1.0
        before, *_, after = [None if each is None else each / peak for each in [*own, own[-1]]]
        found.append(Presence(text, shares[0][number], shares[-1][number], before, after))
    return Phrases(tuple(found), critic.name, kind, note)


def presence(strength: Tensor) -> list[float]:
    """How likely each phrase is there, in [0, 1]: Phi(s - EVEN), with Phi the normal distribution function and s the
    largest strength [parts, phrases] of a phrase, which is measured in standard deviations.
    """
    shares: list[float] = torch.special.ndtr(strength.amax(0).double() - EVEN).tolist()
    return shares
