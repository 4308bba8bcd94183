"""What differs between the WebUIs that the extension runs in. Only this package knows which of them it is."""

from __future__ import annotations

import functools
import importlib.util

from sgool.webui.hosts.automatic import Automatic, Denoiser

__all__ = ["Automatic", "Denoiser", "host"]


@functools.cache
def host() -> Automatic:
    """The host of the running program, chosen by the packages that only that program has."""
    if importlib.util.find_spec("modules_forge") is None:
        return Automatic()
    if importlib.util.find_spec("ldm_patched"):
        from sgool.webui.hosts.reforge import ReForge

        return ReForge()
    from sgool.webui.hosts.forge import Forge

    return Forge()
