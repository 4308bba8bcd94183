"""Which places of an image are worth painting again, and what each should show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.generate import Critics
from sgool.guidance.critic import Critic
from sgool.guidance.loss import crop
from sgool.guidance.prompt import clean_prompt
from sgool.region import Region
from sgool.saliency.regions import find_regions
from sgool.settings import Settings
from sgool.zoom.place import Picture, Place
from sgool.zoom.texts import painting_prompt, place_name, subjects

FOUND = 16
"""So many places are looked for, before those of the right size are chosen."""

ORDERS: dict[str, Callable[[Region], float]] = {
    "salience": lambda region: -region.mass,
    "left to right": lambda region: region.left + region.width / 2,
    "small first": lambda region: region.height * region.width,
}


def find_places(picture: Picture, critics: Critics, settings: Settings) -> list[Place]:
    """The places of a picture, in the order in which they are painted; see `sgool.zoom.zoom_in`."""
    found = FINDERS[settings.zoom_by](picture, critics, settings)
    if picture.within is not None:
        found = [region for region in found if (crop(picture.within[None, None], region) > 0.5).any()]
    regions = chosen(found, picture.image, settings)
    return name_places(picture, regions, critics.guide, settings.region_prompt)


def chosen(regions: Sequence[Region], image: Tensor, settings: Settings) -> list[Region]:
    """The regions that stay, in order: those too large to gain anything go, then those beyond the most."""
    limit = settings.zoom_largest * min(image.shape[-2:])
    small = [region for region in regions if max(region.height, region.width) <= limit]
    return sorted(small, key=ORDERS[settings.zoom_order])[: settings.zoom_places]


def by_attention(picture: Picture, critics: Critics, settings: Settings) -> list[Region]:
    """Where people look."""
    return regions_of(critics.detector(picture.image), settings)


def by_mask(picture: Picture, critics: Critics, settings: Settings) -> list[Region]:
    """The parts of the mask."""
    mask = picture.mask
    height, width = picture.image.shape[-2:]
    if mask is None:
        raise SgoolError("Zoom on a mask needs a mask.")
    if tuple(mask.shape) != (height, width):
        raise SgoolError(f"The mask has {mask.shape[-1]}x{mask.shape[-2]} pixels, but the image {width}x{height}.")
    if not (mask > 0.5).any():
        raise SgoolError("The mask is empty.")
    return regions_of((mask > 0.5).float(), settings)


def regions_of(interest: Tensor, settings: Settings) -> list[Region]:
    """The regions of a map [H, W] of what is of interest."""
    return find_regions(
        interest,
        max_regions=FOUND,
        threshold=settings.threshold,
        min_size=settings.zoom_smallest,
        padding=settings.zoom_padding,
    )


FINDERS: dict[str, Callable[[Picture, Critics, Settings], list[Region]]] = {
    "attention": by_attention,
    "mask": by_mask,
}


@torch.no_grad()
def name_places(picture: Picture, regions: Sequence[Region], critic: Critic, region_prompts: str = "") -> list[Place]:
    """The regions with what each should show: its own of the region prompts (separated by `[SEP]`), or the phrase of
    the prompt that the critic finds likest in it.
    """
    given = {i: text.strip() for i, text in enumerate(region_prompts.split("[SEP]")) if clean_prompt(text)}
    phrases = subjects(picture.prompt) or [clean_prompt(picture.prompt)]
    texts: list[str] = []
    for number, region in enumerate(regions):
        if number in given:
            texts.append(clean_prompt(given[number]))
        else:
            scores = critic.table(critic.encode_image(critic.resize(crop(picture.image, region))), phrases)[0]
            texts.append(phrases[int(scores.argmax())])
    return [
        Place(region, place_name(text), text, given.get(number) or painting_prompt(text, picture.prompt, texts))
        for number, (region, text) in enumerate(zip(regions, texts, strict=True))
    ]
