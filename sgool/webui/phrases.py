"""How much of each phrase of the prompt the finished images show: measured once, when all of them are saved."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from modules import devices, errors
from torch import Tensor

from sgool import phrases, pictures
from sgool.errors import SgoolError, brief, out_of_memory
from sgool.generate import Critics
from sgool.phrase_sheet import EDGE, MARK
from sgool.result import Phrases
from sgool.webui import interrupts, models, progress
from sgool.webui.isolation import random_numbers
from sgool.webui.records import Entry, Run

MEASURED_SIDE = 768
"""Pixels of the shorter side at which an image is measured, at most: a CLIP sees half of it with 336 or fewer, and the
maps of a picture upscaled to 2048 pixels would take half a gigabyte."""

KEPT_SIDE = 128
"""Pixels of the longer side of a map that is kept. A CLIP's own map has a few dozen."""

SHOWN_SIDE = 512
"""Pixels of the longer side of a veil."""

DARKEST = 0.75
"""How much of the picture a veil hides where nothing speaks for the phrase."""


def measure(p: Any, run: Run) -> None:
    """Measure the images that are shown, until the user stops it. A failure is told in the console only."""
    entries = run.entries
    if not run.settings.show_phrases or not entries or interrupts.stopped():
        return
    telling = progress.telling("SGOOL looks for the phrases of the prompt")
    try:
        with telling, random_numbers(), models.critics(run.settings) as critics, devices.without_autocast():
            for number, entry in entries.items():
                if interrupts.stopped():
                    break
                run.phrases[number] = _measured(critics, entry, p.all_prompts[number])
    except Exception as error:
        print(f"SGOOL could not look for the phrases of the prompt: {brief(error, 200)}", file=sys.stderr)
        if not isinstance(error, SgoolError) and not out_of_memory(error):
            errors.report("SGOOL could not look for the phrases", exc_info=True)
    for note in dict.fromkeys(found.note for found in run.phrases.values() if found.note):
        print(f"SGOOL: {note}", file=sys.stderr)


def _measured(critics: Critics, entry: Entry, prompt: str) -> Phrases:
    same = not entry.changed or np.array_equal(entry.before, entry.after)
    shown = [entry.after] if same else [entry.before, entry.after]
    images = [_fitted(pictures.to_tensor(each).to(devices.device)) for each in shown]
    asked = [critics.selector, critics.guide] if entry.changed else [critics.selector]  # there is no guide
    found = phrases.measure(asked, images, prompt)
    maps = [(_small(each.map_before), _small(each.map_after)) for each in found.found]
    kept = [replace(each, map_before=one, map_after=two) for each, (one, two) in zip(found.found, maps, strict=True)]
    return replace(found, found=tuple(kept))


def _fitted(image: Tensor) -> Tensor:
    scale = MEASURED_SIDE / min(image.shape[-2:])
    if scale >= 1:
        return image
    size = tuple(round(scale * side) for side in image.shape[-2:])
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def _small(heat: Tensor | None) -> Tensor | None:
    """A map [H, W] in float16, at most KEPT_SIDE pixels long."""
    if heat is None or max(heat.shape) <= KEPT_SIDE:
        return heat if heat is None else heat.half()
    small = F.interpolate(heat[None, None], _fitting(heat.shape, KEPT_SIDE), mode="bilinear", antialias=True)
    return small[0, 0].half()


def veil(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 RGBA, to lay over the picture: dark where the map is low, clear where it is high.

    heat: [h, w] in [0, 1]; size: height and width of the picture. Where the map is over half its peak it is outlined.
    Light alone tells it, and no color, as on the command line's sheet.
    """
    import cv2

    height, width = _fitting(size, SHOWN_SIDE)
    values = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    shown = np.zeros((height, width, 4), np.uint8)
    shown[..., 3] = (255 * DARKEST * (1 - np.sqrt(values))).round()
    if values.max() > 0:
        inside = (values >= EDGE * values.max()).astype(np.uint8)
        lines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, lines, -1, (*pictures.INK, 255), 5, cv2.LINE_AA)
        cv2.drawContours(shown, lines, -1, (*MARK, 255), 3, cv2.LINE_AA)
    return shown


def _fitting(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """Height and width at which the longer one has so many pixels."""
    height, width = size
    return max(1, round(height * side / max(size))), max(1, round(width * side / max(size)))
