"""The nodes of a sampling trajectory: their timesteps, and the signal and noise level at each node."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sgool.errors import SgoolError


@dataclass(frozen=True)
class Schedule:
    """T steps between T + 1 nodes. Node 0 is the noise, node T the image.

    timesteps: length T, descending; at node i the network is evaluated at timesteps[i].
    a, sigma: length T + 1; sqrt(alphabar) and sqrt(1 - alphabar) at node i, float64.
    """

    timesteps: tuple[int, ...]
    a: tuple[float, ...]
    sigma: tuple[float, ...]

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.timesteps)

    def nu(self, i: int) -> float:
        """The noise-to-signal ratio sigma / a at node i. In this variable DDIM is Euler's method."""
        return self.sigma[i] / self.a[i]


def make_schedule(alphas_cumprod: Tensor, steps: int) -> Schedule:
    """Stable Diffusion's spacing ("leading", offset 1): multiples of N // steps, plus 1.

    alphas_cumprod: [N], the model's alphabar, falling from nearly 1 to nearly 0. The last node has alphabar[0], not 1
    (SD's `set_alpha_to_one=False`). Raises SgoolError unless 2 <= steps <= N / 2, and unless the nodes' alphabar falls
    strictly with the timestep and stays within (0, 1).
    """
    total = len(alphas_cumprod)
    if not 2 <= steps <= total // 2:
        raise SgoolError(f"The number of sampling steps must lie between 2 and {total // 2}, not {steps}.")
    timesteps = tuple(i * (total // steps) + 1 for i in reversed(range(steps)))
    alphabar = alphas_cumprod.detach().to("cpu", torch.float64)[[*timesteps, 0]]
    levels = [0.0, *alphabar.tolist(), 1.0]
    if not all(noisier < cleaner for noisier, cleaner in pairwise(levels)):
        raise SgoolError("The model's noise schedule (alphas_cumprod) must fall strictly and stay between 0 and 1.")
    return Schedule(timesteps, tuple(alphabar.sqrt().tolist()), tuple((1 - alphabar).sqrt().tolist()))
