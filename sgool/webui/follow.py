"""SGOOL samples as the user does, where the user's sampler takes few steps: its first image is then the user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from modules import shared
from torch import Tensor

from sgool.cost import follows
from sgool.errors import SgoolError
from sgool.generate import Sampling
from sgool.samplers import Schedule, ddim, euler, lcm
from sgool.settings import Settings
from sgool.webui.hosts import host


def wanted(p: Any, settings: Settings) -> bool:
    """Whether SGOOL should sample as the user does."""
    return follows(settings, p.sampler_name, p.steps)


@dataclass
class Followed:
    """What the user's sampler did for one batch: what it was called with, and the noises that it drew on the way.

    schedule, sampler: the same for SGOOL. noises: each [B, 4, h, w].
    """

    sampler: Any
    schedule: Schedule
    noises: list[Tensor]

    def sampling(self, index: int) -> Sampling:
        """Of one image of the batch."""
        return Sampling(self.sampler, self.schedule, [noise[index : index + 1].clone() for noise in self.noises])


class Recording:
    """Hears how the sampler object of p is called for the batch at hand, and what p's random numbers give it."""

    def __init__(self, p: Any) -> None:
        self.p = p
        self.drawn: list[Tensor] = []
        self.called: dict[str, Any] | None = None
        sampler = p.sampler
        if callable(plain := getattr(sampler, "func", None)):  # what an extension has put there may have none
            sampler.func = self._heard(plain)

    def _heard(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)  # the WebUI looks at the signature
        def heard(model: Any, x: Tensor, *args: Any, **options: Any) -> Any:
            source = self.p.rng
            draw = source.next

            def drawing() -> Tensor:
                noise: Tensor = draw()
                self.drawn.append(noise.detach().clone())
                return noise

            self.called, self.drawn = options, []
            source.next = drawing
            try:
                return plain(model, x, *args, **options)
            finally:
                del source.next

        return heard

    def followed(self) -> Followed:
        """Raises SgoolError, which says what of the user's sampling SGOOL cannot do."""
        p, called = self.p, self.called
        if called is None:
            raise SgoolError("another extension has replaced it.")
        if getattr(p, "s_min_uncond", 0) or getattr(shared.opts, "skip_early_cond", 0):
            raise SgoolError("it leaves the negative prompt out of some steps.")
        if called.get("s_churn"):
            raise SgoolError("it adds noise (Sigma churn).")
        make = _from_timesteps if p.sampler_name == "DDIM" else _from_sigmas
        sampler, schedule = make(p, called)
        falls = [*schedule.timesteps], [schedule.nu(i) for i in range(schedule.steps + 1)]
        if not schedule.steps or not all(before > after for each in falls for before, after in pairwise(each)):
            raise SgoolError("its noise levels do not fall within the model's.")
        noises = self.drawn[: sampler.noises(schedule)]
        if len(noises) < sampler.noises(schedule):
            raise SgoolError("its noises come from elsewhere.")
        return Followed(sampler, schedule, noises)


def _from_timesteps(p: Any, called: dict[str, Any]) -> tuple[Any, Schedule]:
    """The WebUI's DDIM makes no step from the last timestep: its image is what is left there."""
    if called.get("eta"):
        raise SgoolError("it adds noise (Eta for DDIM).")
    nodes = [int(t) for t in reversed(called["timesteps"].tolist())]
    alphabar = host().alphas_cumprod(p.sd_model)[nodes]
    a, sigma = alphabar.sqrt().tolist(), (1 - alphabar).sqrt().tolist()
    return ddim.sampler(), Schedule(tuple(nodes[:-1]), tuple(a), tuple(sigma))


def _from_sigmas(p: Any, called: dict[str, Any]) -> tuple[Any, Schedule]:
    """k-diffusion works on x / a, whose noise level is sigma, and gives what comes last as it is, which means a = 1.

    Between two timesteps the network is asked between them.
    """
    sigmas = called["sigmas"]
    wrap = p.sampler.model_wrap
    if p.sampler_name == "LCM" and not host().lcm_knows(p.sd_model):
        raise SgoolError("it takes the model for one that predicts noise.")
    timesteps = tuple(_plain(wrap.sigma_to_t(sigma[None].to(wrap.log_sigmas))) for sigma in sigmas[:-1])
    nu = sigmas.double().tolist()
    a = [(1 + each * each) ** -0.5 for each in nu[:-1]] + [1.0]
    schedule = Schedule(timesteps, tuple(a), tuple(level * each for level, each in zip(nu, a, strict=True)))
    eta = called.get("eta", 1.0)
    known = {
        "LCM": lambda: lcm.sampler(boundary=host().lcm_boundary()),
        "Euler": euler.sampler,
        "Euler a": lambda: euler.ancestral(eta),
    }
    return replace(known[p.sampler_name](), sigma_start=not shared.opts.sgm_noise_multiplier), schedule


def _plain(timestep: Tensor) -> float:
    t: float = timestep.item()
    return int(t) if t == int(t) else t
