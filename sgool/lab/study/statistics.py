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


def strengths(wins: np.ndarray, prior: float = 0.5, rounds: int = 100) -> np.ndarray:
    """Log strengths of the Bradley-Terry model, [..., M], with mean 0: exp(a) / (exp(a) + exp(b)) is how often a wins
    against b.

    wins: [..., M, M], of the first index over the second; a draw is half a win for each. prior: wins, and as many
    losses, that each is given against all others together. Above 0 the strengths are finite even where somebody never
    lost.

    By Newton's method; the likelihood has one peak.
    """
    size = wins.shape[-1]
    wins = wins + prior / (size - 1) * (1 - np.eye(size))
    played = wins + np.swapaxes(wins, -1, -2)
    logs = np.zeros(wins.shape[:-1])
    for _ in range(rounds):
        chance = 1 / (1 + np.exp(logs[..., None, :] - logs[..., :, None]))
        slope = (wins - played * chance).sum(-1)
        bend = played * chance * (1 - chance)
        # The ones hold the mean, which no game tells, at 0.
        curvature = bend.sum(-1)[..., None] * np.eye(size) - bend + 1
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        logs = logs + step / np.maximum(1, np.abs(step).max(-1, keepdims=True))
        if np.abs(step).max() < 1e-9:
            break
    return logs
