"""O-BELM: the bidirectional explicit linear multi-step sampler of least local error (Wang et al., arXiv 2410.07273)."""

from __future__ import annotations

from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.two_step import TwoStep


def coefficients(schedule: Schedule, i: int) -> tuple[float, float, float]:
    """(alpha, beta, c) of step i -> i + 1.

    With z = x / a as a function of nu, the probability flow is dz/dnu = eps. Matching z_{i-1}, z_i and z'_i up to the
    second derivative gives z_{i+1} = r^2 z_{i-1} + (1 - r^2) z_i - h (1 + r) z'_i, where r = h / H is the ratio of this
    step h to the previous step H.
    """
    h = schedule.nu(i) - schedule.nu(i + 1)
    r = h / (schedule.nu(i - 1) - schedule.nu(i))
    a = schedule.a
    return r * r * a[i + 1] / a[i - 1], (1 - r * r) * a[i + 1] / a[i], -h * (1 + r) * a[i + 1]


def sampler() -> Sampler:
    """O-BELM, second order."""
    return TwoStep("o-belm", 2, coefficients)
