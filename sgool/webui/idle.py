"""Which settings have no part in a run. Zoom makes use of some that the method alone would not."""

from __future__ import annotations

from collections.abc import Iterable

from sgool.presets import ignored, unused
from sgool.settings import DEFAULTS, Settings
from sgool.webui.arguments import WEBUI

ZOOM = tuple(name for name in WEBUI if WEBUI[name].group.startswith("Zoom") and name != "zoom")
"""What does nothing while zoom is off."""

_OF_ZOOM = ("saliency", "region_prompt", "threshold")
"""What a zoom makes use of, whatever the method."""


def idle(settings: Settings) -> tuple[str, ...]:
    """Of the WebUI's settings those that change nothing: with this method, this start, and without zoom."""
    without = _but_for_zoom(ignored(WEBUI, settings.method, settings.start), settings)
    return (*without, *(() if settings.zoom else ZOOM))


def idle_changes(settings: Settings, model: str) -> tuple[str, ...]:
    """Those that differ from what method and model set, and do nothing; see `sgool.presets.unused`.

    What is set for a zoom that is off is not among them: that is an answer, and no mistake.
    """
    return _but_for_zoom(unused(settings, model), settings)


def _but_for_zoom(names: Iterable[str], settings: Settings) -> tuple[str, ...]:
    if not settings.zoom:
        return tuple(names)
    used = set(DEFAULTS) if settings.zoom_iterations else set(_OF_ZOOM)
    return tuple(name for name in names if name not in used)
