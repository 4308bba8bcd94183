"""What pulls the image towards the prompt: critics, and a loss over the whole image and its salient regions.

`CRITICS` is the one list of critics; `load_critic` makes one ready. A guide may be a weighted sum of several.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sgool.errors import SgoolError
from sgool.guidance import aesthetic, clip, embedded, hps, image_reward, pickscore
from sgool.guidance.blend import Blend
from sgool.guidance.critic import Critic, CriticKind, Role
from sgool.weights import Weight, is_here

CRITICS: dict[str, CriticKind] = {
    "clip": clip.KIND,
    "hps-v2.1": hps.KIND,
    "pickscore": pickscore.KIND,
    "image-reward": image_reward.KIND,
    "aesthetic": aesthetic.KIND,
    "embedded": embedded.KIND,
}

MOST = 100.0
"""The largest weight of a critic in a sum."""


def parse_critic(name: str) -> tuple[CriticKind, str]:
    """The kind and the variant that a critic's name gives: `clip`, or `clip:ViT-L-14/openai`.

    Raises SgoolError for an unknown kind, and for a variant that cannot be.
    """
    kind, _, variant = name.partition(":")
    if kind not in CRITICS:
        raise SgoolError(f"There is no critic {kind!r}; the critics are {', '.join(CRITICS)}.")
    CRITICS[kind].check(variant)
    return CRITICS[kind], variant


def parse_sum(text: str) -> dict[str, float]:
    """The critics that a guide names, and their weights: `clip`, or `clip 1, hps-v2.1 5`; a weight left out is 1.

    Raises SgoolError like `parse_critic`, for a weight that is none, and for a critic that is named twice.
    """
    if "," not in text:
        parse_critic(text)
        return {text: 1.0}
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition(" ")
        parse_critic(name)
        if name in found:
            raise SgoolError(f"The critic {name} is named twice.")
        found[name] = _weight(name, number.strip()) if number else 1.0
    return found


def _weight(name: str, number: str) -> float:
    value = float(number) if re.fullmatch(r"\d{1,4}(\.\d{1,6})?|\.\d{1,6}", number) else 0.0
    if not 0 < value <= MOST:
        raise SgoolError(f"The weight of {name} must be a number above 0, at most {MOST:g}, not {number!r}.")
    return value


def check_guide(text: str) -> None:
    """Raises SgoolError like `parse_sum`. Loads and looks up nothing."""
    parse_sum(text)


def check_critic(name: str) -> None:
    """Raises SgoolError like `parse_critic`. Loads and looks up nothing."""
    if "," in name:
        raise SgoolError(f"It takes one critic, not a sum such as {name!r}.")
    parse_critic(name)


def shared(guide: str, selector: str) -> str:
    """The critic of the guide that has the selector's image network; "" where there is none. Both are checked names."""
    judge = image_network(selector, "selector")
    return next((name for name in parse_sum(guide) if image_network(name, "guide") == judge), "")


def image_network(name: str, role: Role) -> str:
    """What tells a critic's image network from others. name: a checked one."""
    kind, variant = parse_critic(name)
    return name if kind.network is None else kind.network(variant, role)


def critic_weights(name: str, role: Role) -> Sequence[Weight]:
    """The files that a critic, or each of a sum, needs for its role. Asks nobody.

    Raises SgoolError like `parse_sum`, and for a variant that there is not.
    """
    parsed = map(parse_critic, parse_sum(name))
    return tuple(dict.fromkeys(weight for kind, variant in parsed for weight in kind.weights(variant, role)))


def load_critic(name: str, role: Role, models_dir: str | Path, device: torch.device | str = "cpu") -> Critic:
    """Make a critic, or a sum of several, ready for its role; missing weights are downloaded into `models_dir`.

    Raises SgoolError like `parse_sum`, and where the weights cannot be had.
    """
    found = parse_sum(name)
    critics = []
    for each in found:
        kind, variant = parse_critic(each)
        critics.append(kind.load(variant, role, Path(models_dir), torch.device(device)))
        critics[-1].name = each
    return critics[0] if len(critics) == 1 else Blend(critics, list(found.values()), name)


def listed(models_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All critics for people and programs: name, what it measures, licence, the size of its download in GB, what its
    weights take of a GPU in GiB, and whether all its files are in models_dir.
    """
    return [
        {
            "name": name,
            "measures": kind.description,
            "licence": kind.licence,
            "download_gb": kind.download,
            "gpu_gib": kind.memory,
            "here": all(is_here(each, models_dir) for role in ROLES for each in kind.weights("", role)),
        }
        for name, kind in CRITICS.items()
    ]


ROLES: tuple[Role, ...] = ("guide", "selector")

__all__ = [
    "CRITICS",
    "Critic",
    "CriticKind",
    "Role",
    "check_critic",
    "check_guide",
    "critic_weights",
    "image_network",
    "listed",
    "load_critic",
    "parse_critic",
    "parse_sum",
    "shared",
]
