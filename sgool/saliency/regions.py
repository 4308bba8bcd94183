"""Turns a saliency map into a few square crops for the guide."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import ceil

import numpy as np
from torch import Tensor

from sgool.errors import SgoolError
from sgool.region import Region

EXTENT = 0.5  # a place extends as far as the saliency is at least this share of the place's peak
SPECK = 0.05  # a place with less than this share of the heaviest place's saliency is dropped
LOOKS = 16  # at most this many places are found, before the heaviest are chosen
MAX_IOU = 0.3  # two regions with a larger intersection over union are merged
MAX_INSIDE = 0.6  # two regions are merged if a larger share of the smaller one lies inside the other
FLAT = 1e-3  # a map is flat if its range is at most this share of its peak


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
        """The box grown around its center to a square of at least `side`, as far as the height x width image allows."""
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
    """Square crops around the salient places of a saliency map [H, W] with values >= 0, most salient first.

    Places are found one after another, like fixations (inhibition of return: Itti, Koch and Niebur, 1998). The next
    place is at the highest peak that no crop covers yet. The search ends when this peak is below `threshold` (0 to 1)
    times the first one. A place is the connected component (8 neighbors) around its peak where the saliency is at least
    half the peak, so a faint place beside a bright one keeps its full extent. Places with little saliency are dropped.

    The bounding box of a place is padded on every side by `padding` times its longer side, grown to at least `min_size`
    times the image's shorter side, and made square. At the image's border the box is shifted, not cut; it stays oblong
    only where the image is too small. Boxes that overlap strongly are merged until none do. At most `max_regions` are
    returned. `mass` is the saliency inside a crop, scaled to a sum of 1 over the returned regions. A flat map gives the
    whole image as the only region.

    Raises SgoolError for a map that is not two-dimensional, is empty or is not finite, and for parameters out of range.
    """
    if saliency.ndim != 2 or saliency.numel() == 0:
        raise SgoolError(f"A saliency map has the shape [H, W], not {list(saliency.shape)}.")
    if max_regions < 1 or not 0 < threshold <= 1 or not 0 <= min_size <= 1 or padding < 0:
        raise SgoolError(
            "Salient regions need max_regions of at least 1, threshold above 0 and at most 1, min_size from 0 to 1 and "
            f"padding of at least 0, not {max_regions}, {threshold}, {min_size} and {padding}."
        )
    values = saliency.detach().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise SgoolError("The saliency map contains NaN or infinite values because its image is broken.")
    values = values.clip(min=0)
    height, width = values.shape
    if values.max() - values.min() <= FLAT * values.max():
        return [Region(0, 0, height, width, 1.0)]

    boxes = _merged(_places(values, threshold, ceil(min_size * min(height, width)), padding), height, width)
    held = {box: float(values[box.top : box.bottom, box.left : box.right].sum()) for box in boxes}
    chosen = sorted(boxes, key=held.__getitem__, reverse=True)[:max_regions]
    total = sum(held[box] for box in chosen)
    return [Region(b.top, b.left, b.bottom - b.top, b.right - b.left, held[b] / total) for b in chosen]


def grown(region: Region, size: tuple[int, int], smallest: int, padding: float) -> Region:
    """The square around a region of an image of that height and width, padded and grown as `find_regions` does it.

    smallest: the smallest side in pixels.
    """
    box = _Box(region.top, region.left, region.top + region.height, region.left + region.width)
    longer = max(region.height, region.width)
    box = box.squared(max(smallest, longer + 2 * ceil(padding * longer)), *size)
    return Region(box.top, box.left, box.bottom - box.top, box.right - box.left, region.mass)


def alike(one: Region, other: Region) -> bool:
    """Whether two regions overlap so strongly that `find_regions` would make one of them."""
    first, second = (_Box(r.top, r.left, r.top + r.height, r.left + r.width) for r in (one, other))
    return first.overlaps(second)


def _places(values: np.ndarray, threshold: float, smallest: int, padding: float) -> list[_Box]:
    """The crops around the salient places, without specks. smallest: the smallest side of a crop in pixels."""
    import cv2

    height, width = values.shape
    rows, columns = np.ogrid[:height, :width]
    around = cv2.dilate(values, np.ones((3, 3)), borderType=cv2.BORDER_REPLICATE)
    unseen = np.where((values >= around) & (values >= threshold * values.max()), values, 0.0)  # peaks only, no slopes
    nearest = np.full(values.shape, np.inf)  # squared distance to the nearest earlier peak
    places: list[tuple[float, _Box]] = []
    while unseen.any() and len(places) < LOOKS:
        y, x = divmod(int(unseen.argmax()), width)
        distance = (rows - y) ** 2 + (columns - x) ** 2
        near = (values >= EXTENT * values[y, x]) & (distance <= nearest)  # the rest belongs to an earlier peak
        nearest = np.minimum(nearest, distance)
        _, labels = cv2.connectedComponents(near.astype(np.uint8), connectivity=8)
        own = labels == labels[y, x]
        (top, bottom), (left, right) = (np.flatnonzero(own.any(axis))[[0, -1]].tolist() for axis in (1, 0))
        longer = max(bottom - top, right - left) + 1
        side = max(smallest, longer + 2 * ceil(padding * longer))
        box = _Box(top, left, bottom + 1, right + 1).squared(side, height, width)
        places.append((float(values[own].sum()), box))
        unseen[box.top : box.bottom, box.left : box.right] = 0
    heaviest = max(mass for mass, _ in places)
    return [box for mass, box in places if mass >= SPECK * heaviest]


def _merged(boxes: list[_Box], height: int, width: int) -> list[_Box]:
    """Replace overlapping pairs with one square around both until no pair overlaps. Each turn leaves one box fewer."""
    while True:
        pair = next((pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])), None)
        if pair is None:
            return boxes
        boxes = [box for box in boxes if box not in pair]
        boxes.append(pair[0].union(pair[1]).squared(0, height, width))


def _grow(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """Grow start..stop around its center to `length` (at most `limit`), shifted to lie within 0..limit."""
    length = min(length, limit)
    start = min(max(start - (length - (stop - start)) // 2, 0), limit - length)
    return start, start + length
