"""Image files as tensors, in the shape that a model takes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sgool.errors import SgoolError


def read_image(path: Path) -> Tensor:
    """An image file as float32 [1, 3, H, W], RGB in [0, 1]; what is transparent is white, as on a page.

    Raises SgoolError when it cannot be read.
    """
    import cv2
    import numpy as np

    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        whole = None if image is None else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise SgoolError(f"The initial image {path} cannot be read: {error}") from error
    if image is None:
        raise SgoolError(f"The initial image {path} is not a picture that can be read.")
    colors = image.astype(np.float32) / 255
    if whole is not None and whole.ndim == 3 and whole.shape[2] == 4:
        whole = whole.astype(np.float32) / {"uint8": 255, "uint16": 65535}.get(whole.dtype.name, 1)
        colors = 1 - whole[..., 3:] * (1 - whole[..., :3])
    rgb = np.ascontiguousarray(colors[..., ::-1])
    return torch.from_numpy(rgb).permute(2, 0, 1)[None]


def fit(image: Tensor, size: tuple[int, int], multiple: int = 64) -> Tensor:
    """Scale the image [1, 3, H, W] so that its shorter side is the model's, and crop both to multiples of 64 pixels."""
    height, width = image.shape[-2:]
    scale = min(size) / min(height, width)
    sides = [max(multiple, round(side * scale)) for side in (height, width)]
    scaled = torch.nn.functional.interpolate(image, sides, mode="bicubic", antialias=True).clamp(0, 1)
    kept = [side // multiple * multiple for side in sides]
    top, left = ((side - keep) // 2 for side, keep in zip(sides, kept, strict=True))
    return scaled[..., top : top + kept[0], left : left + kept[1]]
