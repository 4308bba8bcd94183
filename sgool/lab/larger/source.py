"""What training learns from: scenes of the table, painted, and what trained networks make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sgool.errors import SgoolError
from sgool.lab.larger import networks
from sgool.lab.larger.painter import IMAGE, Draws, Painter
from sgool.lab.larger.scenes import GROUP, Scenes, load_table, load_tokenizer
from sgool.lab.larger.trainer import load_average


class Source:
    """work: the folder that ``python -m sgool.lab.larger prepare`` filled; trained networks are in it, too."""

    def __init__(self, work: Path, device: torch.device | str = "cpu") -> None:
        for name in ("sprites.npz", "scenes.npz", "bpe.txt.gz"):
            if not (work / name).is_file():
                raise SgoolError(f"There is no {work / name}: run `python -m sgool.lab.larger prepare` first.")
        self.work, self.device = work, torch.device(device)
        self.tokenizer = load_tokenizer(work)
        self.vocabulary = len(self.tokenizer.bpe.encoder)
        self.painter = Painter(work / "sprites.npz", device)
        self.table = load_table(work, device)

    def scenes(self, count: int, generator: torch.Generator | None = None) -> Scenes:
        """Random scenes. generator: one of the CPU's."""
        rows = torch.randint(len(self.table.words), (count,), generator=generator)
        return self.table.take(rows.to(self.device, non_blocking=True))

    def groups(self, count: int) -> Scenes:
        """`count` scenes in random groups of GROUP, in each the first and its near misses."""
        first = torch.randint(len(self.table.words) // GROUP, (count // GROUP, 1))
        rows = (GROUP * first + torch.arange(GROUP)).flatten()
        return self.table.take(rows.to(self.device, non_blocking=True))

    @torch.no_grad()
    def paint(self, scenes: Scenes, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Draws]:
        """See `Painter.paint`, and what was drawn for it."""
        draws = self.painter.draw(scenes, generator)
        return *self.painter.paint(draws), draws

    def vae(self) -> AutoencoderKL:
        """The trained autoencoder, its decoder as it was trained last."""
        name = "decoder" if (self.work / "decoder").is_dir() else "vae"
        found: Any = torch.nn.ModuleDict({"vae": networks.autoencoder()})
        load_average(found, self.work / name)
        return found["vae"].to(self.device).eval().requires_grad_(False)

    def half(self) -> torch.autocast:
        """As networks are trained: in bfloat16 on a GPU."""
        kind = self.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False)


def look(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """A square of each picture at size x size pixels: [N, 3, IMAGE, IMAGE] -> [N, 3, size, size].

    boxes: float [N, 3], left, top and side in pixels. Each pixel is a mean of IMAGE / size bilinear samples a side,
    because a square is up to as large as the picture.
    """
    left, top, side = boxes.T
    ruler = (torch.arange(IMAGE, device=images.device) + 0.5) / IMAGE
    x, y = (2 * (at[:, None] + side[:, None] * ruler) / IMAGE - 1 for at in (left, top))
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)
    found = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return torch.nn.functional.avg_pool2d(found, IMAGE // size)
