"""The user's masks: where a zoom may paint, and where to look."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sgool.detect import MaskDetector
from sgool.generate import Critics
from sgool.settings import SettingError, Settings
from sgool.webui.records import Run
from sgool.zoom.find import check_mask
from sgool.zoom.given import zooms_on_mask

_WITH: dict[str, tuple[Callable[[Settings], bool], str]] = {
    "zoom_mask": (zooms_on_mask, "zoom true and zoom_by mask"),
    "look_at": (lambda settings: settings.saliency == "mask", "saliency mask"),
}
"""Fields of the API's dict, each a PNG or JPEG file in base64, white where the zoom may paint or where to look: the
settings that each goes with."""

LARGEST = 32 * 2**20
"""Bytes of such a file."""

MOST_PIXELS = 2**26

_KINDS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
"""Files that are taken, by how they begin."""


def given(args: Sequence[Any], settings: Settings) -> dict[str, Image.Image]:
    """The masks that an API request hands over, "L", by field. Raises SettingError where one does not fit."""
    by_name = args[0] if args and isinstance(args[0], Mapping) else {}
    masks = {}
    for field, (goes, words) in _WITH.items():
        if (text := by_name.get(field)) is None:
            continue
        if not goes(settings):
            raise SettingError(field, f"goes with {words}")
        masks[field] = _decoded(field, text)
    return masks


def _decoded(field: str, text: Any) -> Image.Image:
    if not isinstance(text, str):
        raise SettingError(field, "must be a PNG or JPEG file in base64")
    if len(text) > LARGEST * 4 // 3 + 100:
        raise SettingError(field, f"is larger than {LARGEST // 2**20} MB")
    try:
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise SettingError(field, "is not base64") from None
    kind = next((name for start, name in _KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise SettingError(field, "is neither a PNG nor a JPEG file")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise SettingError(field, f"has {picture.width}x{picture.height} pixels, which are too many")
            return picture.convert("L")
    except SettingError:
        raise
    except Exception as error:  # a broken file may raise anything
        raise SettingError(field, "is a picture that cannot be read") from error


def is_inpainting(p: Any) -> bool:
    """Whether the user has painted a mask in img2img."""
    return getattr(p, "image_mask", None) is not None


def looking(p: Any, run: Run, critics: Critics, size: tuple[int, int]) -> Critics:
    """The critics, with the user's mask in the detector's place where the settings ask for that.

    size: width and height of the picture at hand. Raises SgoolError for a mask that is empty or of another size.
    """
    if run.settings.saliency != "mask":
        return critics
    mask = of_request(p, run.look_at, size)
    mask = of_user(p, size) if mask is None else mask
    if mask is None:
        return critics
    if mask.shape != (p.height, p.width):  # hires fix has upscaled the picture since
        check_mask(mask, size[::-1])
    return replace(critics, detector=MaskDetector(_scaled(mask, size)))


def of_request(p: Any, mask: Image.Image | None, size: tuple[int, int]) -> Tensor | None:
    """The mask of an API request as [H, W] in [0, 1]; of the whole picture where p paints only a part of it.

    size: width and height of the picture at hand. What is of another size is handed on as it is, to be refused.
    """
    if mask is None:
        return None
    part = getattr(p, "paste_to", None)
    overlays = getattr(p, "overlay_images", None)
    if part is not None and overlays and mask.size == overlays[0].size:
        mask = _part(mask, part, size)
    return _tensor(mask)


def of_user(p: Any, size: tuple[int, int]) -> Tensor | None:
    """Where the user inpaints: [H, W] in [0, 1], soft at its edge, of the picture at hand; None for other images.

    With "only masked" the picture at hand is the part that was painted. size: its width and height.
    """
    if not is_inpainting(p):
        return None
    drawn, part = getattr(p, "mask_for_overlay", None), getattr(p, "paste_to", None)
    if drawn is not None:
        drawn = drawn.convert("L")
        return _tensor(_part(drawn, part, size) if part is not None else _resized(drawn, size))
    latent = getattr(p, "nmask", None)  # what is left where an extension takes the overlay over
    if latent is None:
        return None
    return F.interpolate(latent[None, :1].float(), size[::-1], mode="bilinear")[0, 0].cpu()


def _scaled(mask: Tensor, size: tuple[int, int]) -> Tensor:
    whole = mask[None, None]
    return mask if mask.shape == size[::-1] else F.interpolate(whole, size[::-1], mode="bilinear", antialias=True)[0, 0]


def _part(mask: Image.Image, part: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    left, top, width, height = part
    return _resized(mask.crop((left, top, left + width, top + height)), size)


def _resized(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _tensor(mask: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(mask, np.float32)) / 255
