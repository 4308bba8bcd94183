"""Image files as tensors, in the shape that a model takes."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sgool.errors import SgoolError

LONGEST = 4
"""How many times as long as the shorter side an image may be."""

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
"""What shows an image [H, W, ...] upright, by its EXIF orientation; 1 is upright."""


def read_image(path: Path, what: str = "initial image") -> Tensor:
    """An image file as float32 [1, 3, H, W], RGB in [0, 1], upright; what is transparent is white, as on a page.

    what: what it is, for errors. Raises SgoolError when it cannot be read, and for an image too long for its width.
    """
    import cv2

    try:
        data = path.read_bytes()
    except OSError as error:
        raise SgoolError(f"The {what} {path} cannot be read: {error.strerror or error}.") from error
    try:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:
        stored = None
    rgb = None if stored is None else _rgb(stored)
    if rgb is None or not np.isfinite(rgb).all():
        raise SgoolError(f"The {what} {path} is not a picture that can be read.")
    upright = TURNS.get(_orientation(data), lambda image: image)(rgb)
    image = torch.from_numpy(np.ascontiguousarray(upright)).permute(2, 0, 1)[None]
    check_shape(image, what)
    return image


def read_mask(path: Path) -> Tensor:
    """A mask file as float32 [H, W] in [0, 1]: how white it is, and what is transparent is black.

    Raises SgoolError like `read_image`.
    """
    white = read_image(path, "mask").mean(1)[0]
    with contextlib.suppress(Exception):  # without Pillow, transparency is not looked at
        from PIL import Image, ImageOps

        with Image.open(path) as picture:
            if "A" in picture.getbands():
                alpha = ImageOps.exif_transpose(picture).getchannel("A")
                white = white * torch.from_numpy(np.asarray(alpha, np.float32).copy()) / 255
    return white


def check_shape(image: Tensor, what: str = "initial image") -> None:
    """Raises SgoolError for an image [1, 3, H, W] without pixels, or too long for its width."""
    height, width = image.shape[-2:]
    if not min(height, width):
        raise SgoolError(f"The {what} has no pixels.")
    if max(height, width) > LONGEST * min(height, width):
        raise SgoolError(
            f"The {what} has {width}x{height} pixels; one side may be at most {LONGEST} times the other. Crop it first."
        )


def fit(image: Tensor, size: tuple[int, int], multiple: int = 64) -> Tensor:
    """Scale the image [1, 3, H, W] so that its shorter side is the model's, and crop both to multiples of 64 pixels.

    Raises SgoolError like `check_shape`.
    """
    check_shape(image)
    height, width = image.shape[-2:]
    scale = min(size) / min(height, width)
    sides = [max(multiple, round(side * scale)) for side in (height, width)]
    scaled = torch.nn.functional.interpolate(image, sides, mode="bicubic", antialias=True).clamp(0, 1)
    kept = [side // multiple * multiple for side in sides]
    top, left = ((side - keep) // 2 for side, keep in zip(sides, kept, strict=True))
    return scaled[..., top : top + kept[0], left : left + kept[1]]


def _rgb(stored: np.ndarray) -> np.ndarray | None:
    """What OpenCV has decoded (gray or BGR, with alpha or without) as float32 [H, W, 3]; None for anything else."""
    whole = np.iinfo(stored.dtype).max if stored.dtype.kind in "iu" else 1
    pixels = (stored.astype(np.float32) / whole).clip(0, 1)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    channels = pixels.shape[2]
    if channels > 4:
        return None
    colors = pixels[..., 2::-1] if channels > 2 else pixels[..., :1].repeat(3, 2)
    return colors if channels % 2 else 1 - pixels[..., -1:] * (1 - colors)


def _orientation(data: bytes) -> int:
    """The EXIF orientation that an image file states, 1 where it states none.

    Read with Pillow, because OpenCV turns only some kinds of files, and none that have an alpha channel.
    """
    try:
        from PIL import Image
    except ImportError:
        return 1
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as picture:
            warnings.simplefilter("ignore")  # of large pictures
            return int(picture.getexif().get(0x0112, 1))
    except Exception:  # a picture that OpenCV has read may have any fault in its EXIF, or be unknown to Pillow
        return 1
