"""Which places of an image are worth painting again, and what each should show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.generate import Critics
from sgool.guidance.critic import Critic
from sgool.guidance.loss import assign, crop
from sgool.guidance.prompt import clean_prompt
from sgool.region import Region
from sgool.saliency.faces import FaceFinder
from sgool.saliency.regions import alike, find_regions, grown
from sgool.settings import Settings
from sgool.zoom.place import Picture, Place
from sgool.zoom.texts import painting_prompt, place_name, things

FOUND = 16
"""So many places are looked for, before those of the right size are chosen."""

FACE = 64
"""The smallest place around a face in pixels: scaled to 512 pixels it has one for each cell of the latent. At most a
quarter of the image."""

WINDOWS = 64
"""So many windows are looked at for phrases, 61 in a square image; more only in one over twice as long as wide."""

STANDS_OUT = 0.5
"""How far a phrase's window must stand out from the others, as a share of the clearest phrase's. On the embedded world
99% of what is there reaches it, and 40% of what is not."""

ORDERS: dict[str, Callable[[Region], float]] = {
    "salience": lambda region: -region.mass,
    "left-to-right": lambda region: region.left + region.width / 2,
    "small-first": lambda region: region.height * region.width,
}
"""The orders that the regions alone tell; "weakest-first" asks the guide."""


@dataclass(frozen=True)
class Candidate:
    """A part of an image that may become a place. text: what it should show, and name: what people call it, where the
    finder knows; "" otherwise. asked: whether the user has named it, however large it is.
    """

    region: Region
    text: str = ""
    name: str = ""
    asked: bool = False


def find_places(picture: Picture, critics: Critics, settings: Settings) -> list[Place]:
    """The places of a picture, in the order in which they are painted; see `sgool.zoom.zoom_in`."""
    limit = max(settings.zoom_largest, settings.zoom_smallest) * min(picture.image.shape[-2:])
    every = FINDERS[settings.zoom_by](picture, critics, settings)
    if picture.within is not None:
        every = [each for each in every if (crop(picture.within[None, None], each.region) > 0.5).any()]
    small = [each for each in every if each.asked or max(each.region.height, each.region.width) <= limit]
    if settings.zoom_order == "weakest-first":
        texts = likest(picture, [each.region for each in small], critics.guide)
        parts = [
            critics.guide.judge_parts(crop(picture.image, each.region), each.text or text)
            for each, text in zip(small, texts, strict=True)
        ]
        scores = critics.guide.fresh().settle(torch.cat(parts)).tolist() if parts else []
        found = [small[number] for number in sorted(range(len(small)), key=scores.__getitem__)]
    else:
        found = sorted(small, key=lambda each: ORDERS[settings.zoom_order](each.region))
    return name_places(picture, found[: settings.zoom_places], critics.guide, settings.region_prompt)


def by_attention(picture: Picture, critics: Critics, settings: Settings) -> list[Candidate]:
    """Where people look."""
    return regions_of(critics.detector.of(picture.prompt)(picture.image), settings)


def by_mask(picture: Picture, critics: Critics, settings: Settings) -> list[Candidate]:
    """The parts of the mask."""
    mask = picture.mask
    if mask is None:
        raise SgoolError("Zoom on a mask needs a mask.")
    size = (picture.image.shape[-2], picture.image.shape[-1])
    check_mask(mask, size)
    smallest = ceil(settings.zoom_smallest * min(size))
    parts = [grown(part, size, smallest, settings.zoom_padding) for part in parts_of(mask)]
    return [Candidate(part, asked=True) for part in parts]


def parts_of(mask: Tensor) -> list[Region]:
    """The connected parts of a mask [H, W] above 0.5 as boxes, each with its share of the area."""
    import cv2
    import numpy as np

    white = (mask > 0.5).cpu().numpy().astype(np.uint8)
    _, _, found, _ = cv2.connectedComponentsWithStats(white, connectivity=8)
    total = int(white.sum())
    return [Region(top, left, height, width, area / total) for left, top, width, height, area in found[1:].tolist()]


def check_mask(mask: Tensor, size: tuple[int, ...]) -> None:
    """Raises SgoolError for a mask that is not [H, W] of this size, or that is empty."""
    height, width = size
    if tuple(mask.shape) != (height, width):
        raise SgoolError(f"The mask has {mask.shape[-1]}x{mask.shape[-2]} pixels, but the image {width}x{height}.")
    if not (mask > 0.5).any():
        raise SgoolError("The mask is empty: nothing in it is white.")


def regions_of(interest: Tensor, settings: Settings) -> list[Candidate]:
    """The regions of a map [H, W] of what is of interest."""
    found = find_regions(
        interest,
        max_regions=FOUND,
        threshold=settings.threshold,
        min_size=settings.zoom_smallest,
        padding=settings.zoom_padding,
    )
    return [Candidate(region) for region in found]


def by_faces(picture: Picture, critics: Critics, settings: Settings) -> list[Candidate]:
    """The faces, each in a square with its padding. A face may be small: neighbors should not be painted with it."""
    height, width = picture.image.shape[-2:]
    faces = (critics.faces or FaceFinder())(picture.image)
    smallest = min(FACE, ceil(min(height, width) / 4))
    squares = [grown(face, (height, width), smallest, settings.zoom_padding) for face in faces]
    return [Candidate(square, name="face") for square in squares]


@torch.no_grad()
def by_phrases(picture: Picture, critics: Critics, settings: Settings) -> list[Candidate]:
    """Where each phrase of the prompt is: the window that the guide finds likest, compared with its other windows.

    The clearest phrase takes its window first, and the others take none that overlaps it strongly. A phrase that stands
    out nowhere gets no place.
    """
    phrases = phrases_of(picture.prompt)
    height, width = picture.image.shape[-2:]
    regions = windows(height, width, settings)
    crops = [crop(picture.image, region) for region in regions]
    features = torch.cat([critics.guide.encode(crops[at : at + FOUND]) for at in range(0, len(crops), FOUND)])
    scores = critics.guide.table(features, phrases).cpu()
    left = scores - scores.median(0).values  # of one phrase, as words differ in how high they score anywhere
    least = STANDS_OUT * float(left.max())
    found: list[Candidate] = []
    while left.numel() and float(left.max()) > max(least, 0.0):
        number, phrase = divmod(int(left.argmax()), len(phrases))
        region = replace(regions[number], mass=float(left[number, phrase]))
        found.append(Candidate(region, phrases[phrase]))
        left[:, phrase] = -torch.inf
        left[[alike(region, other) for other in regions]] = -torch.inf
    total = sum(each.region.mass for each in found)
    return [replace(each, region=replace(each.region, mass=each.region.mass / total)) for each in found]


def windows(height: int, width: int, settings: Settings) -> list[Region]:
    """Squares of the smallest place's size, and 1.5 and 2 times as large as far as they may be, half overlapping; less
    where they would be many.
    """
    shorter = min(height, width)
    sizes = [settings.zoom_smallest * factor for factor in (1, 1.5, 2)]
    sides = sorted({max(1, round(size * shorter)) for size in sizes if size <= max(settings.zoom_largest, sizes[0])})
    sides = [min(side, shorter) for side in sides]
    for step in (0.5, 0.75, 1.0):
        found = [
            Region(top, left, side, side, 1.0)
            for side in sides
            for top in _spread(height, side, step)
            for left in _spread(width, side, step)
        ]
        if len(found) <= WINDOWS:
            break
    return found


def _spread(length: int, side: int, step: float) -> list[int]:
    """Where windows of that side begin in 0..length, evenly, at most `step` sides apart."""
    gaps = ceil((length - side) / (side * step))
    return [round(number * (length - side) / gaps) for number in range(gaps + 1)] if gaps else [0]


FINDERS: dict[str, Callable[[Picture, Critics, Settings], list[Candidate]]] = {
    "attention": by_attention,
    "phrases": by_phrases,
    "faces": by_faces,
    "mask": by_mask,
}


def phrases_of(prompt: str) -> list[str]:
    """What the places of a prompt may show; at least the prompt itself."""
    return things(prompt) or [clean_prompt(prompt)]


@torch.no_grad()
def likest(picture: Picture, regions: Sequence[Region], critic: Critic) -> list[str]:
    """The phrase of the prompt that each region shows, as the critic sees it.

    The most similar pair is matched first, and no phrase is used again before all are used: a place that shows nothing
    clear gets the phrase that is still missing.
    """
    if not regions:
        return []
    phrases = phrases_of(picture.prompt)
    scores = critic.table(critic.encode([crop(picture.image, region) for region in regions]), phrases)
    numbers = assign(scores.repeat(1, ceil(len(regions) / len(phrases))))
    return [phrases[number % len(phrases)] for number in numbers]


def name_places(picture: Picture, found: Sequence[Candidate], critic: Critic, region_prompts: str = "") -> list[Place]:
    """The candidates with what each should show: its own of the region prompts (separated by `[SEP]`), or the text
    that its finder knows, or a phrase of the prompt (see `likest`).
    """
    given = {i: text.strip() for i, text in enumerate(region_prompts.split("[SEP]")) if clean_prompt(text)}
    known = [clean_prompt(given.get(number, "")) or each.text for number, each in enumerate(found)]
    free = iter(likest(picture, [each.region for each, text in zip(found, known, strict=True) if not text], critic))
    texts = [text or next(free) for text in known]
    return [
        Place(
            each.region,
            each.name or place_name(text),
            text,
            given.get(number) or painting_prompt(text, picture.prompt),
        )
        for number, (each, text) in enumerate(zip(found, texts, strict=True))
    ]
