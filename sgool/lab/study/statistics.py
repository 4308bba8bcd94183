"""Intervals, agreement and strengths. Arrays only; what a vote is, `analysis` says."""

from __future__ import annotations

import numpy as np

Z = 1.959963984540054
"""Of a 95 % interval."""


def wilson(share: float, votes: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, from so many independent votes."""
    middle = (share + Z**2 / (2 * votes)) / (1 + Z**2 / votes)
    half = Z * np.sqrt(share * (1 - share) / votes + Z**2 / (4 * votes**2)) / (1 + Z**2 / votes)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of draws [B]; those that are no number are left out."""
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return float(low), float(high)


def resampled(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of so many things is in each bootstrap draw: [draws, count]."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)


def coincidences(counts: np.ndarray) -> np.ndarray:
    """Krippendorff's coincidences of each unit, [U, C, C], from how many chose each category for it: counts [U, C].

    A unit that fewer than two have judged has none.
    """
    counts = np.asarray(counts, float)
    together = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    others = counts.sum(1) - 1
    return together / np.where(others > 0, others, np.inf)[:, None, None]


def alpha(matrix: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha for categories without an order, of summed `coincidences` [..., C, C].

    1: all agree; 0: as by chance. It is NaN where nothing can be said, for example because all have chosen the same
    category. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section B.
    """
    of_each = matrix.sum(-1)
    total = of_each.sum(-1)
    differing = total - np.trace(matrix, axis1=-2, axis2=-1)
    by_chance = total**2 - (of_each**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(by_chance > 0, 1 - (total - 1) * differing / by_chance, np.nan)


def strengths(wins: np.ndarray, prior: float = 0.5, rounds: int = 10_000) -> np.ndarray:
    """Log strengths of the Bradley-Terry model, [..., M], with mean 0. A draw is half a win for each.

    wins: [..., M, M], of the first index over the second. prior: wins, and as many losses, that each gets against an
    imagined opponent of average strength; above 0 the strengths are finite even where somebody never lost.

    The MM algorithm of Hunter, MM algorithms for generalized Bradley-Terry models (2004), equation 3.
    """
    won = wins.sum(-1) + prior
    played = wins + np.swapaxes(wins, -1, -2)
    power = np.ones(won.shape)
    for _ in range(rounds):
        before = power
        against = (played / (power[..., :, None] + power[..., None, :])).sum(-1) + 2 * prior / (power + 1)
        power = won / against
        if prior == 0:  # only ratios count
            power = power / np.exp(np.log(power).mean(-1, keepdims=True))
        if np.abs(np.log(power) - np.log(before)).max() < 1e-9:
            break
    logs = np.log(power)
    return logs - logs.mean(-1, keepdims=True)
