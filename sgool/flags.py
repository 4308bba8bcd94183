"""The settings as flags of the command line: their names, and what --help says of them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from sgool.errors import SgoolError
from sgool.presets import METHODS, MODELS, ignored
from sgool.settings import ABOUT, DEFAULTS, About, SettingError

METAVARS = {int: "N", float: "X", str: "TEXT"}


def flag(name: str) -> str:
    """guidance_scale -> --guidance-scale."""
    return "--" + name.replace("_", "-")


def sentence(error: SgoolError) -> str:
    """The error's message, in which a setting goes by the name of its flag."""
    if isinstance(error, SettingError) and error.name in ABOUT:
        return f"{flag(error.name)} {error.problem}."
    return str(error)


def add_settings(
    command: argparse.ArgumentParser, model: str | None = "", names: Collection[str] = tuple(ABOUT)
) -> None:
    """A flag for each of the settings, in the groups that the WebUI shows.

    model: whose defaults --help shows; "": all of them; None: none, where each method has its own.

    What the user does not give is not in the namespace: the defaults are `sgool.presets.resolve`'s.
    """
    for group in sorted({ABOUT[name].group for name in names if ABOUT[name].cli}, key=_place):
        flags = command.add_argument_group(f"settings: {group.lower()}" if group else "settings")
        for name, about in ABOUT.items():
            if about.group == group and about.cli and name in names:
                flags.add_argument(
                    flag(name),
                    default=argparse.SUPPRESS,
                    help=f"{about.help}{_bounds(about)}{_default(name, model)}".replace("%", "%%"),
                    **_value(name, about),
                )


def _place(group: str) -> tuple[bool, bool, int]:
    """The group that the WebUI shows at first sight comes first, what is for experts last."""
    return group == "Expert", group != "", [about.group for about in ABOUT.values()].index(group)


def _value(name: str, about: About) -> dict[str, Any]:
    """How a flag takes its value: --zoom and --no-zoom take none."""
    kind = type(DEFAULTS[name])
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": kind, "metavar": _metavar(name, about)}


def _metavar(name: str, about: About) -> str:
    listed = about.choices or (*about.suggestions, "...")
    return "{" + ",".join(listed) + "}" if len(listed) > 1 else METAVARS[type(DEFAULTS[name])]


def _bounds(about: About) -> str:
    if about.above is not None:
        return f"; above {about.above:g}, at most {about.high:g}"
    return "" if about.low is None else f"; {about.low:g} to {about.high:g}"


def _default(name: str, model: str | None) -> str:
    if model is None:
        return ""
    general = DEFAULTS[name]
    if general == "":
        return ""
    told = [f"default {_shown(MODELS[model].get(name, general) if model else general)}"]
    if not model and name in MODELS["tiny"]:
        told.append(f"embedded model {_shown(MODELS['tiny'][name])}")
    if name == "method":
        told += [f"{method} sets {values}" for method in METHODS if (values := _own_values(method))]
    return f" ({'; '.join(told)})"


def _own_values(method: str) -> str:
    own = METHODS[method]
    return " ".join(f"{flag(name)} {_shown(own[name])}" for name in own if name not in ignored(own, method))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
