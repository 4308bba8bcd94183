"""The nodes of a sampling trajectory: their timesteps, and the signal and noise level at each node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sgool.errors import SgoolError

SPACINGS = ("leading", "trailing", "distilled")

DISTILLED = 50
"""On how many timesteps consistency models are distilled; diffusers calls them `original_inference_steps`."""


@dataclass(frozen=True)
class Schedule:
    """T steps between T + 1 nodes. Node 0 is the noise, node T the image.

    timesteps: length T, descending; at node i the network is evaluated at timesteps[i]. Those of `make_schedule` are
    whole; a host's own may lie between two.
    a, sigma: length T + 1; sqrt(alphabar) and sqrt(1 - alphabar) at node i, float64.
    alphabar: length N; the model's, at every timestep. Only samplers that pass between the nodes need it.
    """

    timesteps: tuple[float, ...]
    a: tuple[float, ...]
    sigma: tuple[float, ...]
    alphabar: tuple[float, ...] = ()

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.timesteps)

    def nu(self, i: int) -> float:
        """The noise-to-signal ratio sigma / a at node i. In this variable DDIM is Euler's method."""
        return self.sigma[i] / self.a[i]


def make_schedule(alphas_cumprod: Tensor, steps: int, spacing: str = "leading", clean: bool = False) -> Schedule:
    """A model's schedule of so many steps.

    alphas_cumprod: [N], the model's alphabar, falling from nearly 1 to nearly 0. spacing: see `timesteps_of`. clean:
    whether the last node has alphabar 1, no noise; else it has alphabar[0] (SD's `set_alpha_to_one=False`).

    Raises SgoolError for a number of steps out of `steps_range`, and unless the nodes' alphabar falls strictly with
    the timestep and stays within (0, 1).
    """
    total = len(alphas_cumprod)
    fewest, most = steps_range(spacing, total)
    if not fewest <= steps <= most:
        raise SgoolError(f"The number of sampling steps must lie between {fewest} and {most}, not {steps}.")
    timesteps = timesteps_of(spacing, steps, total)
    levels = alphas_cumprod.detach().to("cpu", torch.float64)
    alphabar = [*levels[[*timesteps]].tolist(), 1.0 if clean else levels[0].item()]
    bounds = [0.0, *alphabar] if clean else [0.0, *alphabar, 1.0]
    if not all(noisier < cleaner for noisier, cleaner in pairwise(bounds)):
        raise SgoolError("The model's noise schedule (alphas_cumprod) must fall strictly and stay between 0 and 1.")
    a = tuple(math.sqrt(level) for level in alphabar)
    sigma = tuple(math.sqrt(1 - level) for level in alphabar)
    return Schedule(timesteps, a, sigma, tuple(levels.tolist()))


def steps_range(spacing: str, total: int = 1000) -> tuple[int, int]:
    """The fewest and the most steps of a spacing, for a model of `total` timesteps."""
    if spacing not in SPACINGS:
        raise SgoolError(f"The spacing of the timesteps must be one of {', '.join(SPACINGS)}, not {spacing!r}.")
    # One leading timestep would be the cleanest one.
    return {"leading": (2, total // 2), "trailing": (1, total // 2), "distilled": (1, min(DISTILLED, total // 2))}[
        spacing
    ]


def timesteps_of(spacing: str, steps: int, total: int) -> tuple[int, ...]:
    """The timesteps of a spacing, descending from the noise, as diffusers has them.

    leading: Stable Diffusion's, with offset 1: multiples of N // T, plus 1. They end near the image.
    trailing: N, N - N / T, ..., rounded, minus 1. They begin at the noisiest timestep (arXiv 2305.08891, table 2).
    distilled: trailing too, but only of the `DISTILLED` timesteps that consistency models know, as in LCMScheduler.
    """
    if spacing == "leading":
        return tuple(i * (total // steps) + 1 for i in reversed(range(steps)))
    if spacing == "trailing":
        return tuple(round(total - i * total / steps) - 1 for i in range(steps))
    known = [number * (total // DISTILLED) - 1 for number in range(DISTILLED, 0, -1)]
    return tuple(known[i * DISTILLED // steps] for i in range(steps))
