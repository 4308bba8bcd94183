"""Zoom: what people look at is painted again at the model's full resolution, and kept only where it is better.

`zoom_in` does all of it, for every front door. A front door brings what paints a place: `sgool.zoom.paint.Painter`, or
the WebUI's own inpainting.
"""

from __future__ import annotations

from sgool.generate import Critics
from sgool.settings import Settings
from sgool.zoom.find import find_places
from sgool.zoom.keep import Judge, zoom
from sgool.zoom.place import Paint, Picture, Place, Repaint, Verdict, Zoomed, ZoomProgress


def zoom_in(
    picture: Picture, critics: Critics, settings: Settings, paint: Paint, progress: ZoomProgress | None = None
) -> Zoomed:
    """Find the places of a picture as the settings say, and paint them again.

    Raises SgoolError where `zoom_by` is "mask" and the picture's mask is not there, is empty, or has another size.
    """
    places = find_places(picture, critics, settings)
    judge = Judge(critics.selector, picture.prompt, settings.zoom_good) if settings.zoom_judge else None
    return zoom(picture.image, places, paint, judge, progress)


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
