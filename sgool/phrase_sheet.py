"""The picture of the phrases: each with its presence and its map, over the picture before and the one after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sgool.pictures import BLUE, GRAY, INK, PALE, Type, paper, wrap, write
from sgool.result import Presence

SIDE = 256
"""Pixels of the longer side of a picture on the sheet."""

COLUMN = 300
"""Pixels of the column with the words."""

MARK = (230, 159, 0)
"""Orange of Okabe and Ito's palette, which people of every color vision tell from blue and from gray."""

EDGE = 0.5
"""The outline goes where the map has this share of its largest value."""


def spotlight(image: np.ndarray, heat: Tensor | np.ndarray) -> np.ndarray:
    """The picture uint8 RGB [H, W, 3], as it is where the map is high, and dark and gray where it is low.

    heat: [H, W] in [0, 1]. Where the map is over half its peak it is outlined in orange and black: what is told by
    light alone is told to everyone.
    """
    import cv2

    height, width = image.shape[:2]
    values = np.asarray(heat, np.float32).clip(0, 1)
    values = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    light = np.sqrt(values)[..., None]
    gray = image.mean(2, keepdims=True).repeat(3, 2)
    lit = (0.25 * gray * (1 - light) + image * light).round().clip(0, 255).astype(np.uint8)
    if values.max() > 0:
        inside = (values >= EDGE * values.max()).astype(np.uint8)
        outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        thick = max(1, round(min(height, width) / 170))
        cv2.drawContours(lit, outlines, -1, INK, 3 * thick, cv2.LINE_AA)
        cv2.drawContours(lit, outlines, -1, MARK, thick, cv2.LINE_AA)
    return lit


def phrase_sheet(before: np.ndarray, after: np.ndarray, found: Sequence[Presence]) -> np.ndarray:
    """One row for each phrase: the words, the presence in numbers and as bars, and the map over both pictures.

    before, after: uint8 RGB [H, W, 3].
    """
    gap = 16
    heads = paper(40, COLUMN + 2 * (SIDE + gap) + 2 * gap)
    for column, word in enumerate(("before", "after")):
        write(heads, word, (COLUMN + gap + column * (SIDE + gap) + SIDE // 2, 14), Type(16, INK, "center", bold=True))
    return np.vstack([heads, *(_row(before, after, each, gap) for each in found)])


def _row(before: np.ndarray, after: np.ndarray, each: Presence, gap: int) -> np.ndarray:
    shown = [_shown(image, heat) for image, heat in ((before, each.map_before), (after, each.map_after))]
    height = max(picture.shape[0] for picture in shown)
    canvas = paper(height + gap, COLUMN + 2 * (SIDE + gap) + 2 * gap)
    top = 8
    for line in wrap(each.phrase, COLUMN - gap, 18)[:3]:
        write(canvas, line, (gap, top), Type(18, INK, bold=True))
        top += 28
    for word, share in (("before", each.before), ("after", each.after)):
        top += 10
        write(
            canvas, f"{word} {100 * share:.0f} %" + ("" if share >= 0.5 else ", not found"), (gap, top), Type(16, INK)
        )
        top += 24
        _bar(canvas, (gap, top), COLUMN - 2 * gap, share)
        top += 14
    for column, picture in enumerate(shown):
        left = COLUMN + gap + column * (SIDE + gap) + (SIDE - picture.shape[1]) // 2
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def _bar(canvas: np.ndarray, place: tuple[int, int], width: int, share: float) -> None:
    import cv2

    left, top = place
    cv2.rectangle(canvas, (left, top), (left + width, top + 8), PALE, -1)
    cv2.rectangle(canvas, (left, top), (left + round(width * share), top + 8), BLUE, -1)
    cv2.line(canvas, (left + width // 2, top - 2), (left + width // 2, top + 10), GRAY, 1)


def _shown(image: np.ndarray, heat: Tensor | None) -> np.ndarray:
    """The picture at its size on the sheet, with its map where there is one."""
    import cv2

    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return small if heat is None else spotlight(small, heat)
