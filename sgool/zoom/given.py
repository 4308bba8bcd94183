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
    if (settings.zoom and settings.zoom_by == "mask") != mask:
        raise SettingError("zoom_by", "mask and a mask go together: give both or neither")


def at_size(
    image: Tensor | None, mask: Tensor | None, settings: Settings, size: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None]:
    """An initial image [1, 3, H, W] and a mask [H, W] at the size of the image to be; where that is only zoomed into,
    it keeps its own.

    size: the model's. Raises SgoolError like `check_zoom` and `sgool.zoom.find.check_mask`.
    """
    check_zoom(settings, mask is not None)
    if mask is not None:
        check_mask(mask, size if image is None else tuple(image.shape[-2:]))
    if image is None or only_zooms(settings):
        return image, mask
    return fit(image, size), None if mask is None else fit(mask[None, None].expand(1, 3, -1, -1), size)[0, 0]


@torch.no_grad()
def as_given(image: Tensor, critics: Critics, prompt: str, settings: Settings) -> Result:
    """The result of a run that leaves an image [1, 3, H, W] in [0, 1] as it is. Its latent is empty."""
    saliency = critics.detector(image)
    regions = tuple(region_finder(settings)(saliency))
    own = Snapshot(0, image, image.new_empty(0), critics.selector.judge(image, prompt), saliency, regions)
    return Result(own, own)
