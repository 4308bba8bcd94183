"""An image and a mask that the user gives: at which size they are used, and what a run that only zooms comes to."""

from __future__ import annotations

import torch
from torch import Tensor

from sgool.generate import Critics, region_finder
from sgool.images import fit
from sgool.presets import only_zooms
from sgool.result import Result, Snapshot
from sgool.settings import SettingError, Settings
from sgool.zoom.find import check_mask


def check_zoom(settings: Settings, mask: bool) -> None:
    """Raises SettingError where places are given by a mask and there is none, or the other way round."""
    if zooms_on_mask(settings) != mask:
        raise SettingError("zoom_by", "mask and a mask go together: give both or neither")


def check_look(settings: Settings, mask: bool) -> None:
    """Raises SettingError where a mask says where to look and there is none, or the other way round."""
    if (settings.saliency == "mask") != mask:
        raise SettingError("saliency", "mask and a mask to look at go together: give both or neither")


def zooms_on_mask(settings: Settings) -> bool:
    return settings.zoom and settings.zoom_by == "mask"


def at_size(image: Tensor | None, settings: Settings, size: tuple[int, int]) -> Tensor | None:
    """An initial image [1, 3, H, W] at the size of the image to be; where that is only zoomed into, it keeps its own.

    size: the model's.
    """
    return image if image is None or only_zooms(settings) else fit(image, size)


def mask_at_size(mask: Tensor, image: Tensor | None, settings: Settings, size: tuple[int, int]) -> Tensor:
    """A mask [H, W] of an initial image at the size of the image to be, like `at_size`.

    image: as it was given, or None. Raises SgoolError like `sgool.zoom.find.check_mask`.
    """
    check_mask(mask, size if image is None else tuple(image.shape[-2:]))
    if image is None or only_zooms(settings):
        return mask
    return fit(mask[None, None].expand(1, 3, -1, -1), size)[0, 0]


@torch.no_grad()
def as_given(image: Tensor, critics: Critics, prompt: str, settings: Settings) -> Result:
    """The result of a run that leaves an image [1, 3, H, W] in [0, 1] as it is. Its latent is empty."""
    saliency = critics.detector.of(prompt)(image)
    regions = tuple(region_finder(settings)(saliency))
    own = Snapshot(0, image, image.new_empty(0), critics.selector.judge(image, prompt), saliency, regions)
    return Result(own, own)
