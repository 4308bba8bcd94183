"""Describes a name of the WebUI. Used in both the real and the fake WebUI."""

from __future__ import annotations

import importlib
import inspect
from typing import Any


def describe(name: str, roots: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters of a function or class, and the bases of a class. {} for other objects, None for a missing name.

    name: a dotted name that begins with one of `roots` or in the package `modules`.
    """
    first, *rest = name.split(".")
    try:
        thing = roots[first] if first in roots else importlib.import_module(f"modules.{first}")
        for part in rest:
            thing = getattr(thing, part)
    except (ImportError, AttributeError):
        return None
    if not callable(thing):
        return {}
    try:
        parameters = [each for each in inspect.signature(thing).parameters.values() if each.name != "self"]
    except (TypeError, ValueError):
        return {}
    required = [each.name for each in parameters if each.default is each.empty and each.kind not in _MANY]
    return {
        "names": [each.name for each in parameters if each.kind not in _MANY],
        "required": required,
        "more": [str(each.kind) for each in parameters if each.kind in _MANY],
        "bases": [each.__name__ for each in inspect.getmro(thing)[1:]] if inspect.isclass(thing) else [],
    }


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
