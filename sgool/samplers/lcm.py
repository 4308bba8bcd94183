"""LCM: multistep sampling of a latent consistency model (Luo et al., arXiv 2310.04378)."""

from __future__ import annotations

from sgool.samplers.schedule import Schedule
from sgool.samplers.stored import Stored

SIGMA_DATA = 0.5
SCALE = 10.0
"""Of the timestep, in the boundary condition; diffusers calls it `timestep_scaling`."""


def step(schedule: Schedule, i: int) -> tuple[float, float, float]:
    """(keep, c, noise) of step i -> i + 1: the image that the model predicts, noised again to the next node.

    x0 = c_skip * x + c_out * (x - sigma * eps) / a, with c_skip = d^2 / (s^2 + d^2) and c_out = s / sqrt(s^2 + d^2) at
    s = 10 t and d = 0.5; then x' = a' * x0 + sigma' * z. The last node has a' = 1 and sigma' = 0.
    """
    s = SCALE * schedule.timesteps[i]
    c_skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
    c_out = s / (s**2 + SIGMA_DATA**2) ** 0.5
    a = schedule.a
    return a[i + 1] * (c_skip + c_out / a[i]), -a[i + 1] * c_out * schedule.nu(i), schedule.sigma[i + 1]


def unbounded(schedule: Schedule, i: int) -> tuple[float, float, float]:
    """(keep, c, noise) without the boundary condition: c_skip = 0, c_out = 1."""
    a = schedule.a
    return a[i + 1] / a[i], -a[i + 1] * schedule.nu(i), schedule.sigma[i + 1]


def sampler(*, boundary: bool = True) -> Stored:
    """LCM, for models distilled for it, without guidance. boundary: whether it keeps the boundary condition."""
    return Stored("lcm", step if boundary else unbounded, spacing="distilled", clean=True, random=True)
