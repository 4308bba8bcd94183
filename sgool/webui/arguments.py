"""What a run is asked for: positional values in the order of the controls, or one dict by name. Knows no WebUI."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from sgool.presets import PRESETS, resolve
from sgool.settings import ABOUT, DEFAULTS, About, SettingError, Settings

WEBUI: dict[str, About] = {name: about for name, about in ABOUT.items() if about.webui}
"""The settings that the WebUI offers, in the order of the positional arguments, after the switch."""

_FIELDS = ("enabled", *WEBUI)

PICTURES = ("zoom_mask", "look_at")
"""Fields of the dict that are no settings: where the zoom may paint, and where to look; see `sgool.webui.masks`."""


def parse(args: Sequence[Any], overrides: Mapping[str, Any] | None = None, model: str = "") -> Settings | None:
    """The settings of a run, or None when SGOOL is off.

    args: (enabled, value of each of WEBUI ...), or a dict as the first (then the rest is not looked at) with any of
    "enabled" (default true), "preset", PICTURES and the settings' names. overrides: settings, or "enabled", that a plot
    sets over these. model: see `sgool.presets.resolve`. Raises SettingError, naming the field.
    """
    by_name = bool(args) and isinstance(args[0], Mapping)
    given = dict(args[0]) if by_name else dict(zip(_FIELDS, args, strict=False))
    given.update(overrides or {})
    for name in PICTURES if by_name else ():
        given.pop(name, None)
    enabled = given.pop("enabled", by_name)
    if not isinstance(enabled, bool):
        raise SettingError("enabled", f"must be true or false, not {reprlib.repr(enabled)}")
    if not enabled:
        return None
    preset = given.pop("preset", None)
    if preset not in (None, *PRESETS):  # by comparison: what JSON brings may have no hash
        raise SettingError("preset", f"must be one of {', '.join(PRESETS)}, not {reprlib.repr(preset)}")
    for name in given:
        if name not in WEBUI:
            raise SettingError(
                repr(name), f"is no field; the fields are {', '.join(('enabled', 'preset', *PICTURES, *WEBUI))}"
            )
    values = {name: _plain(name, value) for name, value in given.items() if value is not None}
    return resolve(values, preset=preset or "", model=model)


def _plain(name: str, value: Any) -> Any:
    """Sliders and pasted numbers come as floats."""
    whole = isinstance(DEFAULTS[name], int) and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value
