"""Zoom: what people look at is painted again at the model's full resolution, and kept only where it is better.

`zoom_in` does all of it, for every front door. A front door brings what paints a place: `sgool.zoom.paint.Painter`, or
the WebUI's own inpainting.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sgool.generate import Critics
from sgool.settings import Settings
from sgool.zoom.find import find_places
from sgool.zoom.keep import Judge, zoom
from sgool.zoom.place import Paint, Picture, Place, Repaint, Verdict, Zoomed, ZoomProgress


def zoom_in(
    picture: Picture, critics: Critics, settings: Settings, paint: Paint, progress: ZoomProgress | None = None
) -> Zoomed:
    """Find the places of a picture as the settings say, and paint them again.

    Whatever fails, the image comes out as it was or as far as it came; `Zoomed.ended` says why.
    """
    faces = critics.faces if settings.zoom_by == "faces" else None
    try:
        places = find_places(picture, critics, settings)
    except Exception as error:
        return Zoomed(picture.image, error=error)
    judge = Judge(critics.selector, picture.prompt, settings.zoom_good) if settings.zoom_judge else None
    within = picture.mask if picture.within is None and settings.zoom_by == "mask" else picture.within
    zoomed = zoom(picture.image, places, paint if within is None else clipped(paint, within), judge, progress)
    return replace(zoomed, note=faces.note if faces else "")


def clipped(paint: Paint, within: Tensor) -> Paint:
    """Paint only where a mask [H, W] in [0, 1] is above 0; a soft edge is blended."""

    def inside(image: Tensor, place: Place, number: int) -> Tensor:
        share = within.to(image)
        return torch.where(share > 0, torch.lerp(image, paint(image, place, number), share), image)

    return inside


__all__ = [
    "Paint",
    "Picture",
    "Place",
    "Repaint",
    "Verdict",
    "ZoomProgress",
    "Zoomed",
    "find_places",
    "zoom",
    "zoom_in",
]
