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
from sgool.guidance.critic import Critic
from sgool.guidance.clip import Clip
from sgool.guidance.evidence import Evidence, cut, evidence, merged


@dataclass(frozen=True)
class MapKind:
    """A kind of map. check: raises SgoolError for an image encoder that it cannot read. maps: see `legrad.maps`."""

    description: str
    check: Callable[[Any], object]
    maps: Callable[[Any, Sequence[Tensor], Tensor], Tensor]


MAPS: dict[str, MapKind] = {
    "legrad": MapKind("where a vision transformer sees the prompt", legrad.blocks_of, legrad.maps),
    "grad-cam++": MapKind(
        "where a convolutional CLIP sees the prompt, all of it",
        cam.stages_of,
        partial(cam.maps, weigh=cam.higher_orders),
    ),
    "grad-cam": MapKind("where a convolutional CLIP sees the prompt", cam.stages_of, cam.maps),
}
"""By name; of those that suit a CLIP, the first is taken."""


def suitable(critic: Critic) -> str:
    """The name of the map that suits a critic. Raises SgoolError where there is none."""
    if not isinstance(critic, Clip):
        raise SgoolError(f"The critic {critic.name or type(critic).__name__} has no heat maps, because it is no CLIP.")
    for name, kind in MAPS.items():
        try:
            kind.check(critic.model.visual)
            return name
        except SgoolError:
            pass
    raise SgoolError(
        f"The critic {critic.name} has no heat maps, because its image encoder is neither one of open_clip's vision "
        "transformers nor a convolutional network of stages."
    )


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
        found = kind.maps(critic, parts, seen.directions)
        maps = found.new_zeros(len(phrases), len(seen.regions), *found.shape[-2:])
        maps[:, telling] = found
        return merged(maps, seen, (image.shape[-2], image.shape[-1])).cpu(), seen
