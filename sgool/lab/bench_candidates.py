"""Measures what it saves to make candidates together, and to improve several images in lockstep."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from sgool.backends import Backend
from sgool.generate import Request, generate, load_critics
from sgool.lockstep import Member, in_lockstep
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
    return _ratio(partial(seconds, 1, count), partial(seconds, count, 1), repeats)


def lockstep_ratio(backend: Backend, prompt: str, repeats: int, count: int = 4, iterations: int = 4) -> float:
    """Median time of as many images improved in lockstep, divided by that of one after another. Both take turns.

    The backend must be the embedded model's.
    """
    settings = resolve({"patience": 0, "iterations": iterations}, model="tiny")
    critics = load_critics(needs(settings), "unused")

    class Joined:
        """The backend, as one member of the lockstep sees it."""

        def __init__(self, member: Member) -> None:
            self.member = member

        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

        def network(self, *prompts: object) -> object:
            return self.member.asking(backend.network(*prompts))  # type: ignore[arg-type]

    def alone() -> float:
        begun = time.perf_counter()
        for seed in range(count):
            generate(backend, critics, Request(prompt, seed=seed), settings)
        return time.perf_counter() - begun

    def together() -> float:
        def run(member: Member) -> None:
            generate(Joined(member), critics, Request(prompt, seed=member.number), settings)  # type: ignore[arg-type]

        begun = time.perf_counter()
        raised = in_lockstep([run] * count, lambda _: backend.network(prompt, "", settings.guidance_scale))
        assert raised == [None] * count, raised
        return time.perf_counter() - begun

    return _ratio(together, alone, repeats)


def _ratio(one: Callable[[], float], other: Callable[[], float], repeats: int) -> float:
    times = [(one(), other()) for _ in range(repeats)]
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return first / second
