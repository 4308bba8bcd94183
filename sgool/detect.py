"""Detectors that need more than an image: where a CLIP sees the prompt, and where the user says to look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance.critic import Critic, EmbeddingCritic, singles
from sgool.guidance.maps import MAPS, can_map, heat
from sgool.phrases import phrases_of
from sgool.region import Region
from sgool.saliency import SaliencyFunction

EXAMPLES = {"legrad": "clip", "grad-cam": "clip:RN50/openai", "grad-cam++": "clip:RN50/openai"}
"""A critic that has each map."""


class Detector(Protocol):
    """What finds where people look in the images of a prompt. `LoadedDetector` does so without the prompt."""

    def of(self, prompt: str) -> SaliencyFunction:
        """The detector for the images of a prompt: image [1, 3, H, W] in [0, 1] -> map [H, W] in [0, 1]."""

    def part(self, region: Region) -> Detector:
        """The detector for a part of the image that is looked at by itself."""

    def to(self, device: torch.device) -> Detector:
        """The same, moved to another device."""


class PromptDetector:
    """Where a critic sees the phrases of the prompt; see `sgool.guidance.maps`. name: one of `MAPS`.

    critics: the first that has such maps is asked; they are moved by whoever else uses them. Raises SgoolError where
    none has.
    """

    def __init__(self, name: str, critics: Sequence[Critic]) -> None:
        found = next((each for each in singles(critics) if can_map(each, name)), None)
        if not isinstance(found, EmbeddingCritic):
            raise SgoolError(
                f"The saliency detector {name} needs a CLIP with {MAPS[name].encoder} as selector or guide, such as "
                f"{EXAMPLES[name]}."
            )
        self.name = name
        self.critic = found

    def of(self, prompt: str) -> SaliencyFunction:
        """Each phrase counts as much as any other: of their maps, scaled to a peak of 1, the largest value is taken."""
        texts = phrases_of(prompt)

        def look(image: Tensor) -> Tensor:
            maps, _ = heat(self.critic, image, texts, self.name)
            peaks = maps.amax((1, 2), keepdim=True)
            return (maps / peaks.clamp_min(torch.finfo(maps.dtype).tiny)).amax(0).to(image.device)

        return look

    def part(self, region: Region) -> PromptDetector:
        return self

    def to(self, device: torch.device) -> PromptDetector:
        return self


class MaskDetector:
    """Where a mask [H, W] in [0, 1] is white, whatever the image shows; scaled to the size of the image.

    Raises SgoolError for a mask that is none, or empty.
    """

    def __init__(self, mask: Tensor) -> None:
        if mask.ndim != 2 or not mask.numel() or not bool(torch.isfinite(mask).all()):
            raise SgoolError(f"A mask has the shape [H, W] and finite values, not {list(mask.shape)}.")
        if not (mask > 0.5).any():
            raise SgoolError("The mask is empty: nothing in it is white.")
        self.mask = mask.detach().float().clamp(0, 1)

    def of(self, prompt: str) -> SaliencyFunction:
        return lambda image: F.interpolate(
            self.mask[None, None], image.shape[-2:], mode="bilinear", align_corners=False, antialias=True
        )[0, 0].to(image.device)

    def part(self, region: Region) -> MaskDetector:
        """The mask in the region, or all of the region where none of it is white. The mask has the image's size."""
        rows = slice(region.top, region.top + region.height)
        mask = self.mask[rows, region.left : region.left + region.width]
        return MaskDetector(mask if (mask > 0.5).any() else torch.ones_like(mask))

    def to(self, device: torch.device) -> MaskDetector:
        return self
