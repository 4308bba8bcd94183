"""What a run is asked for: positional values in the order of the controls, or one dict by name. Knows no WebUI."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from sgool.errors import SgoolError
from sgool.settings import PRESETS, SETTINGS, Setting, settings

WEBUI_SETTINGS: dict[str, Setting] = {k: v for k, v in SETTINGS.items() if k != "guidance_scale"}
"""The parameters that the WebUI offers, in the order of its controls, after the switch. The CFG scale is its own."""

_NAMES = ("clip_model", "clip_tag", "selector_model", "selector_tag")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def parse(args: Sequence[Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The checked settings of a run, or None when SGOOL is off.

    args: (enabled, value of each of WEBUI_SETTINGS ...), or a dict as the first (then the rest is not looked at) with
    any of "enabled" (default true), "preset" and the settings' names. overrides: settings, or "enabled", that a plot
    sets over these. Raises SgoolError, naming the field.
    """
    given = dict(args[0]) if args and isinstance(args[0], Mapping) else dict(zip(_FIELDS, args, strict=False))
    given.update(overrides or {})
    enabled = given.pop("enabled", bool(args) and isinstance(args[0], Mapping))
    if not isinstance(enabled, bool):
        raise SgoolError(f"enabled must be true or false, not {reprlib.repr(enabled)}.")
    if not enabled:
        return None
    preset = given.pop("preset", None)
    if preset not in (None, *PRESETS):  # by comparison: what JSON brings may have no hash
        raise SgoolError(f"preset must be one of {', '.join(PRESETS)}, not {reprlib.repr(preset)}.")
    for name in given:
        if name not in WEBUI_SETTINGS:
            raise SgoolError(f"There is no field {name!r}; known are enabled, preset, {', '.join(WEBUI_SETTINGS)}.")
    values = settings(PRESETS.get(preset, {}) | {k: _plain(k, v) for k, v in given.items() if v is not None})
    for name in _NAMES:
        if not _NAME.fullmatch(values[name]):
            raise SgoolError(f"{name} must be a plain name (letters, digits and . _ - only), not {values[name]!r}.")
    return values


_FIELDS = ("enabled", *WEBUI_SETTINGS)


def _plain(name: str, value: Any) -> Any:
    """Sliders and pasted numbers come as floats."""
    whole = isinstance(SETTINGS[name].default, int) and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value
