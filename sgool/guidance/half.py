"""Half precision for a frozen network, and gradients through it that neither overflow nor vanish."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGE = 200_000_000
"""Parameters from which on a network computes in half precision: a smaller one takes little, and would lose digits."""


def is_half(dtype: torch.dtype) -> bool:
    """Whether a UNet in this precision lets critics compute in half precision, too."""
    return dtype in (torch.float16, torch.bfloat16)


def precision(parameters: int, device: torch.device, half: bool) -> torch.dtype:
    """What a network of so many parameters computes in. CPUs are slow in float16, or cannot."""
    return torch.float16 if half and device.type == "cuda" and parameters >= LARGE else torch.float32


def in_precision(network: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """network(x) for a network in `dtype`; x and the result are float32.

    The gradient of a loss is often smaller than float16 can hold (6e-8). Where it enters the network it is scaled to a
    peak of 1, and back where it leaves. A way back is linear, so nothing else changes.
    """
    if dtype == torch.float32:
        return network(x).float()
    inward = x.view_as(x)  # a node of its own: x may have other uses
    outward = network(inward.to(dtype)).float()
    if inward.requires_grad and outward.requires_grad:
        peaks: list[Tensor] = []

        def enter(gradient: Tensor) -> Tensor:
            peak = gradient.abs().amax()
            peaks.append(torch.where(peak > 0, peak, torch.ones_like(peak)))
            return gradient / peaks[-1]

        outward.register_hook(enter)  # type: ignore[no-untyped-call]
        inward.register_hook(lambda gradient: gradient * peaks.pop())  # type: ignore[no-untyped-call]
    return outward
