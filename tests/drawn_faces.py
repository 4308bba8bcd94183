"""Faces drawn with OpenCV, such that face detectors take them for faces; nobody's photograph."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

SIZE = 256  # the face is drawn at this height and then scaled


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """A face, RGB [SIZE, SIZE, 3], and how much of each pixel it covers [SIZE, SIZE, 1], both in [0, 1]."""
    yy, xx = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    light = 1.05 - 0.35 * ((xx - 112) / SIZE) ** 2 * 4 - 0.25 * ((yy - 118) / SIZE) ** 2 * 4
    face = np.array((0.87, 0.68, 0.56), np.float32) * light[..., None]

    def shade(amount: float, blur: float, *ellipses: tuple[Sequence[int], Sequence[int]]) -> None:
        mask = np.zeros((SIZE, SIZE), np.float32)
        for center, axes in ellipses:
            cv2.ellipse(mask, tuple(center), tuple(axes), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
        mask = cv2.GaussianBlur(mask, (0, 0), blur)[..., None]
        face[:] = face * (1 - amount * mask) if amount > 0 else face - amount * mask

    shade(0.45, 6, ((88, 108), (25, 15)), ((168, 108), (25, 15)))  # sockets
    shade(0.6, 2, ((88, 88), (26, 5)), ((168, 88), (26, 5)))  # brows
    shade(-0.25, 1.5, ((88, 110), (15, 6)), ((168, 110), (15, 6)))  # the whites
    shade(0.9, 1, ((88, 110), (7, 7)), ((168, 110), (7, 7)))
    shade(-0.12, 7, ((128, 130), (8, 34)), ((78, 150), (20, 14)), ((178, 150), (20, 14)))  # nose and cheeks
    shade(0.4, 3, ((116, 166), (6, 4)), ((140, 166), (6, 4)), ((128, 172), (16, 3)))
    shade(0.4, 2, ((128, 200), (32, 8)))
    shade(0.6, 1.5, ((128, 199), (30, 2)))
    shade(0.25, 5, ((128, 220), (24, 5)))
    cover = np.zeros((SIZE, SIZE), np.float32)
    cv2.ellipse(cover, (128, 132), (92, 120), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
    hair = np.zeros((SIZE, SIZE), np.float32)
    cv2.ellipse(hair, (128, 100), (100, 96), 0, 180, 360, 1.0, -1, cv2.LINE_AA)
    cv2.ellipse(hair, (128, 128), (86, 80), 0, 180, 360, 0.0, -1, cv2.LINE_AA)
    hair = cv2.GaussianBlur(hair, (0, 0), 3)
    face = face * (1 - hair[..., None]) + np.array((0.2, 0.13, 0.08), np.float32) * hair[..., None]
    return face.clip(0, 1), np.maximum(cover, (hair > 0.5).astype(np.float32))[..., None]


def picture(size: tuple[int, int], *faces: tuple[float, float, float, float]) -> Tensor:
    """[1, 3, height, width]: a plain wall with faces, each (x and y of its center, height, degrees it is turned by)."""
    height, width = size
    generator = np.random.default_rng(0)
    noise = cv2.resize(generator.normal(0, 0.03, (9, 9)).astype(np.float32), (width, height))
    image = np.array((0.45, 0.55, 0.6), np.float32) + noise[..., None]
    for x, y, high, degrees in faces:
        scale = high / 240  # of the face in its picture
        face, cover = drawn()
        if scale < 1:
            face, cover = (cv2.GaussianBlur(each, (0, 0), max(0.01, 0.4 / scale)) for each in (face, cover))
        turn = cv2.getRotationMatrix2D((128, 132), degrees, scale)
        turn[:, 2] += (x - 128, y - 132)
        face, cover = (cv2.warpAffine(each, turn, (width, height)) for each in (face, cover))
        cover = cover.reshape(height, width, 1)
        image = image * (1 - cover) + face * cover
    return torch.from_numpy(image.clip(0, 1).astype(np.float32)).permute(2, 0, 1)[None].contiguous()
