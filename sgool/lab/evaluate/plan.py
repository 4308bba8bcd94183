"""What is made: an image for each prompt, seed and method, and the name by which it is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgool import cost, tiny
from sgool.backends.diffusers import find_model
from sgool.checks import SEEDS
from sgool.errors import SgoolError
from sgool.job import effective
from sgool.lab.evaluate import FORMAT
from sgool.lab.evaluate.methods import METHODS, settings_of
from sgool.lab.evaluate.metrics import Metric, find_metrics
from sgool.lab.evaluate.prompts import Prompt
from sgool.needs import Needs, needs
from sgool.settings import Settings

MOST = 1000
"""Images of a prompt and method."""

UNSEEN = ("memory",)
"""Settings that no image shows."""

_REGIONS = ("max_regions", "threshold", "min_size", "padding")


@dataclass(frozen=True)
class Trial:
    """One image of one method. key: the name of its file."""

    prompt: Prompt
    seed: int
    method: str
    settings: Settings
    key: str

    @property
    def cost(self) -> float:
        """In plain images of 20 steps, about."""
        return max(cost.images(self.settings), self.settings.steps / cost.IMAGE_STEPS)


@dataclass(frozen=True)
class Plan:
    """What is compared. seeds: images for each prompt and method. size: sides of the square images in pixels; None: the
    model's own. given: settings of the user's, for all methods that use them. metrics: names, see `find_metrics`.
    best_of: images that best-of-n chooses from; None: as many as take SGOOL's time. dtype: of the UNet.

    Raises SgoolError for what cannot be.
    """

    prompts: tuple[Prompt, ...]
    methods: tuple[str, ...] = tuple(METHODS)
    metrics: tuple[str, ...] = ()
    seeds: int = 1
    first_seed: int = 0
    model: str = "tiny"
    size: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    best_of: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MOST:
            raise SgoolError(f"--seeds must be at least 1 and at most {MOST}.")
        if not 0 <= self.first_seed <= SEEDS - self.seeds:
            raise SgoolError(f"--first-seed must be at least 0, and every seed below {SEEDS}.")
        if self.best_of is not None and not 1 <= self.best_of <= MOST:
            raise SgoolError(f"--best-of must be at least 1 and at most {MOST}.")
        if self.size is not None and (self.size < 64 or self.size > 4096 or self.size % 8):
            raise SgoolError("--size must be a multiple of 8 from 64 to 4096.")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise SgoolError(f"There is no method {unknown[0]!r} to evaluate; there are {', '.join(METHODS)}.")
        find_model(self.model)
        for method in self.methods:
            self.settings(method)
        self.measured()

    def settings(self, method: str, best_of: int = 1) -> Settings:
        """What a method sets."""
        return settings_of(method, self.model, self.given, self.best_of or best_of)

    @property
    def base(self) -> Settings:
        """What all methods have in common, guide, selector and memory: SGOOL's own."""
        return self.settings("sgool")

    def needs(self) -> Needs:
        """The networks that its methods need."""
        every = [needs(self.settings(method)) for method in self.methods]
        detectors = [each.detector for each in every if each.detector != "spectral"]
        return Needs(every[0].guide, every[0].selector, detectors[0] if detectors else "spectral")

    def measured(self) -> list[Metric]:
        """The metrics. Raises SgoolError for one that there is not."""
        return find_metrics(self.metrics, self.base, self.model)

    def trials(self, best_of: int) -> list[Trial]:
        """Every image, those of a prompt together."""
        common = {"format": FORMAT, "model": fingerprint(self.model), "size": self.size, "dtype": self.dtype}
        settings = {method: self.settings(method, best_of) for method in self.methods}
        shown = {method: seen(each) for method, each in settings.items()}
        return [
            Trial(
                prompt,
                seed,
                method,
                settings[method],
                digest({**common, "prompt": prompt.text, "seed": seed, "settings": shown[method]}),
            )
            for prompt in self.prompts
            for seed in range(self.first_seed, self.first_seed + self.seeds)
            for method in self.methods
        ]

    def timed(self) -> str:
        """What the number of images of best-of-n depends on, as a digest."""
        used = [seen(self.settings(method)) for method in ("sd", "sgool")]
        return digest({"model": fingerprint(self.model), "size": self.size, "dtype": self.dtype, "settings": used})


def seen(settings: Settings) -> dict[str, Any]:
    """The settings that an image shows."""
    unseen = set(UNSEEN)
    if not settings.updates:  # of a single sampled image, nothing is chosen
        unseen |= {*_REGIONS} | ({"selector"} if settings.candidates == 1 else set())
        unseen |= {"guide"} if settings.candidates == 1 and settings.method == "none" else set()
    return {name: value for name, value in effective(settings).items() if name not in unseen}


def digest(content: Mapping[str, Any]) -> str:
    """A name for what is described so."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def fingerprint(model: str) -> list[Any]:
    """What tells a model from another of its name: for files, their sizes and the sums of their first MiB."""
    path = find_model(model)
    if model in tiny.NAMES or not path.exists():
        return [model]
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return [[each.name, each.stat().st_size, _sum_of_first(each)] for each in files]


def _sum_of_first(path: Path, size: int = 1 << 20) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()[:16]
