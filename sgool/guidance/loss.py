"""How far an image is from its prompt: as a whole, in random cutouts, and where people look.

SGOOL (arXiv 2410.10257) adds the salient regions to the loss of DOODL (arXiv 2303.13703), which sees only cutouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance.critic import Critic
from sgool.guidance.prompt import clean_prompt, phrases
from sgool.region import Region


def random_cutouts(
    image: Tensor,
    count: int,
    size: int,
    generator: torch.Generator | None = None,
    power: float = 0.3,
    min_size: int | None = None,
) -> Tensor:
    """`count` random squares of the image [1, 3, H, W], pooled to [count, 3, size, size]; differentiable.

    The side of a square is u^power * (max - min) + min, with u uniform in [0, 1) and max the image's shorter side.
    DOODL's power of 0.3 makes large squares more frequent. min_size: the min above; by default `size`, but at most half
    of the shorter side, so the cutouts of a small image differ too. Squares smaller than `size` are interpolated
    instead of pooled.
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
    """The part [1, 3, height, width] of the image [1, 3, H, W].

    Raises SgoolError if the region is empty or leaves the image.
    """
    bottom, right = region.top + region.height, region.left + region.width
    inside = 0 <= region.top < bottom <= image.shape[-2] and 0 <= region.left < right <= image.shape[-1]
    if not inside:
        raise SgoolError(f"The region {region} does not lie within the image of {image.shape[-1]}x{image.shape[-2]}.")
    return image[..., region.top : bottom, region.left : right]


@dataclass(frozen=True)
class Whole:
    """How the image as a whole is compared with the prompt.

    cutouts, power: see `random_cutouts`. itself: whether the image itself counts as one more cutout. reduce: "mean"
    averages the distances of all cutouts, which gives every cutout a gradient; "min" is DOODL's minimum. Raises
    SgoolError without any cutout.
    """

    cutouts: int = 8
    power: float = 0.3
    itself: bool = True
    reduce: Literal["mean", "min"] = "mean"

    def __post_init__(self) -> None:
        if not self.itself and self.cutouts < 1:
            raise SgoolError("The loss needs at least one cutout, or the whole image.")


DOODL = Whole(cutouts=16, itself=False, reduce="min")
"""DOODL's published loss: the smallest distance among 16 cutouts. Use it with a saliency weight of 0."""


SETTLING = 16
"""Cutouts that a sum of critics is settled by."""


