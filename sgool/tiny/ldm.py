"""LDM's UNet with levels whose width is no multiple of the first's. Loaded by the WebUI, which has `ldm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm.modules.diffusionmodules import openaimodel


class Ratio(float):
    """A factor whose product with a width is a width again."""

    def __mul__(self, width: float) -> int:
        return round(float(self) * width)

    __rmul__ = __mul__


class UNetModel(openaimodel.UNetModel):
    """What the exported configuration (sgool.tiny.export) names; LDM's own takes whole multiples only."""

    def __init__(self, *, channel_mult: Sequence[float], **options: Any) -> None:
        super().__init__(channel_mult=[Ratio(multiple) for multiple in channel_mult], **options)
