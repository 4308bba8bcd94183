"""How far an image is from its prompt: as a whole, in random cutouts, and where people look.

SGOOL (arXiv 2410.10257) adds the salient regions to the loss of DOODL (arXiv 2303.13703), which sees cutouts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance.clip import Clip
from sgool.guidance.prompt import clean_prompt, phrases


class Region(Protocol):
    """A rectangle of the image in pixels, and how much of the saliency lies in it."""

    @property
    def top(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def mass(self) -> float: ...


def spherical_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 arcsin(|x - y| / 2)^2 over the last dimension: half the squared angle between unit vectors, in [0, pi^2 / 2].

    From the square of the chord, clamped off the two points where the derivative of arcsin(sqrt(s)) is not finite.
    """
    s = (x - y).square().sum(-1) / 4
    return 2 * s.clamp(1e-12, 1 - 1e-6).sqrt().arcsin().square()


def random_cutouts(
    image: Tensor,
    count: int,
    size: int,
    generator: torch.Generator | None = None,
    power: float = 0.3,
    min_size: int | None = None,
) -> Tensor:
    """`count` random squares of the image [1, 3, H, W], pooled to [count, 3, size, size]; differentiable.

    A side is u^power * (max - min) + min with u uniform, max the shorter side of the image (DOODL: power 0.3, so large
    squares are more frequent). min_size: by default `size`, but at most half of the shorter side, so that the cutouts
    of a small image differ too. Only squares smaller than `size` are interpolated instead of pooled.
    """
    height, width = image.shape[-2:]
    longest = min(height, width)
    shortest = max(1, min(size, longest // 2) if min_size is None else min(min_size, longest))
    device = generator.device if generator is not None else None
    cutouts = []
    for u, v, w in torch.rand(count, 3, generator=generator, device=device, dtype=torch.float64).tolist():
        side = int(u**power * (longest - shortest) + shortest)
        top, left = int(v * (height - side + 1)), int(w * (width - side + 1))
        square = image[..., top : top + side, left : left + side]
        if side >= size:
            cutouts.append(F.adaptive_avg_pool2d(square, size))
        else:
            cutouts.append(F.interpolate(square, (size, size), mode="bilinear", align_corners=False))
    return torch.cat(cutouts) if cutouts else image.new_zeros(0, image.shape[1], size, size)


def crop(image: Tensor, region: Region) -> Tensor:
    """The part [1, 3, height, width] of the image [1, 3, H, W]; SgoolError when the region is empty or leaves it."""
    bottom, right = region.top + region.height, region.left + region.width
    inside = 0 <= region.top < bottom <= image.shape[-2] and 0 <= region.left < right <= image.shape[-1]
    if not inside:
        raise SgoolError(f"The region {region} does not lie within the image of {image.shape[-1]}x{image.shape[-2]}.")
    return image[..., region.top : bottom, region.left : right]


class SaliencyLoss:
    """(1 - w) * global + w * sum_r v_r * distance(crop_r), where v_r is the root of the region's share of the saliency,
    scaled so that they sum to one: what is faint draws the eye less, and is in more need of mending.

    prompt: what the image shall show. region_prompts: one per region, a list or one text separated by `[SEP]`; where
    empty or missing it is, with match_phrases and a prompt of several, the phrase that suits the region best, each
    going to one region (see `assign`; what is left over when all are given does not count, or things would be drawn
    twice), else the prompt itself.
    saliency_weight: w in [0, 1].
    cutouts, power: see `random_cutouts`. whole: the image itself counts as one more cutout. reduce: the global distance
    is the mean over these, so that every one has a gradient, or DOODL's minimum. All go through CLIP in one batch.
    """

    def __init__(
        self,
        clip: Clip,
        prompt: str,
        *,
        region_prompts: str | Sequence[str] | None = None,
        match_phrases: bool = False,
        saliency_weight: float = 0.5,
        cutouts: int = 8,
        power: float = 0.3,
        whole: bool = True,
        reduce: Literal["mean", "min"] = "mean",
    ) -> None:
        if not 0 <= saliency_weight <= 1:
            raise SgoolError(f"The saliency weight must be between 0 and 1, not {saliency_weight}.")
        if not whole and cutouts < 1:
            raise SgoolError("The loss needs at least one cutout, or the whole image.")
        self.clip = clip
        self.prompt = prompt
        texts = region_prompts.split("[SEP]") if isinstance(region_prompts, str) else region_prompts or ()
        self.region_prompts = {number: text for number, text in enumerate(texts) if text.strip()}
        self.phrases = phrases(clean_prompt(prompt)) if match_phrases else []
        self.saliency_weight = saliency_weight
        self.cutouts = cutouts
        self.power = power
        self.whole = whole
        self.reduce = reduce

    def __call__(
        self, image: Tensor, regions: Sequence[Region] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """The scalar loss of one image [1, 3, H, W] in [0, 1], at least 0; without regions the global part alone."""
        salient = self._compared(regions)
        views = [self.clip.resize(image)] if self.whole else []
        if self.cutouts:
            cutouts = random_cutouts(image, self.cutouts, min(self.clip.image_size), generator, self.power)
            views.append(self.clip.resize(cutouts))
        crops = [self.clip.resize(crop(image, regions[number])) for number in salient]
        embeddings = self.clip.encode_image(torch.cat(views + crops))
        seen = len(embeddings) - len(crops)
        distances = spherical_distance(embeddings[:seen], self.clip.encode_text(self.prompt))
        loss = distances.min() if self.reduce == "min" else distances.mean()
        if not crops:
            return loss
        targets = self._targets(embeddings[seen:].detach(), salient)
        weights = loss.new_tensor([regions[number].mass for number in salient]).sqrt()
        local = (weights / weights.sum() * spherical_distance(embeddings[seen:], targets)).sum()
        return (1 - self.saliency_weight) * loss + self.saliency_weight * local

    def _compared(self, regions: Sequence[Region]) -> list[int]:
        """The numbers of the regions that count: the first ones for which there is something to compare them with."""
        if not self.saliency_weight:
            return []
        salient = [number for number, region in enumerate(regions) if region.mass > 0]
        free = [number for number in salient if number not in self.region_prompts]
        left_over = free[len(self.phrases) :] if len(self.phrases) > 1 else []
        return [number for number in salient if number not in left_over]

    def _targets(self, embeddings: Tensor, numbers: Sequence[int]) -> Tensor:
        """What each region is compared with, [N, D]; embeddings [N, D] are those of the crops."""
        free = [row for row, number in enumerate(numbers) if number not in self.region_prompts]
        targets = [self.clip.encode_text(self.region_prompts.get(number, self.prompt)) for number in numbers]
        if free and len(self.phrases) > 1:
            offered = torch.stack([self.clip.encode_text(phrase) for phrase in self.phrases])
            for row, phrase in zip(free, assign(embeddings[free] @ offered.T), strict=True):
                targets[row] = offered[phrase]
        return torch.stack(targets)


def assign(similarity: Tensor) -> list[int]:
    """A phrase for each region: similarity [regions, phrases] -> the number of each region's phrase.

    The most similar pair first, then the most similar of what is left, so that a region which shows nothing clear gets
    the thing that is missing. No phrase is given twice, and there must be enough of them.
    """
    left = similarity.clone()
    chosen = [-1] * len(left)
    for _ in chosen:
        region, phrase = divmod(int(left.argmax()), left.shape[1])
        chosen[region] = phrase
        left[region], left[:, phrase] = -torch.inf, -torch.inf
    return chosen


def doodl_loss(clip: Clip, prompt: str) -> SaliencyLoss:
    """DOODL's published loss: the smallest distance among 16 cutouts, no saliency, not the image as a whole."""
    return SaliencyLoss(clip, prompt, saliency_weight=0.0, cutouts=16, whole=False, reduce="min")
