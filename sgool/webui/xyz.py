"""Axes for the WebUI's X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from modules import scripts

from sgool.settings import DEFAULTS
from sgool.webui.arguments import WEBUI, parse
from sgool.webui.script import OVERRIDES


def add_axes() -> None:
    """Add an axis for every setting and one for the switch. Does nothing if the axes exist or there is no plot."""
    for data in scripts.scripts_data:
        if data.script_class.__module__ in ("xyz_grid.py", "scripts.xyz_grid"):
            grid = data.module
            there = {option.label for option in grid.axis_options}
            options = [_axis(grid, "enabled", "On", str, ("False", "True"), _truth)]
            for name, about in WEBUI.items():
                if isinstance(DEFAULTS[name], bool):  # bool("False") is true
                    options.append(_axis(grid, name, about.label, str, ("False", "True"), _truth))
                    continue
                options.append(_axis(grid, name, about.label, type(DEFAULTS[name]), about.choices or about.suggestions))
            grid.axis_options.extend(option for option in options if option.label not in there)


def _plain(value: Any) -> Any:
    """Round a float, because the plot adds up a range step by step and may end slightly beyond the last value."""
    return round(value, 8) if isinstance(value, float) else value


def _axis(
    grid: Any, name: str, label: str, kind: type, choices: Sequence[str], read: Callable[[Any], Any] = _plain
) -> Any:
    def apply(p: Any, x: Any, xs: Any) -> None:
        # A new dict, because the plot makes shallow copies of its processing object.
        setattr(p, OVERRIDES, {**getattr(p, OVERRIDES, {}), name: read(x)})

    def confirm(p: Any, xs: Any) -> None:
        """Checks the values before the first image. Raises SgoolError, which names the setting."""
        for x in xs:
            parse(({name: read(x)},))

    offered = (lambda: list(choices)) if choices else None
    return grid.AxisOption(f"[SGOOL] {label}", kind, apply, confirm=confirm, choices=offered)


def _truth(text: str) -> bool | str:
    """True or False in upper or lower case, as on the plot's own axes."""
    return {"true": True, "false": False}.get(text.lower(), text)