class SaliencyLoss:
    """(1 - w) * whole + w * sum_r v_r * distance(crop_r), with the critic's distances.

    v_r is the square root of the region's share of the saliency, scaled to a sum of one. The square root favors faint
    regions, because a faint region draws the eye less and needs more help.

    prompt: what the image should show. region_prompts: the regions' own prompts in one text, separated by `[SEP]`;
    they come before `Region.text`. A region without a text of its own is compared with the whole prompt. With
    match_phrases and a prompt of several phrases, such a region is compared with the phrase that suits the region best
    (see `assign`), of those that are no region's own text. Regions beyond the number of these phrases do not count,
    because two regions with the same phrase would draw its subject twice.
    saliency_weight: w in [0, 1]; SgoolError otherwise.

    All views and crops go through the critic in one batch.
    """

    def __init__(
        self,
        critic: Critic,
        prompt: str,
        *,
        whole: Whole = Whole(),
        region_prompts: str = "",
        match_phrases: bool = False,
        saliency_weight: float = 0.5,
    ) -> None:
        if not 0 <= saliency_weight <= 1:
            raise SgoolError(f"The saliency weight must be between 0 and 1, not {saliency_weight}.")
        self.critic = critic
        self.prompt = prompt
        self.whole = whole
        self.region_prompts = {i: text for i, text in enumerate(region_prompts.split("[SEP]")) if text.strip()}
        self.phrases = phrases(clean_prompt(prompt)) if match_phrases else []
        self.saliency_weight = saliency_weight

    def __call__(
        self, image: Tensor, regions: Sequence[Region] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """The scalar loss of one image [1, 3, H, W] in [0, 1]. Without regions only the whole image counts."""
        salient = self._compared(regions)
        self._settle(image)
        views = self._views(image, generator)
        crops = [crop(image, regions[number]) for number in salient]
        features = self.critic.encode(views + crops)
        seen = len(features) - len(crops)
        distances = self.critic.distance(features[:seen], [self.prompt] * seen)
        loss = distances.min() if self.whole.reduce == "min" else distances.mean()
        if not crops:
            return loss
        texts = self._texts(features[seen:].detach(), regions, salient)
        weights = loss.new_tensor([regions[number].mass for number in salient]).sqrt()
        local = (weights / weights.sum() * self.critic.distance(features[seen:], texts)).sum()
        return (1 - self.saliency_weight) * loss + self.saliency_weight * local

    @torch.no_grad()
    def _settle(self, image: Tensor) -> None:
        """Before the first loss, a sum of critics weighs them by their scores of the image and of cutouts."""
        if self.critic.settled:
            return
        cutouts = random_cutouts(image, SETTLING, min(self.critic.image_size), torch.Generator().manual_seed(0))
        features = self.critic.encode([image, cutouts])
        self.critic.settle(self.critic.parts(features, [self.prompt] * len(features)))

    def _views(self, image: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        views = [image] if self.whole.itself else []
        if self.whole.cutouts:
            size = min(self.critic.image_size)
            views.append(random_cutouts(image, self.whole.cutouts, size, generator, self.whole.power))
        return views

    def _compared(self, regions: Sequence[Region]) -> list[int]:
        """The numbers of the regions that count: those with saliency and with a text to compare them with."""
        if not self.saliency_weight:
            return []
        salient = [number for number, region in enumerate(regions) if region.mass > 0]
        free = [number for number in salient if not self._own(regions, number)]
        left_over = free[len(self._left(regions)) :] if len(self.phrases) > 1 else []
        return [number for number in salient if number not in left_over]

    def _own(self, regions: Sequence[Region], number: int) -> str:
        """A region's own text, if it has one. The user's comes before what is known of the region."""
        return self.region_prompts.get(number) or regions[number].text

    def _left(self, regions: Sequence[Region]) -> list[str]:
        """The phrases that no region is compared with by its `Region.text`."""
        taken = {region.text for number, region in enumerate(regions) if number not in self.region_prompts}
        return [phrase for phrase in self.phrases if phrase not in taken]

    def _texts(self, features: Tensor, regions: Sequence[Region], numbers: Sequence[int]) -> list[str]:
        """The text that each region is compared with. features: of the crops."""
        texts = [self._own(regions, number) or self.prompt for number in numbers]
        free = [row for row, number in enumerate(numbers) if not self._own(regions, number)]
        if free and len(self.phrases) > 1:
            left = self._left(regions)
            for row, phrase in zip(free, assign(self.critic.table(features[free], left)), strict=True):
                texts[row] = left[phrase]
        return texts


def gradient_of(value: Tensor, pixels: Tensor, decoded: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of a loss with respect to a latent, float64.

    value: the loss of pixels, which are decoded without its graph. decoded: what the decoder makes of leaf, the latent.
    The gradient is scaled to unit rms for the decoder, because half precision cannot hold the small original values.
    """
    (gradient,) = torch.autograd.grad(value, pixels)
    scale = gradient.square().mean().sqrt().item() or 1.0
    (pulled,) = torch.autograd.grad(decoded, leaf, (gradient / scale).to(decoded.dtype))
    return scale * pulled.double()


def assign(similarity: Tensor) -> list[int]:
    """A phrase for each region: similarity [regions, phrases] -> the number of each region's phrase.

    The most similar pair is matched first, then the most similar of the remaining pairs. A region that shows nothing
    clear thus gets a phrase that is still missing. No phrase is used twice, so there must be enough phrases.
    """
    left = similarity.clone()
    chosen = [-1] * len(left)
    for _ in chosen:
        region, phrase = divmod(int(left.argmax()), left.shape[1])
        chosen[region] = phrase
        left[region], left[:, phrase] = -torch.inf, -torch.inf
    return chosen
