"""Reversible diffusion samplers: coefficient tables over one operation with an exact inverse and adjoint."""

from __future__ import annotations

from sgool.errors import SgoolError
from sgool.samplers import bdia, belm, ddim, edict
from sgool.samplers.network import GRADIENT, Branch, Network
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule, make_schedule
from sgool.samplers.trajectory import Final, Trajectory

SAMPLERS: dict[str, Sampler] = {
    "bdia": bdia.sampler(),
    "o-belm": belm.sampler(),
    "edict": edict.sampler(),
    "ddim": ddim.sampler(),
}


def get_sampler(name: str) -> Sampler:
    """The sampler of that name with its default parameters. Raises SgoolError, naming the known ones."""
    if name not in SAMPLERS:
        raise SgoolError(f"There is no sampler {name!r}; the known ones are {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


__all__ = [
    "GRADIENT",
    "SAMPLERS",
    "Branch",
    "Final",
    "Network",
    "Sampler",
    "Schedule",
    "Trajectory",
    "get_sampler",
    "make_schedule",
]
