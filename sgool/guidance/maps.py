"""Where an image shows a phrase: heat maps of a CLIP, by its kind of image encoder. `MAPS` lists all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance import cam, legrad
from sgool.guidance.clip import Clip
from sgool.guidance.critic import Critic
from sgool.guidance.evidence import TOGETHER, Evidence, cut, evidence, merged


@dataclass(frozen=True)
class MapKind:
    """A kind of map. encoder: the image encoder that it needs, in words. check: raises SgoolError for another one.
    maps: see `legrad.maps`.
    """

    encoder: str
    check: Callable[[Any], object]
    maps: Callable[[Any, Sequence[Tensor], Tensor], Tensor]


MAPS: dict[str, MapKind] = {
    "legrad": MapKind("a vision transformer", legrad.blocks_of, legrad.maps),
    "grad-cam++": MapKind("a convolutional network", cam.stages_of, partial(cam.maps, weigh=cam.higher_orders)),
    "grad-cam": MapKind("a convolutional network", cam.stages_of, cam.maps),
}
"""By name; of those that suit a CLIP, the first is taken."""


def suitable(critic: Critic) -> str:
    """The name of the map that suits a critic. Raises SgoolError where there is none."""
    for name in MAPS:
        if can_map(critic, name):
            return name
    what = "its image encoder is of an unknown kind" if isinstance(critic, Clip) else "it is no CLIP"
    raise SgoolError(f"The critic {critic.name or type(critic).__name__} has no heat maps, because {what}.")


def can_map(critic: Critic, name: str) -> bool:
    """Whether a critic has maps of this name."""
    if not isinstance(critic, Clip):
        return False
    try:
        MAPS[name].check(critic.model.visual)
    except SgoolError:
        return False
    return True


def heat(critic: Critic, image: Tensor, phrases: Sequence[str], name: str = "") -> tuple[Tensor, Evidence]:
    """Maps [phrases, H, W], at least 0, of where an image [1, 3, H, W] shows each phrase, and the evidence for them.

    name: of the map; "" for the one that suits. Raises SgoolError for a critic that can give none.
    """
    own = suitable(critic)
    assert isinstance(critic, Clip)
    kind = MAPS[name or own]
    kind.check(critic.model.visual)
    with torch.inference_mode(False):
        image = image.detach().clone().float()
        seen = evidence(critic, image, phrases)
        telling = (seen.found > 0).any(1)
        parts = [part for part, tells in zip(cut(image, seen.regions), telling.tolist(), strict=True) if tells]
        if not parts:
            return torch.zeros(len(phrases), *image.shape[-2:]), seen
        groups = [parts[at : at + TOGETHER] for at in range(0, len(parts), TOGETHER)]
        found = torch.cat([kind.maps(critic, group, seen.directions) for group in groups], 1)
        maps = found.new_zeros(len(phrases), len(seen.regions), *found.shape[-2:])
        maps[:, telling] = found
        return merged(maps, seen, (image.shape[-2], image.shape[-1])).cpu(), seen
