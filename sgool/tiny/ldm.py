"""LDM's UNet for levels whose width is not a multiple of the first width. Loaded only by the WebUI, which has `ldm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm.modules.diffusionmodules import openaimodel


class Ratio(float):
    """A factor whose product with a width is an integer."""

    def __mul__(self, width: float) -> int:
        return round(float(self) * width)

    __rmul__ = __mul__


class UNetModel(openaimodel.UNetModel):
    """The class named in the exported configuration (sgool.tiny.export). LDM's own class takes only whole multiples."""

    def __init__(self, *, channel_mult: Sequence[float], **options: Any) -> None:
        super().__init__(channel_mult=[Ratio(multiple) for multiple in channel_mult], **options)
