"""Zoom as methods of ``compare``: on a plain image, on an optimized one, and the whole image painted again instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgool.backends.diffusers import DiffusersBackend
from sgool.generate import Critics, Request, generate
from sgool.region import Region
from sgool.settings import Settings
from sgool.zoom import Picture, Place, Verdict, zoom, zoom_in
from sgool.zoom.keep import Judge
from sgool.zoom.paint import Painter

ZOOMS: dict[str, dict[str, Any]] = {
    "resampled": {"zoom": True},
    "zoom": {"zoom": True},
    "zoom-4": {"zoom": True, "zoom_iterations": 4},
    "sgool+zoom": {"zoom": True},
}
"""What each zooming method sets."""


@dataclass(frozen=True)
class Painted:
    """One place of a trial: whether the selector kept it, and how much the judge's score of the whole image gains.

    crop_gain: how much its score of the place by itself gains, for the place's own text.
    """

    kept: bool
    gain: float
    crop_gain: float


@dataclass(frozen=True)
class Made:
    """An image, the forward equivalents it cost, and the places that were painted."""

    image: Tensor
    equivalents: int
    places: tuple[Painted, ...]


@torch.no_grad()
def zoomed(
    backend: DiffusersBackend,
    critics: Critics,
    request: Request,
    settings: tuple[Settings, Settings],
    judged: Callable[..., float],
    repaints: int = 0,
) -> Made:
    """Make an image, and zoom into it.

    settings: of the image, and of the zoom. judged: the judge's score of an image, for the prompt or a text that is
    given. repaints: paint the whole image so often instead; each stays where the selector prefers it.
    """
    first, closer = settings
    with torch.enable_grad():
        result = generate(backend, critics, request, first)
    image = result.best.image
    painter = Painter(backend, critics, request, closer)
    if repaints:
        whole = Place(Region(0, 0, image.shape[-2], image.shape[-1], 1.0), "", request.prompt, request.prompt)
        done = zoom(image, [whole] * repaints, painter, Judge(critics.selector, request.prompt))
    else:
        done = zoom_in(Picture(image, request.prompt), critics, closer, painter)
    places, now = [], image
    for each in done.repaints:
        if each.crop_before is None or each.crop_after is None:
            continue
        after, region = now.clone(), each.place.region
        after[..., region.top : region.top + region.height, region.left : region.left + region.width] = each.crop_after
        by_itself = judged(each.crop_after, each.place.text) - judged(each.crop_before, each.place.text)
        places.append(Painted(each.verdict is Verdict.KEPT, judged(after) - judged(now), by_itself))
        now = after if each.verdict is Verdict.KEPT else now
    return Made(done.image, result.forward_equivalents + painter.forward_equivalents, tuple(places))
