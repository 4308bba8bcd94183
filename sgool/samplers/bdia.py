"""BDIA: exact inversion by bi-directional integration approximation (Zhang, Lewis, Kleijn, arXiv 2307.10829)."""

from __future__ import annotations

from functools import partial

from sgool.errors import SgoolError
from sgool.samplers import ddim
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.two_step import TwoStep


def gamma(steps: int, budget: float = 1e16) -> float:
    """The damping for this number of steps: the smallest gamma >= 0.2 with gamma ** -steps <= `budget`.

    The inverse divides by gamma at every step, so it amplifies rounding errors by gamma ** -steps. Double-doubles have
    a relative error of about 1e-32 and can afford a factor of 1e16; gamma = 0.2 stays below it for up to 22 steps. A
    network that does not repeat its eps bit for bit adds errors, which are amplified by the same factor.

    Without damping (gamma = 1), guidance makes the second root of a two-step method grow. At 10 steps and guidance
    scale 7.5, gamma = 0.5 already does worse than DDIM, but 0.2 and 0.3 do not. As gamma goes to 0, BDIA becomes DDIM.
    """
    needed: float = budget ** (-1 / steps)
    return max(0.2, needed)


def coefficients(schedule: Schedule, i: int, damping: float | None = None) -> tuple[float, float, float]:
    """(alpha, beta, c) of step i -> i + 1: DDIM's step forward, minus gamma times (DDIM's step back - x_{i-1})."""
    g = gamma(schedule.steps) if damping is None else damping
    ahead_x, ahead_eps = ddim.step(schedule, i, i + 1)
    back_x, back_eps = ddim.step(schedule, i, i - 1)
    return g, ahead_x - g * back_x, ahead_eps - g * back_eps


def sampler(gamma: float | None = None) -> Sampler:
    """BDIA with a fixed damping 0 < gamma <= 1 (the paper uses values up to 1), or the default `gamma(steps)`.

    Damping stabilizes sampling but amplifies inversion: an image inverted over T steps gives a state that grows as
    gamma ** -T, although the inversion stays exact. For an image start over all steps, use gamma = 1 or O-BELM.
    Raises SgoolError for any other gamma.
    """
    if gamma is not None and not 0 < gamma <= 1:
        raise SgoolError(f"BDIA's gamma must be above 0 and at most 1, not {gamma}.")
    return TwoStep("bdia", 1, partial(coefficients, damping=gamma))
