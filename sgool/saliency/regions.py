"""From a saliency map to the few square crops that CLIP is shown."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import ceil

import numpy as np
from torch import Tensor

from sgool.errors import SgoolError

SPECK = 0.05  # a component with less than this share of the heaviest one's saliency is dropped
MAX_IOU = 0.3  # two regions that share more than this of their union become one,
MAX_INSIDE = 0.6  # and so do two where the smaller one lies this far inside the other
FLAT = 1e-3  # a map whose range is below this share of its peak points nowhere


@dataclass(frozen=True)
class Region:
    """A crop: rows top..top+height, columns left..left+width, in pixels, and its share of the saliency, in (0, 1]."""

    top: int
    left: int
    height: int
    width: int
    mass: float


@dataclass(frozen=True)
class _Box:
    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    def intersection(self, other: _Box) -> _Box:
        return _Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def union(self, other: _Box) -> _Box:
        return _Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def squared(self, side: int, height: int, width: int) -> _Box:
        """The box grown about its middle to a square of at least `side`, as far as the height x width image allows."""
        side = max(side, self.bottom - self.top, self.right - self.left)
        top, bottom = _grow(self.top, self.bottom, side, height)
        left, right = _grow(self.left, self.right, side, width)
        return _Box(top, left, bottom, right)

    def overlaps(self, other: _Box) -> bool:
        shared = self.intersection(other).area
        iou = shared / (self.area + other.area - shared)
        return iou > MAX_IOU or shared / min(self.area, other.area) > MAX_INSIDE


def find_regions(
    saliency: Tensor, *, max_regions: int = 3, threshold: float = 0.5, min_size: float = 0.2, padding: float = 0.15
) -> list[Region]:
    """Crops around what stands out in a saliency map [H, W] of values >= 0, the most salient first.

    The map is cut at `threshold` (0 to 1, a share of its peak) and falls into connected components (8-neighbours);
    specks are dropped. The bounding box of each is padded on every side by `padding` times its longer side, grown to
    at least `min_size` times the image's shorter side, and made square, shifted rather than cut at the image's border
    (it stays oblong only where the image is too small). Boxes that overlap much are merged, until none do. At most
    `max_regions` are returned; `mass` is the saliency inside each one's crop, scaled so that the returned ones sum
    to 1. A map that points nowhere gives the whole image as one region.

    Raises SgoolError for a map that is not two-dimensional, empty or not finite, and for parameters out of range.
    """
    if saliency.ndim != 2 or saliency.numel() == 0:
        raise SgoolError(f"A saliency map has the shape [H, W], not {list(saliency.shape)}.")
    if max_regions < 1 or not 0 < threshold <= 1 or not 0 <= min_size <= 1 or padding < 0:
        raise SgoolError(
            "Salient regions need at least 1 region, a threshold above 0 up to 1, a smallest size from 0 to 1 and a "
            f"padding of at least 0, not {max_regions}, {threshold}, {min_size} and {padding}."
        )
    values = saliency.detach().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise SgoolError("The saliency map holds values that are not numbers; the image it was made from is broken.")
    values = values.clip(min=0)
    height, width = values.shape
    if values.max() - values.min() <= FLAT * values.max():
        return [Region(0, 0, height, width, 1.0)]

    smallest = ceil(min_size * min(height, width))
    boxes = []
    for box in _components(values, threshold):
        longer = max(box.bottom - box.top, box.right - box.left)
        boxes.append(box.squared(max(smallest, longer + 2 * ceil(padding * longer)), height, width))

    boxes = _merged(boxes, height, width)
    held = {box: float(values[box.top : box.bottom, box.left : box.right].sum()) for box in boxes}
    chosen = sorted(boxes, key=held.__getitem__, reverse=True)[:max_regions]
    total = sum(held[box] for box in chosen)
    return [Region(b.top, b.left, b.bottom - b.top, b.right - b.left, held[b] / total) for b in chosen]


def _components(values: np.ndarray, threshold: float) -> list[_Box]:
    """Bounding boxes of the connected components of values >= threshold * peak that are no specks."""
    import cv2

    mask = (values >= threshold * values.max()).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    mass = np.bincount(labels.ravel(), weights=values.ravel())[1:]  # label 0 is the rest of the image
    keep = mass >= SPECK * mass.max()
    return [_Box(y, x, y + h, x + w) for x, y, w, h, _ in stats[1:][keep].tolist()]


def _merged(boxes: list[_Box], height: int, width: int) -> list[_Box]:
    """Replace overlapping pairs by the square about both until no pair overlaps; each turn leaves one box fewer."""
    while True:
        pair = next((pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])), None)
        if pair is None:
            return boxes
        boxes = [box for box in boxes if box not in pair]
        boxes.append(pair[0].union(pair[1]).squared(0, height, width))


def _grow(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """Grow start..stop to `length` (at most `limit`) about its middle, shifted to lie within 0..limit."""
    length = min(length, limit)
    start = min(max(start - (length - (stop - start)) // 2, 0), limit - length)
    return start, start + length
