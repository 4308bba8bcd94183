"""How images come to the size that a network sees: as its authors published it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [N, 3, H, W] at this height and width, by antialiased bicubic interpolation; stretched where they differ
    in shape.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)


def center_cropped(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle square of images [N, 3, H, W], their shorter side scaled to that of `size` (CLIP's preprocessing).

    The longer side is cut off to a whole pixel, and the crop begins at half the excess, rounded: as torchvision does.
    """
    height, width = images.shape[-2:]
    side, shorter = min(size), min(height, width)
    longer = int(side * max(height, width) / shorter)
    images = scaled(images, (side, longer) if height <= width else (longer, side))
    top, left = (round((length - side) / 2) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def letterboxed(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The whole of images [N, 3, H, W], their longer side scaled to that of `size`, on a black square."""
    height, width = images.shape[-2:]
    side, longer = max(size), max(height, width)
    images = scaled(images, (max(1, round(height * side / longer)), max(1, round(width * side / longer))))
    down, right = (side - length for length in images.shape[-2:])
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
