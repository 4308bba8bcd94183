"""Axes for the WebUI's X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import scripts

from sgool.settings import Setting
from sgool.webui.arguments import WEBUI_SETTINGS
from sgool.webui.script import OVERRIDES


def add_axes() -> None:
    """Add an axis for every parameter and one for the switch; does nothing where they are, or there is no plot."""
    for data in scripts.scripts_data:
        if data.script_class.__module__ in ("xyz_grid.py", "scripts.xyz_grid"):
            grid = data.module
            there = {option.label for option in grid.axis_options}
            options = [_switch(grid), *(_axis(grid, name, each) for name, each in WEBUI_SETTINGS.items())]
            grid.axis_options.extend(option for option in options if option.label not in there)


def _axis(grid: Any, name: str, setting: Setting) -> Any:
    choices = (lambda: list(setting.choices)) if setting.choices else None
    return grid.AxisOption(f"[SGOOL] {setting.label}", type(setting.default), _set(name), choices=choices)


def _switch(grid: Any) -> Any:
    return grid.AxisOption("[SGOOL] On", str, _set("enabled", lambda x: x == "True"), choices=lambda: ["False", "True"])


def _set(name: str, read: Callable[[Any], Any] = lambda x: x) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, x: Any, xs: Any) -> None:
        # A new dict: the plot copies its processing object shallowly.
        setattr(p, OVERRIDES, {**getattr(p, OVERRIDES, {}), name: read(x)})

    return apply
