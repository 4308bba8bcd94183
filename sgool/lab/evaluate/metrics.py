"""The metrics: critics that score finished images, and whether a method has worked towards that score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sgool import tiny
from sgool.errors import SgoolError
from sgool.guidance import CRITICS, critic_weights, image_network, load_critic, parse_sum
from sgool.guidance.clip import load_clip_folder
from sgool.guidance.critic import Critic, Role
from sgool.lab.evaluate.methods import CHOOSING, PULLED
from sgool.settings import Settings
from sgool.weights import ensure

CLIP_SCORE = "clip:ViT-B-32/openai"
"""The network of the CLIP score (Hessel et al., arXiv 2104.08718), which is 100 times the cosine."""

OPTIMIZED, CHOSEN = "optimized", "chosen"
MARKS = {OPTIMIZED: "†", CHOSEN: "‡"}
"""Beside a score: the method followed this network's gradient; this network chose the method's image."""

EMBEDDED_JUDGE = "embedded judge"


@dataclass(frozen=True)
class Metric:
    """name: its column. critic, role: as `load_critic` takes them. scale: what its score is multiplied by. unit: in
    words. network: the image network's name.
    """

    name: str
    critic: str
    role: Role
    unit: str
    network: str
    scale: float = 1.0

    @property
    def key(self) -> str:
        """What a score is kept by."""
        return f"{self.network} ({self.unit})"

    def marks(self, method: str, settings: Settings) -> list[str]:
        """How a method has worked towards this score; settings: the method's. [] where it has not."""
        guides = {image_network(name, "guide") for name in parse_sum(settings.guide)}
        selector = image_network(settings.selector, "selector")
        by = guides | {selector} if settings.candidates > 1 else {selector}
        marks = [OPTIMIZED] if method in PULLED and self.network in guides else []
        return marks + ([CHOSEN] if method in CHOOSING and self.network in by else [])


def default_metrics(model: str) -> tuple[str, ...]:
    """What is measured where nothing is said."""
    if model in tiny.NAMES:
        return ("judge", "selector", "guide")
    return ("clip-score", "hps-v2.1", "pickscore", "image-reward")


def find_metrics(names: Sequence[str], settings: Settings, model: str) -> list[Metric]:
    """The metrics of these names; none: the model's own. settings: whose guide and selector there are.

    clip-score: see `CLIP_SCORE`; guide, selector: those of the run; judge: the embedded model's third CLIP, which no
    run sees; or any critic. Raises SgoolError for others, and for one that is named twice.
    """
    found = [metric for name in names or default_metrics(model) for metric in _find(name, settings)]
    for number, metric in enumerate(found):
        if metric.name in [each.name for each in found[:number]]:
            raise SgoolError(f"The metric {metric.name} is named twice.")
    return found


def _find(name: str, settings: Settings) -> list[Metric]:
    if name == "judge":
        return [Metric("judge", EMBEDDED_JUDGE, "selector", "cosine", EMBEDDED_JUDGE)]
    if name == "clip-score":
        network = image_network(CLIP_SCORE, "selector")
        return [Metric(name, CLIP_SCORE, "selector", "100 x cosine", network, 100.0)]
    if name == "guide":
        critics = list(parse_sum(settings.guide))
        return [_critic("guide" if len(critics) == 1 else f"guide {each}", each, "guide") for each in critics]
    if name == "selector":
        return [_critic("selector", settings.selector, "selector")]
    if name.partition(":")[0] not in CRITICS:
        told = ", ".join(("clip-score", "guide", "selector", "judge", *CRITICS))
        raise SgoolError(f"There is no metric {name!r}; there are {told}.")
    return [_critic(name, name, "selector")]


def _critic(name: str, critic: str, role: Role) -> Metric:
    unit = UNITS.get(critic.partition(":")[0], "cosine")
    return Metric(name, critic, role, unit, image_network(critic, role))


UNITS = {"pickscore": "cosine x the model's scale", "image-reward": "standard deviations", "aesthetic": "rating"}
"""Of the critics whose scores are no cosines."""


def fetch_metric(metric: Metric, models_dir: Path) -> None:
    """Download what a metric needs."""
    for weight in () if metric.network == EMBEDDED_JUDGE else critic_weights(metric.critic, metric.role):
        ensure(weight, models_dir)


def load_metric(metric: Metric, models_dir: Path, device: torch.device, half: bool) -> Critic:
    """A metric's network. Raises SgoolError where it cannot be had."""
    if metric.network == EMBEDDED_JUDGE:
        return load_clip_folder(tiny.CLIPS["judge"], device=device)
    return load_critic(metric.critic, metric.role, models_dir).to(device, half)
