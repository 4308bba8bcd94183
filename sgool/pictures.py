"""Pictures of a run: saliency overlay, loss curve, before and after. OpenCV and numpy only; arrays are uint8 RGB."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.region import Region

INK, GRAY, PALE, PAPER = (38, 38, 44), (120, 120, 128), (228, 228, 232), (255, 255, 255)
BLUE, ORANGE, GREEN = (46, 104, 192), (222, 118, 28), (34, 146, 84)


def to_uint8(image: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] RGB of an image [1, 3, H, W] or [3, H, W] in [0, 1]; values outside are clipped."""
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != 3:
        raise SgoolError(f"A picture needs the shape [1, 3, H, W] or [3, H, W], not {list(image.shape)}.")
    pixels = image.detach().float().clamp(0, 1).mul(255).round()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def to_tensor(picture: np.ndarray) -> Tensor:
    """The image [1, 3, H, W] in [0, 1] of a picture, uint8 RGB [H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def png(array: np.ndarray) -> bytes:
    """A uint8 RGB array [H, W, 3] as a PNG file."""
    import cv2

    return cv2.imencode(".png", cv2.cvtColor(array, cv2.COLOR_RGB2BGR))[1].tobytes()


def overlay(image: np.ndarray, saliency: Tensor | np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """The saliency map as a heat map over the image, and its regions outlined and numbered from 1.

    image: uint8 RGB [H, W, 3]. saliency: [H, W] (or with leading 1s) of any scale, at least 0. Images below 512 pixels
    are enlarged up to four times first, so that the numbers can be read.
    """
    import cv2

    factor = min(4, max(1, round(512 / min(image.shape[:2]))))
    height, width = image.shape[0] * factor, image.shape[1] * factor
    picture = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    heat = saliency.detach().cpu().numpy() if isinstance(saliency, Tensor) else np.asarray(saliency)
    heat = cv2.resize(heat.astype(np.float32).reshape(heat.shape[-2:]), (width, height))
    heat = np.clip(heat / max(float(heat.max()), 1e-12), 0, 1)
    color = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    # The image shows through everywhere, fully where nobody looks.
    share = (0.65 * np.sqrt(heat))[..., None]
    canvas = np.ascontiguousarray((picture * (1 - share) + color * share).round().astype(np.uint8))
    line = max(2, round(min(height, width) / 220))
    corners = [(r.left, r.top, r.left + r.width, r.top + r.height) for r in regions]
    boxes = [(a * factor, b * factor, c * factor - 1, d * factor - 1) for a, b, c, d in corners]
    for left, top, right, bottom in boxes:
        cv2.rectangle(canvas, (left, top), (right, bottom), INK, 2 * line, cv2.LINE_AA)
        cv2.rectangle(canvas, (left, top), (right, bottom), PAPER, line, cv2.LINE_AA)
    size = max(16, min(height, width) // 24)
    for number, (left, top, _, _) in enumerate(boxes, 1):
        label_height, label_width = size + 8, _text_width(str(number), size) + size
        cv2.rectangle(canvas, (left, top), (left + label_width, top + label_height), PAPER, -1)
        write(canvas, str(number), (left + label_width // 2, top + 4), Type(size, INK, "center"))
    return canvas


def loss_curve(losses: Sequence[float], scores: Sequence[float], best: int) -> np.ndarray:
    """The guide's loss and the selector's score per iteration, side by side; without scores the loss alone.

    best: the iteration of the best score, marked in the panel of the scores (-1: none). It need not be the lowest loss.
    """
    curves = (
        (losses, _Curve("Loss", "of the guide, lower is better", BLUE)),
        (scores, _Curve("Score", "of the selector, higher is better", ORANGE, best)),
    )
    panels = [_plot(values, curve) for values, curve in curves if len(values)]
    if not panels:
        raise SgoolError("A loss curve needs at least one value.")
    return np.hstack(panels)


def comparison(
    before: np.ndarray,
    saliency_overlay: np.ndarray,
    after: np.ndarray,
    score_before: float,
    score_after: float,
    prompt: str,
) -> np.ndarray:
    """Three pictures side by side under their titles; below them both scores and the prompt (at most three lines)."""
    import cv2

    height = min(768, max(384, before.shape[0]))
    pictures = []
    for picture in (before, saliency_overlay, after):
        width = round(picture.shape[1] * height / picture.shape[0])
        way = cv2.INTER_AREA if picture.shape[0] > height else cv2.INTER_CUBIC
        pictures.append(cv2.resize(picture, (width, height), interpolation=way))
    size = max(16, height // 24)
    gap, line = size, round(1.6 * size)
    total = sum(p.shape[1] for p in pictures) + gap * (len(pictures) + 1)
    lines = wrap(prompt, total - 2 * gap, size)[:3]
    canvas = paper(gap + line + height + 2 * line + gap // 2 + line * len(lines) + gap // 2, total)
    change = score_after - score_before
    notes = (f"score {score_before:.4f}", "where people look", f"score {score_after:.4f} ({change:+.4f})")
    colors = (GRAY, GRAY, GREEN if change > 0 else GRAY)
    x, top = gap, gap + line
    for picture, title, note, color in zip(pictures, ("before", "saliency", "after"), notes, colors, strict=True):
        middle = x + picture.shape[1] // 2
        canvas[top : top + height, x : x + picture.shape[1]] = picture
        write(canvas, title, (middle, gap), Type(size, INK, "center", bold=True))
        write(canvas, note, (middle, top + height + gap // 2), Type(size, color, "center"))
        x += picture.shape[1] + gap
    for i, words in enumerate(lines):
        write(canvas, words, (total // 2, top + height + gap + line + i * line), Type(size, INK, "center"))
    return canvas


@dataclass(frozen=True)
class Pair:
    """A place before and after, uint8 RGB [h, w, 3] each, the note under them, and whether the change was kept."""

    before: np.ndarray
    after: np.ndarray
    note: str
    kept: bool


def pairs(places: Sequence[Pair]) -> np.ndarray:
    """Places before and after, side by side, one pair in a row above its note."""
    import cv2

    side, gap, size = 256, 16, 16
    rows = []
    for place in places:
        height = max(1, round(side * place.before.shape[0] / place.before.shape[1]))
        canvas = paper(height + gap + 2 * size + gap, 2 * side + 3 * gap)
        for column, picture in enumerate((place.before, place.after)):
            left = gap + column * (side + gap)
            scaled = cv2.resize(picture, (side, height), interpolation=cv2.INTER_CUBIC)
            canvas[gap : gap + height, left : left + side] = scaled
        color = GREEN if place.kept else GRAY
        for note in wrap(place.note, canvas.shape[1] - 2 * gap, size)[:1]:
            write(canvas, note, (canvas.shape[1] // 2, gap + height + size // 2), Type(size, color, "center"))
        rows.append(canvas)
    return np.vstack(rows)


@dataclass(frozen=True)
class _Curve:
    """What a plot says of its curve: title, what it is, color, and the value to mark (-1: none)."""

    title: str
    note: str
    color: tuple[int, int, int]
    best: int = -1


def _plot(values: Sequence[float], curve: _Curve) -> np.ndarray:
    import cv2

    height, width, left, right, top, bottom = 360, 520, 86, 24, 52, 58
    canvas = paper(height, width)
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    ticks = _ticks(min(finite), max(finite))
    low, high = min(*ticks, *finite), max(*ticks, *finite)
    last = max(1, len(values) - 1)

    def place(index: float, value: float) -> tuple[int, int]:
        across = left + (width - left - right) * index / last
        return round(across), round(height - bottom - (height - top - bottom) * (value - low) / (high - low))

    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    for value in ticks:
        y = place(0, value)[1]
        cv2.line(canvas, (left, y), (width - right, y), PALE, 1)
        write(canvas, f"{value:.{digits}f}", (left - 10, y - 7), Type(14, GRAY, "right"))
    for index in sorted({round(t) for t in _ticks(0, last) if t <= last}):
        x = place(index, low)[0]
        cv2.line(canvas, (x, height - bottom), (x, height - bottom + 5), GRAY, 1)
        write(canvas, str(index), (x, height - bottom + 10), Type(14, GRAY, "center"))
    cv2.line(canvas, (left, height - bottom), (width - right, height - bottom), GRAY, 1)
    cv2.line(canvas, (left, top), (left, height - bottom), GRAY, 1)
    points = [place(i, v) if math.isfinite(v) else None for i, v in enumerate(values)]
    for start, end in pairwise(points):
        if start and end:
            cv2.line(canvas, start, end, curve.color, 2, cv2.LINE_AA)
    for point in points if len(points) <= 60 else []:
        if point:
            cv2.circle(canvas, point, 3, curve.color, -1, cv2.LINE_AA)
    best = curve.best
    marked = points[best] if 0 <= best < len(points) else None
    if marked:
        cv2.circle(canvas, marked, 8, PAPER, -1, cv2.LINE_AA)
        cv2.circle(canvas, marked, 7, GREEN, 3, cv2.LINE_AA)
        write(canvas, f"best: {values[best]:.4f} at {best}", (width - right, height - 24), Type(14, GREEN, "right"))
    write(canvas, curve.title, (left, 16), Type(18, INK, bold=True))
    write(canvas, curve.note, (left + _text_width(curve.title, 18, bold=True) + 10, 19), Type(14, GRAY))
    write(canvas, "iteration", ((left + width - right) // 2, height - 24), Type(14, GRAY, "center"))
    return canvas


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from at most `low` to at least `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * count >= high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def _plain(text: str) -> str:
    # OpenCV's fonts know ASCII only: accents go, other scripts become question marks.
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c if c.isascii() else "?" for c in decomposed if not unicodedata.combining(c))


def _font(size: int, bold: bool = False) -> tuple[Any, ...]:
    import cv2

    # OpenCV 5 draws a real font under the old name, bold from a thickness of 2.
    regular = 4 if int(cv2.__version__.split(".")[0]) < 5 else 1
    return cv2.FONT_HERSHEY_SIMPLEX, size * 4 / 30, 8 if bold else regular


def _text_width(text: str, size: int, bold: bool = False) -> int:
    import cv2

    return math.ceil(cv2.getTextSize(_plain(text), *_font(size, bold))[0][0] / 4)


@dataclass(frozen=True)
class Type:
    """How text is set: pixels high, its color, where its position lies ("left", "center", "right"), its weight."""

    size: int
    color: tuple[int, int, int]
    align: str = "left"
    bold: bool = False


def write(canvas: np.ndarray, text: str, position: tuple[int, int], kind: Type) -> None:
    """Draws one line of text from its top, at four times the size and then averaged down."""
    import cv2

    size, bold = kind.size, kind.bold
    width = _text_width(text, size, bold) + 2 * size
    mask = np.zeros((8 * size, 4 * width), np.uint8)
    font, scale, thickness = _font(size, bold)
    cv2.putText(mask, _plain(text), (4 * size, 4 * size), font, scale, 255, thickness, cv2.LINE_AA)
    share = cv2.resize(mask, (width, 2 * size), interpolation=cv2.INTER_AREA)[..., None] / 255
    x = position[0] - size - {"left": 0, "center": (width - 2 * size) // 2, "right": width - 2 * size}[kind.align]
    y = position[1]
    top, left = max(0, -y), max(0, -x)
    area = canvas[y + top : y + 2 * size, x + left : x + width]
    share = share[top : top + area.shape[0], left : left + area.shape[1]]
    area[:] = (area * (1 - share) + np.array(kind.color) * share).round().astype(np.uint8)


def wrap(text: str, width: int, size: int) -> list[str]:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if _text_width(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return [line for line in lines if line]
