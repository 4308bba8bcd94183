"""What pulls the image towards the prompt: critics, and a loss over the whole image and its salient regions.

`CRITICS` is the one list of critics; `load_critic` makes one ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sgool.errors import SgoolError
from sgool.guidance import clip, embedded
from sgool.guidance.critic import Critic, CriticKind, Role
from sgool.weights import Weight

CRITICS: dict[str, CriticKind] = {
    "clip": clip.KIND,
    "embedded": embedded.KIND,
}


def parse_critic(name: str) -> tuple[CriticKind, str]:
    """The kind and the variant that a critic's name gives: `clip`, or `clip:ViT-L-14/openai`.

    Raises SgoolError for an unknown kind, and for a variant that cannot be.
    """
    kind, _, variant = name.partition(":")
    if kind not in CRITICS:
        raise SgoolError(f"There is no critic {kind!r}; the critics are {', '.join(CRITICS)}.")
    CRITICS[kind].check(variant)
    return CRITICS[kind], variant


def check_critic(name: str) -> None:
    """Raises SgoolError like `parse_critic`. Loads and looks up nothing."""
    parse_critic(name)


def critic_weights(name: str, role: Role) -> Sequence[Weight]:
    """The files that a critic needs for its role. Asks nobody.

    Raises SgoolError like `parse_critic`, and for a variant that there is not.
    """
    kind, variant = parse_critic(name)
    return kind.weights(variant, role)


def load_critic(name: str, role: Role, models_dir: str | Path, device: torch.device | str = "cpu") -> Critic:
    """Make a critic ready for its role; missing weights are downloaded into `models_dir`.

    Raises SgoolError like `parse_critic`, and where the weights cannot be had.
    """
    kind, variant = parse_critic(name)
    return kind.load(variant, role, Path(models_dir), torch.device(device))


__all__ = ["CRITICS", "Critic", "CriticKind", "Role", "check_critic", "critic_weights", "load_critic", "parse_critic"]
