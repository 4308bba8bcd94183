"""What in an image speaks for a phrase: how much likelier each of its parts finds it than phrases of all kinds.

Cosines of CLIP by themselves say little: words differ in how high they score anywhere, and images in how high anything
scores on them. So a phrase is compared with generic phrases on the same part of the same image. With f the embedding of
the part, e that of the phrase, and g those of the generic phrases,

    evidence = f . (e - mean g),    strength = evidence / std(f . g).

The parts are squares: the image, and windows of half its shorter side, half overlapping.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from sgool.guidance.critic import EmbeddingCritic
from sgool.region import Region

TOGETHER = 16
"""So many parts are encoded at a time."""

MOST = 40
"""Parts of an image, at most; 10 of a square one."""


@dataclass(frozen=True)
class Evidence:
    """regions: the parts of the image, all square. found: [parts, phrases], see above; strength: likewise.

    directions: [phrases, D], e - mean g.
    """

    regions: tuple[Region, ...]
    found: Tensor
    strength: Tensor
    directions: Tensor


def parts_of(height: int, width: int) -> tuple[Region, ...]:
    """The squares of an image that are looked at; the largest first."""
    shorter = min(height, width)
    for step in (0.5, 0.75, 1.0):
        found = [
            Region(top, left, side, side, 1.0)
            for side in dict.fromkeys((shorter, max(1, shorter // 2)))
            for top in _spread(height, side, step)
            for left in _spread(width, side, step)
        ]
        if len(found) <= MOST:
            break
    return tuple(found)


def _spread(length: int, side: int, step: float) -> list[int]:
    """Where squares of that side begin in 0..length, evenly, at most `step` sides apart."""
    gaps = ceil((length - side) / (side * step))
    return [round(number * (length - side) / gaps) for number in range(gaps + 1)] if gaps else [0]


def cut(image: Tensor, regions: Sequence[Region]) -> list[Tensor]:
    """The parts [1, 3, side, side] of an image [1, 3, H, W]."""
    return [image[..., r.top : r.top + r.height, r.left : r.left + r.width] for r in regions]


@torch.no_grad()
def evidence(critic: EmbeddingCritic, image: Tensor, phrases: Sequence[str]) -> Evidence:
    """What each part of an image [1, 3, H, W] says of each phrase."""
    regions = parts_of(*image.shape[-2:])
    parts = cut(image, regions)
    features = torch.cat([critic.encode(parts[at : at + TOGETHER]) for at in range(0, len(parts), TOGETHER)])
    columns, spreads, directions = [], [], []
    for phrase in phrases:
        generic = critic.encode_texts(unlike(phrase, critic.generic))
        directions.append(critic.encode_texts([phrase])[0] - generic.mean(0))
        columns.append(features @ directions[-1])
        spreads.append((features @ generic.T).std(1).clamp_min(1e-4))
    found = torch.stack(columns, 1)
    return Evidence(regions, found, found / torch.stack(spreads, 1), torch.stack(directions))


def unlike(phrase: str, generic: Sequence[str]) -> list[str]:
    """The generic phrases that name nothing of what the phrase names; all of them where none is left."""
    words = set(re.findall(r"\w+", phrase.lower()))
    return [each for each in generic if each.split()[-1] not in words] or list(generic)


def merged(maps: Tensor, seen: Evidence, size: tuple[int, int]) -> Tensor:
    """Maps [phrases, parts, h, w] of the parts as maps [phrases, H, W] of the image.

    Each part counts by the square of what speaks for the phrase there; where parts overlap, their mean is taken, in
    which a part counts less towards its border.
    """
    weights = seen.found.T.clamp_min(0).square()
    total, count = maps.new_zeros(len(maps), *size), maps.new_zeros(size)
    for number, part in enumerate(seen.regions):
        rows, columns = slice(part.top, part.top + part.height), slice(part.left, part.left + part.width)
        own = (maps[:, number] * weights[:, number, None, None])[:, None]
        smooth = F.interpolate(own, (part.height, part.width), mode="bicubic", align_corners=False)
        down = _fading(part.top, part.height, size[0])
        right = _fading(part.left, part.width, size[1])
        share = (down[:, None] * right).to(maps)
        total[:, rows, columns] += share * smooth[:, 0]
        count[rows, columns] += share
    return (total / count).clamp_min(0)


def _fading(start: int, length: int, whole: int) -> Tensor:
    """1 within a part, falling to 0 over a quarter of its length at each border that is none of the image's."""
    at = torch.arange(length) + 0.5
    left = 4 * at / length if start else torch.ones(length)
    right = 4 * (length - at) / length if start + length < whole else torch.ones(length)
    return torch.minimum(left, right).clamp(max=1)
