"""Diffusion samplers, reversible or with stored latents. Each is a coefficient table for one operation."""

from __future__ import annotations

from sgool.errors import SgoolError
from sgool.samplers import bdia, belm, ddim, edict, euler, lcm, tcd
from sgool.samplers.network import Branch, Network
from sgool.samplers.sampler import Sampler
from sgool.samplers.schedule import Schedule, make_schedule, steps_range
from sgool.samplers.shear import OnStep
from sgool.samplers.trajectory import WAYS_BACK, Final, Trajectory

SAMPLERS: dict[str, Sampler] = {
    "bdia": bdia.sampler(),
    "o-belm": belm.sampler(),
    "edict": edict.sampler(),
    "ddim": ddim.sampler(),
    "ddim-trailing": ddim.trailing(),
    "euler": euler.sampler(),
    "euler-a": euler.ancestral(),
    "lcm": lcm.sampler(),
    "tcd": tcd.sampler(),
}


def get_sampler(name: str) -> Sampler:
    """The sampler of this name, with default parameters. Raises SgoolError, which lists the known names."""
    if name not in SAMPLERS:
        raise SgoolError(f"There is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


__all__ = [
    "SAMPLERS",
    "WAYS_BACK",
    "Branch",
    "Final",
    "Network",
    "OnStep",
    "Sampler",
    "Schedule",
    "Trajectory",
    "get_sampler",
    "make_schedule",
    "steps_range",
]
