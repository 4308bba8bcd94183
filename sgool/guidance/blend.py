"""Several critics as one guide: a weighted sum of their scores, each measured by how much it varies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sgool.guidance.critic import Critic, shifted

LEAST = 1e-6
"""The smallest spread that counts, so that a critic that rates all images alike is not divided by zero."""


class Blend(Critic):
    """sum_k w_k score_k / spread_k, over the sum of the weights.

    Scores differ in scale: PickScore's lie near 20, cosines near 0.3. The spread of a critic is the standard deviation
    of its scores over what it is settled by: the images of the starts that are tried, or, with a single start, the
    first image and cutouts of it. Until then it is that over the scores at hand. So a weight says how much a critic
    counts where all tell images apart equally well.

    Features [N, ...] are all its critics', one after another. critics, weights: as many; weights above 0. name: see
    `Critic`.
    """

    unit = "blend"

    def __init__(self, critics: Sequence[Critic], weights: Sequence[float], name: str = "") -> None:
        self.critics = tuple(critics)
        self.weights = tuple(weights)
        self.name = name
        sizes = [critic.image_size for critic in critics]
        self.image_size = max(size[0] for size in sizes), max(size[1] for size in sizes)
        self._shapes: list[torch.Size] = []
        self._spreads: Tensor | None = None

    @property
    def settled(self) -> bool:
        return self._spreads is not None

    def to(self, device: torch.device, half: bool | None = None) -> Blend:
        for critic in self.critics:
            critic.to(device, half)
        return self

    def fresh(self) -> Blend:
        return Blend(self.critics, self.weights, self.name)

    def blocks(self) -> Iterable[nn.Module]:
        return [block for critic in self.critics for block in critic.blocks()]

    def resize(self, images: Tensor) -> Tensor:
        """As they are: each critic has a way of its own."""
        return images

    def encode_image(self, images: Tensor) -> Tensor:
        return self.encode([images])

    def encode(self, views: Sequence[Tensor]) -> Tensor:
        encoded = [critic.encode(views) for critic in self.critics]
        self._shapes = [each.shape[1:] for each in encoded]
        return torch.cat([each.flatten(1) for each in encoded], 1)

    def _split(self, features: Tensor) -> list[Tensor]:
        """The features of each critic."""
        sizes = [shape.numel() for shape in self._shapes]
        parts = zip(torch.split(features, sizes, 1), self._shapes, strict=True)
        return [part.reshape(len(part), *shape) for part, shape in parts]

    def parts(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        rated = zip(self.critics, self._split(features), strict=True)
        return torch.stack([critic.rate(own, texts) for critic, own in rated], 1)

    @torch.no_grad()
    def judge_parts(self, images: Tensor, text: str) -> Tensor:
        views = shifted(images)
        parts = self.parts(self.encode([views]), [text] * len(views))
        return parts.view(-1, len(images), len(self.critics)).mean(0).cpu()

    def settle(self, parts: Tensor) -> Tensor:
        self._spreads = spreads(parts)
        return self._sum(parts)

    def rate(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return self._sum(self.parts(features, texts))

    def table(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        rated = zip(self.critics, self._split(features), strict=True)
        tables = torch.stack([critic.table(own, texts) for critic, own in rated], -1)
        return self._sum(tables.flatten(0, 1)).view(tables.shape[:2])

    def _sum(self, parts: Tensor) -> Tensor:
        measured = parts / (spreads(parts) if self._spreads is None else self._spreads.to(parts))
        weights = parts.new_tensor(self.weights)
        return (measured * weights).sum(-1) / weights.sum()


def spreads(parts: Tensor) -> Tensor:
    """The standard deviation [K] of K critics' scores [N, K]; 1 for a single image, which tells nothing."""
    if len(parts) < 2:
        return torch.ones_like(parts[0])
    return parts.detach().std(0, correction=0).clamp_min(LEAST)


def favorite(guide: Critic, selector: Critic, parts: Tensor, scores: Sequence[float]) -> int:
    """The number of the image that guide and selector together like best; the first of equals.

    parts: the guide's [N, K], which settle it; scores: the selector's. Scores of one unit are added as they are, others
    after they have been brought to mean 0 and standard deviation 1.
    """
    both = torch.stack([guide.settle(parts).double(), torch.tensor(scores, dtype=torch.float64)], 1)
    if guide.unit != selector.unit:
        both = (both - both.mean(0)) / spreads(both)
    totals = both.sum(1).tolist()
    return max(range(len(totals)), key=totals.__getitem__)
