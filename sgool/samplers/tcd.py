"""TCD: strategic stochastic sampling of a trajectory consistency model (Zheng et al., arXiv 2402.19159)."""

from __future__ import annotations

from sgool.samplers.schedule import Schedule
from sgool.samplers.stored import Stored

ETA = 0.3
"""The share of noise in a step, the paper's gamma: 0 is deterministic, 1 predicts the image and noises it again."""


def step(schedule: Schedule, i: int) -> tuple[float, float, float]:
    """(keep, c, noise) of step i -> i + 1: a DDIM step to the cleaner timestep s = (1 - eta) t', then noise up to t'.

    x' = r x_s + sqrt(1 - r^2) z with r^2 = alphabar' / alphabar_s. Both t' and s are 0 at the last node.
    """
    later = schedule.timesteps[i + 1] if i + 1 < schedule.steps else 0
    level = schedule.alphabar[int((1 - ETA) * later)]
    a, nu = level**0.5, ((1 - level) / level) ** 0.5
    r = schedule.a[i + 1] / a
    return r * a / schedule.a[i], r * a * (nu - schedule.nu(i)), max(0.0, 1 - r * r) ** 0.5 if later else 0.0


def sampler() -> Stored:
    """TCD, for models distilled for it (Hyper-SD too), without guidance."""
    return Stored("tcd", step, spacing="distilled", random=True)
