"""Measures what it saves to make candidates together."""

from __future__ import annotations

import statistics
import time

from sgool.backends import Backend
from sgool.generate import Request, generate, load_critics
from sgool.needs import needs
from sgool.presets import resolve


def candidates_ratio(backend: Backend, prompt: str, repeats: int, count: int = 8) -> float:
    """Median time of a run that only makes so many candidates, divided by that of as many single runs. Both take turns.

    The backend must be the embedded model's.
    """
    settings = resolve({"method": "none", "candidates": count}, model="tiny")
    critics = load_critics(needs(settings), "unused")

    def seconds(runs: int, candidates: int) -> float:
        begun = time.perf_counter()
        for seed in range(runs):
            generate(backend, critics, Request(prompt, seed=seed), settings.changed(candidates=candidates))
        return time.perf_counter() - begun

    seconds(1, count)
    times = [(seconds(1, count), seconds(count, 1)) for _ in range(repeats)]
    together, single = (statistics.median(column) for column in zip(*times, strict=True))
    return together / single
