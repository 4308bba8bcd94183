"""Saliency detectors: where people look in an image.

`DETECTORS` lists all of them. `load_detector` loads one. `sgool.saliency.regions` turns a saliency map into crops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.region import Region
from sgool.saliency import spectral, transalnet
from sgool.weights import Weight

SaliencyFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Detector:
    """A kind of detector: a line for people, how to load it from a models folder onto a device, and its files.

    load: None for one that needs more than an image; see `sgool.detect`.
    """

    description: str
    load: Callable[[str | Path | None, torch.device], SaliencyFunction] | None
    weights: Callable[[], Sequence[Weight]] = tuple


DETECTORS: dict[str, Detector] = {
    "transalnet-res": Detector(
        "TranSalNet with ResNet-50, 290 MB", partial(transalnet.load, "res"), partial(transalnet.weights, "res")
    ),
    "transalnet-dense": Detector(
        "TranSalNet with DenseNet-161, 307 MB", partial(transalnet.load, "dense"), partial(transalnet.weights, "dense")
    ),
    "spectral": Detector("Spectral residual, needs no weights", spectral.load),
    "grad-cam": Detector("Where a convolutional CLIP sees the prompt, the selector or the guide", None),
    "grad-cam++": Detector("The same by Grad-CAM++, which sees more of a subject", None),
    "legrad": Detector("Where a vision transformer sees the prompt, the selector or the guide", None),
    "mask": Detector("Where you say: the mask that you paint or hand over", None),
}


class LoadedDetector:
    """A detector with its weights; `to` moves them to another device."""

    def __init__(self, saliency_map: SaliencyFunction, device: torch.device) -> None:
        self.saliency_map = saliency_map
        self.device = device

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[:2] != (1, 3) or 0 in image.shape:
            raise SgoolError(f"A saliency detector takes one RGB image [1, 3, H, W], not {list(image.shape)}.")
        prepared = image.to(self.device, torch.float32).clamp(0, 1)
        return self.saliency_map(prepared).clamp(0, 1).to(image.device)

    def of(self, prompt: str) -> LoadedDetector:
        """Itself, because it looks at all images alike."""
        return self

    def part(self, region: Region) -> LoadedDetector:
        return self

    def to(self, device: torch.device) -> LoadedDetector:
        if isinstance(self.saliency_map, torch.nn.Module):
            self.saliency_map.to(device)
        self.device = device
        return self


def load_detector(
    name: str, models_dir: str | Path | None = None, device: str | torch.device = "cpu"
) -> LoadedDetector:
    """Load a detector: image [1, 3, H, W], RGB in [0, 1] -> saliency map [H, W] in [0, 1].

    The detector computes in float32 on `device` without gradients, whatever the image's dtype and device. The map is
    float32 on the image's device. Weights are stored in `models_dir` (None: `sgool.weights.default_models_dir()`) and
    downloaded at first use. Raises SgoolError for an unknown name, for a detector that needs more than an image, and
    for weights that are not available. The detector itself raises SgoolError for an image of another shape.
    """
    load = _kind(name).load
    if load is None:
        raise SgoolError(f"The saliency detector {name} needs more than an image: see sgool.detect.")
    return LoadedDetector(load(models_dir, torch.device(device)), torch.device(device))


def detector_weights(name: str) -> Sequence[Weight]:
    """The files that a detector needs. Asks nobody; raises SgoolError for an unknown name."""
    return _kind(name).weights()


def _kind(name: str) -> Detector:
    if name not in DETECTORS:
        raise SgoolError(f"There is no saliency detector {name!r}; choose one of {', '.join(DETECTORS)}.")
    return DETECTORS[name]
