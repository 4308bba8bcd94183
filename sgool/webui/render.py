"""The noise that a run has found, sampled once more by the user's own sampler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from modules import prompt_parser, rng, sd_samplers, sd_samplers_common, shared
from torch import Tensor

from sgool.guidance import Critic
from sgool.webui import interrupts
from sgool.webui.backend import WebuiBackend, network_precision
from sgool.webui.hosts import host
from sgool.webui.innerpass import NoBar, State
from sgool.webui.overlay import Overlay, attributes


@dataclass(frozen=True)
class Rendered:
    """latent: [1, 4, h, w], in the network's own precision; score: of its image."""

    latent: Tensor
    score: float


@torch.no_grad()
def rendered(
    backend: WebuiBackend, selector: Critic, noise: Tensor, prompt: str, count: Callable[[int], None]
) -> Rendered:
    """What the user's sampler makes of the noise, and the selector's score of that for the prompt; see `sampled`."""
    latent = sampled(backend, noise, count)
    return Rendered(latent, selector.judge(backend.decode(latent.double()).clamp(0, 1), prompt))


@torch.no_grad()
def sampled(backend: WebuiBackend, noise: Tensor, count: Callable[[int], None]) -> Tensor:
    """The latent [1, 4, h, w] that the user's sampler, steps and prompts make of this unit noise, float64.

    For a run that is isolated (`isolation.isolated`). count: hears of every step. Raises Stop where the user stops it.
    """
    index, p = backend.index, copy.copy(backend.p)
    p.extra_generation_params = {}
    p.iteration, p.batch_size = 0, 1
    p.seeds = p.all_seeds = [p.seeds[index]]
    p.rng = rng.ImageRNG(backend.p.rng.shape, p.seeds)
    p.rng.next()  # the starting noise; from here on it gives what comes between the steps
    cond = prompt_parser.MulticondLearnedConditioning(shape=(1,), batch=[p.c.batch[index]])
    sampler = sd_samplers.create_sampler(p.sampler_name, p.sd_model)
    seen = {"state": State(shared.state, count), "shared": Overlay(shared, total_tqdm=NoBar())}
    seen_image, negative = backend.image_conditioning(), [p.uc[index]] if p.uc is not None else None
    with attributes(sd_samplers_common, seen), host().own_options(), network_precision(), host().own_work(p):
        latent: Tensor = sampler.sample(p, noise.float(), cond, negative, image_conditioning=seen_image)
    interrupts.check()
    return latent
