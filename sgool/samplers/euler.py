"""Euler (Karras et al., arXiv 2206.00364) and k-diffusion's ancestral variant of it, on trailing timesteps.

Turbo and Lightning models are sampled so. Both work on x / a, whose noise level is nu, and both end without noise. They
begin with nu_0 times the seed's noise, so x_0 is sigma_0 times that noise.
"""

from __future__ import annotations

from functools import partial

from sgool.samplers.ddim import Ddim
from sgool.samplers.schedule import Schedule
from sgool.samplers.stored import Stored


def ancestral_step(schedule: Schedule, i: int, eta: float = 1.0) -> tuple[float, float, float]:
    """(keep, c, noise) of step i -> i + 1: Euler down to the level `down`, then noise up to the next node's level.

    up^2 = eta^2 nu'^2 (nu^2 - nu'^2) / nu^2, at most nu'^2, and down^2 = nu'^2 - up^2.
    """
    before, after = schedule.nu(i), schedule.nu(i + 1)
    up = min(after, eta * after * (1 - (after / before) ** 2) ** 0.5)
    down = (after**2 - up**2) ** 0.5
    a = schedule.a
    return a[i + 1] / a[i], a[i + 1] * (down - before), a[i + 1] * up


def sampler() -> Stored:
    """Euler, which is DDIM with another end: its last node has no noise. It has DDIM's approximate inverse."""
    return Ddim("euler", spacing="trailing", clean=True, sigma_start=True)


def ancestral(eta: float = 1.0) -> Stored:
    """Euler a. eta: the share of its noise; 0 is Euler."""
    return Stored("euler-a", partial(ancestral_step, eta=eta), clean=True, sigma_start=True, random=True)
