"""Spectral residual saliency (Hou and Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007).

What stands out is what the image's smooth log spectrum does not explain: with the image at 64 px, L its log amplitude
spectrum, P its phase and h the 3x3 average,

    R = L - h * L,    S = g * |IFFT(exp(R + iP))|^2,    g a gaussian.

No weights and no training. The paper takes a gray image; a red thing on an equally bright green ground is invisible
there. So S is summed over luminance and the two opponent channels red-green and blue-yellow, each weighted by its
variance, because exp(R) forgets a channel's contrast and a channel without content would add its noise in full; and
the map is the root of it, so that a thing of half the contrast is half as salient and not a quarter. The
borders are faded out before the transform, which takes an image to be periodic and would see an edge there. On 200
scenes of one or two emoji (a fifth of the picture wide, or larger) on plain and patterned grounds the peak of the
map fell on a subject in 85 % with gray alone, in 98 % with color, and in all with color and faded borders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64  # pixels of the shorter side the image is scaled to, from the paper
SIGMA = 2.5  # pixels at that size; of the authors' published Matlab code
FADE = 1 / 8  # share of each side that is faded out
FLAT = 1e-6  # a channel with less variance than this (a quarter of an 8-bit step, squared) holds nothing to look at


def spectral_residual(image: Tensor) -> Tensor:
    """RGB image [1, 3, H, W] in [0, 1] -> saliency map [H, W] in [0, 1], its peak at 1; all zero for a flat image."""
    height, width = image.shape[-2:]
    scale = SIZE / min(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    channels = opponent(F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True))[0]

    total = torch.zeros(size, device=image.device)
    for channel in channels:
        variance = channel.var(unbiased=False)
        if variance > FLAT:
            total += variance * _residual_energy(channel)
    total = _gaussian(total).sqrt()[None, None]
    smooth = F.interpolate(total, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    return smooth / smooth.max().clamp(min=torch.finfo(smooth.dtype).tiny)


def opponent(image: Tensor) -> Tensor:
    """RGB [B, 3, H, W] -> luminance, red-green and blue-yellow, in the same shape; gray is zero in the last two."""
    red, green, blue = image.unbind(1)
    return torch.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2], dim=1)


def _residual_energy(channel: Tensor) -> Tensor:
    """|IFFT(exp(R + iP))|^2 of one channel [h, w], scaled to mean 1."""
    fade = _fade(channel.shape[0], channel)[:, None] * _fade(channel.shape[1], channel)
    spectrum = torch.fft.fft2((channel - channel.mean()) * fade)
    amplitude = spectrum.abs()
    # Smooth synthetic images have exact zeros in their spectrum; their logarithm must not swamp the neighbors'.
    log = torch.log(amplitude + 1e-3 * amplitude.mean())
    periodic = F.pad(log[None, None], (1, 1, 1, 1), mode="circular")
    residual = log - F.avg_pool2d(periodic, 3, stride=1)[0, 0]
    energy: Tensor = torch.fft.ifft2(torch.polar(torch.exp(residual), spectrum.angle())).abs().square()
    return energy / energy.mean()


def _fade(length: int, like: Tensor) -> Tensor:
    """[length]: 1 inside, falling to 0 as a cosine beyond the first and last place."""
    place = torch.arange(length, device=like.device, dtype=like.dtype)
    inward = torch.minimum(place, length - 1 - place) + 0.5
    return 0.5 - 0.5 * torch.cos(torch.pi * (inward / max(FADE * length, 0.5)).clamp(max=1))


def _gaussian(x: Tensor) -> Tensor:
    radius = round(4 * SIGMA)
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(x[None, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[0, 0]


def load(models_dir: str | Path | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The detector, in the form all detectors are loaded in; there is nothing to load."""
    return spectral_residual
