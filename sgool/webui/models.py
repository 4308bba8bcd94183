"""The critics of the last run, kept for the next; off the GPU while nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import devices, paths
from torch import nn

from sgool.generate import Critics, load_critics
from sgool.guidance.half import is_half
from sgool.needs import Needs, fetch, needs
from sgool.settings import Settings
from sgool.webui import progress
from sgool.webui.inference import normal_mode

_last: tuple[Needs, Critics] | None = None


def models_dir() -> Path:
    """Where weights are kept: models/sgool in the WebUI's folder."""
    return Path(paths.models_path) / "sgool"


def prepare(settings: Settings) -> None:
    """Download what these settings need and is not here.

    Raises SgoolError, which names all files that cannot be had, and Stop where the user stops the download.
    """
    with progress.downloading() as report:
        fetch(needs(settings), models_dir(), report)


@contextmanager
def critics(settings: Settings) -> Iterator[Critics]:
    """The critics and the detector of these settings on the WebUI's device.

    Raises SgoolError where their weights cannot be loaded.
    """
    with normal_mode():  # a critic that was made in inference mode could never be a guide
        loaded = _loaded(needs(settings))
        try:
            yield loaded.to(devices.device, half=is_half(devices.dtype))  # float32 with --no-half
        finally:
            loaded.to(devices.cpu)


def _loaded(wanted: Needs) -> Critics:
    global _last
    if _last is None or _last[0] != wanted:
        _last = None  # the old ones go before the new ones come
        progress.tell("SGOOL loads its networks")
        loaded = load_critics(wanted, models_dir(), devices.cpu)
        for critic in (loaded.guide, loaded.selector):
            for each in getattr(critic, "critics", (critic,)):  # of a sum, each of its critics
                _plain_gelus(each)
        _last = wanted, loaded
    return _last[1]


def _plain_gelus(critic: Any) -> None:
    """Give the critic's networks torch's own GELU.

    With a GPU the WebUI gives every CLIP of open_clip a GELU of its own, for the text encoders of Stable Diffusion 2.
    Under --upcast-sampling that one returns the UNet's half precision, which a CLIP in float32 cannot take.
    """
    for network in [each for each in vars(critic).values() if isinstance(each, nn.Module)]:
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.GELU):
                    setattr(module, name, nn.GELU(child.approximate))
