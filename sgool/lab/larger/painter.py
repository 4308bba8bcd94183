"""Paints batches of scenes on the training device. Random numbers come from the CPU: a seed gives the same everywhere.

The sprites are resized once to each width and lie in one list of pixels. A picture looks its pixels up there.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgool.lab.larger.scenes import EMOJI, MOST, WORDS, Scenes
from sgool.lab.world import COLORS, read_emoji, resized

IMAGE, CELL = 256, 8
"""Pixels per side of a picture and of a cell of its latent. Subjects are aligned to the cells."""

WIDTHS = {0: (28, 32, 36, 40), 1: (112, 128, 160), 2: (88, 96, 104), 3: (64, 76)}
"""Pixels on the longer side: of a small subject (0), of one alone, of one of two, of one of three."""

ALL_WIDTHS = tuple(sorted(width for some in WIDTHS.values() for width in some))

PERIOD, SHADE = 16, 0.15
"""Of the patterns of busy grounds."""

UNIFORM = 3 * MOST + 4
"""Uniform numbers that a picture takes."""


class Draws(NamedTuple):
    """What is random in pictures of given scenes, a row each."""

    sprite: Tensor
    """Int64 [N, MOST]: number of the sprite; the last one is empty."""
    left: Tensor
    """Int64 [N, MOST], pixels; `top` too."""
    top: Tensor
    base: Tensor
    """Float32 [N, 3]: the ground's color, 0 to 1."""
    ramp: Tensor
    """Float32 [N]: how much lighter the bottom is than the middle."""
    shade: Tensor
    """Float32 [N]: how much lighter the pattern is than the ground."""
    pattern: Tensor
    """Int64 [N]: a row of `masks`."""


def write_sprites(assets: Path, path: Path) -> None:
    """Write each emoji at each width, premultiplied uint8 RGBA, from the folder `assets` of the emoji's package."""
    pixels, sizes = [], []
    for code in EMOJI.values():
        picture = read_emoji(assets, code)
        for width in ALL_WIDTHS:
            small = resized(picture, width)
            sizes.append(small.shape[:2])
            pixels.append((small.clip(0, 1) * 255 + 0.5).astype(np.uint8).reshape(-1, 4))
    np.savez_compressed(path, pixels=np.concatenate(pixels), sizes=np.array(sizes, np.int16))


def masks() -> Tensor:
    """Bool [6, IMAGE, IMAGE]: where no pattern, stripes (three slopes), checks and dots are."""
    yy, xx = np.mgrid[0:IMAGE, 0:IMAGE]
    stripes = [(xx + yy * slope) // (PERIOD // 2) % 2 == 0 for slope in (-1, 0, 1)]
    checks = (xx // PERIOD + yy // PERIOD) % 2 == 0
    dots = (xx % PERIOD - PERIOD / 2) ** 2 + (yy % PERIOD - PERIOD / 2) ** 2 < (PERIOD / 3.2) ** 2
    return torch.from_numpy(np.stack([np.zeros_like(checks), *stripes, checks, dots]))


class Painter:
    """Of the sprites that `write_sprites` wrote."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        with np.load(path) as stored:
            sizes = torch.from_numpy(stored["sizes"].astype(np.int64))
            pixels = torch.from_numpy(stored["pixels"].astype(np.float32) / 255)
        ends = sizes.prod(1).cumsum(0)
        self.device = torch.device(device)
        self.pixels = torch.cat([pixels, torch.zeros(1, 4)]).to(device)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(device)
        self.sizes = torch.cat([sizes, torch.zeros(1, 2, dtype=torch.int64)]).to(device)
        """Height and width of each sprite."""
        most = max(map(len, WIDTHS.values()))
        numbers = [[ALL_WIDTHS.index(width) for width in some] for some in WIDTHS.values()]
        self.choices = torch.tensor([(some * most)[:most] for some in numbers], device=device)
        self.counts = torch.tensor([len(some) for some in numbers], device=device)
        cells = IMAGE // CELL
        edges = [[min(cells, -(-cells * place // max(1, count))) for place in range(MOST + 1)] for count in range(4)]
        self.edges = torch.tensor(edges, device=device)
        """Where the columns of one, two and three subjects begin and end, in cells."""
        self.colors = torch.tensor(list(COLORS.values()), device=device) / 255
        self.masks = masks().to(device)
        self.ruler = torch.arange(IMAGE, device=device)

    def draw(self, scenes: Scenes, generator: torch.Generator | None = None) -> Draws:
        """Widths, places and colors for scenes on this device. generator: one of the CPU's."""
        count = len(scenes.words)
        u = torch.rand(count, UNIFORM, generator=generator)
        numbers = torch.cat([u, torch.randn(count, 3, generator=generator)], 1).to(self.device, non_blocking=True)
        u = numbers[:, :UNIFORM]

        def whole(place: int, below: Tensor) -> Tensor:
            """Random whole numbers below the given ones, for each subject."""
            return torch.minimum((u[:, place : place + MOST] * below).long(), below - 1)

        there = scenes.words >= 0
        kind = torch.where(scenes.small, 0, there.sum(1, keepdim=True))
        width = self.choices[kind, whole(0, self.counts[kind])]
        nothing = len(WORDS) * len(ALL_WIDTHS)
        sprite = torch.where(there, scenes.words * len(ALL_WIDTHS) + width, nothing)
        taken = -(-self.sizes[sprite] // CELL)
        column = self.edges[there.sum(1)]
        left = column[:, :-1] + whole(MOST, (column.diff(dim=1) - taken[..., 1] + 1).clamp(min=1))
        top = whole(2 * MOST, IMAGE // CELL - taken[..., 0] + 1)
        ramp, family, slope, sign = u[:, 3 * MOST :].T
        family, slope = (3 * family).long(), 1 + (3 * slope).long()
        pattern = torch.where(family == 0, slope, 3 + family).clamp(max=5)
        return Draws(
            **{"sprite": sprite, "left": CELL * left, "top": CELL * top},
            base=self.colors[scenes.color] + 0.02 * numbers[:, UNIFORM:],
            ramp=0.08 * ramp - 0.04,
            shade=torch.where(sign < 0.5, -SHADE, SHADE),
            pattern=torch.where(scenes.busy, pattern, 0),
        )

    def paint(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Pictures float32 [N, 3, IMAGE, IMAGE] in [0, 1], and what each pixel counts, [N, 1, IMAGE, IMAGE].

        A pixel of a subject counts 64 / width, of the ground nothing.
        """
        base = draws.base[:, :, None, None]
        ramp = draws.ramp[:, None, None, None] * torch.linspace(-1, 1, IMAGE, device=self.device)[:, None]
        shade = base + draws.shade[:, None, None, None]
        image = torch.where(self.masks[draws.pattern][:, None], shade, base + ramp)
        focus = torch.zeros_like(image[:, :1])
        for place in range(MOST):
            number = draws.sprite[:, place]
            height, width = (each[:, None, None] for each in self.sizes[number].T)
            y = self.ruler[:, None] - draws.top[:, place, None, None]
            x = self.ruler - draws.left[:, place, None, None]
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            index = torch.where(inside, self.starts[number][:, None, None] + y * width + x, len(self.pixels) - 1)
            rgba = self.pixels[index].permute(0, 3, 1, 2)
            image = rgba[:, :3] + image * (1 - rgba[:, 3:])
            side = torch.maximum(height, width).clamp(min=1)[:, None]
            focus = rgba[:, 3:] * 64 / side + focus * (1 - rgba[:, 3:])
        return image.clamp(0, 1), focus
