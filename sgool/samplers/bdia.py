"""BDIA: exact inversion by bi-directional integration approximation (Zhang, Lewis, Kleijn, arXiv 2307.10829)."""

from __future__ import annotations

from functools import partial

from sgool.errors import SgoolError
from sgool.samplers import ddim
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule
from sgool.samplers.two_step import TwoStep


def gamma(steps: int, budget: float = 1e16) -> float:
    """The damping for T steps: the smallest, but at least 0.2, whose inverse amplifies rounding at most `budget` times.

    The inverse divides by gamma at every step, so errors grow as gamma ** -steps; two words have 1e-32 to lose, so
    0.2 serves up to 22 steps. Damping matters because guidance makes the second root of an undamped (gamma = 1)
    two-step method grow: at 10 steps and a guidance scale of 7.5 a gamma of 0.5 already falls behind DDIM, 0.2 and 0.3
    do not. As gamma falls BDIA becomes DDIM. A network that does not repeat its eps bit for bit is amplified just as
    much.
    """
    needed: float = budget ** (-1 / steps)
    return max(0.2, needed)


def coefficients(schedule: Schedule, i: int, damping: float | None = None) -> tuple[float, float, float]:
    """(alpha, beta, c) of step i -> i + 1: DDIM's step ahead, less gamma times (DDIM's step back minus x_{i-1})."""
    g = gamma(schedule.steps) if damping is None else damping
    ahead_x, ahead_eps = ddim.step(schedule, i, i + 1)
    back_x, back_eps = ddim.step(schedule, i, i - 1)
    return g, ahead_x - g * back_x, ahead_eps - g * back_eps


def sampler(gamma: float | None = None) -> Sampler:
    """BDIA with a fixed damping 0 < gamma <= 1 (the paper uses up to 1), or the default `gamma(steps)`.

    What damps the way to the image amplifies the way back: carried back from an image over T steps, the state grows as
    gamma ** -T (its inverse is exact all the same). For a full image start use gamma = 1, or O-BELM.
    """
    if gamma is not None and not 0 < gamma <= 1:
        raise SgoolError(f"BDIA's gamma must be above 0 and at most 1, not {gamma}.")
    return TwoStep("bdia", 1, partial(coefficients, damping=gamma))
