"""Saliency guided optimization of diffusion latents (SGOOL, arXiv 2410.10257).

`improve` works on a diffusers pipeline of your own. What is named here is loaded when it is first used, so importing
the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgool.door import Improved, Improver, improve
    from sgool.errors import SgoolError
    from sgool.result import Ending, Progress, Result, Stop
    from sgool.settings import Settings

__version__ = "0.1.0"

_HOMES = {
    "door": ("Improved", "Improver", "improve"),
    "errors": ("SgoolError",),
    "result": ("Ending", "Progress", "Result", "Stop"),
    "settings": ("Settings",),
}

__all__ = ["Ending", "Improved", "Improver", "Progress", "Result", "Settings", "SgoolError", "Stop", "improve"]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"sgool.{home}"), name)
    raise AttributeError(f"module 'sgool' has no attribute {name!r}")
