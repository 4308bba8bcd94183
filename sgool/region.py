"""A salient region: where it lies in an image, and how much of the saliency it holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A crop: rows top..top+height, columns left..left+width, in pixels, and its share of the saliency, in (0, 1].

    text: what the crop should show; "" where that is not known.
    """

    top: int
    left: int
    height: int
    width: int
    mass: float
    text: str = ""
