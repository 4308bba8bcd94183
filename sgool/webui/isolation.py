"""A run leaves nothing behind: all its changes to the WebUI are undone, whatever happens."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from modules import devices, sd_samplers_common, shared

from sgool.checkpointing import Memory, blocks, checkpoint
from sgool.webui.hosts import host
from sgool.webui.inference import normal_mode
from sgool.webui.overlay import attributes

_STATE = ("job", "job_no", "job_count", "current_latent", "textinfo")
"""Attributes of shared.state to restore. The user's requests (interrupted, skipped), the steps and the preview's number
are not among them, because these must not go back."""


@contextmanager
def isolated(p: Any, images: int = 1) -> Iterator[None]:
    """Freeze the model for the run of a batch, and restore everything afterwards.

    images: how many are improved together.
    """
    with ExitStack() as stack:
        stack.callback(devices.torch_gc)
        stack.enter_context(random_numbers())
        stack.enter_context(normal_mode())
        kept = {name: getattr(shared.state, name) for name in _STATE}
        # Without a current latent, the page's preview requests cannot draw the first pass's preview over ours.
        stack.enter_context(attributes(shared.state, {**kept, "current_latent": None}))
        stack.enter_context(_infotext(p))
        # Sampler.initialize leaves its own source of random numbers in k-diffusion.
        stack.enter_context(attributes(host().k_diffusion(), {"torch": host().k_diffusion().torch}))
        # The denoiser's previews would keep the graph in memory, or decode while it is recorded.
        stack.enter_context(attributes(sd_samplers_common, {"store_latent": lambda decoded: None}))
        stack.enter_context(host().options(skip_early_cond=0.0))
        if "hypertile" in sys.modules:
            # With random tiles the network would differ at every evaluation, and no step could be inverted.
            stack.enter_context(attributes(sys.modules["hypertile"], {"RNG_INSTANCE": _FirstTile()}))
        stack.enter_context(host().gradients(p, images))
        yield


@contextmanager
def sparing(p: Any, memory: Memory) -> Iterator[None]:
    """Apply the memory setting while one image is made."""
    with ExitStack() as stack:
        stack.callback(devices.torch_gc)
        if memory.sequential:
            # One prompt at a time. With batched prompts, the denoiser would not trim an inpainting model's conditions.
            stack.enter_context(host().options(s_min_uncond_all=True, batch_cond_uncond=False))
        if memory.network:
            stack.callback(checkpoint(host().blocks(p.sd_model)))
        if memory.decoder:
            stack.callback(checkpoint(blocks(host().decoder(p.sd_model))))
        yield


class _FirstTile:
    def randint(self, low: int, high: int) -> int:
        return low


@contextmanager
def _infotext(p: Any) -> Iterator[None]:
    """Restore the infotext. The denoiser writes into it, but our evaluations are not part of the user's parameters."""
    before = dict(p.extra_generation_params)
    try:
        yield
    finally:
        p.extra_generation_params.clear()
        p.extra_generation_params.update(before)


@contextmanager
def random_numbers() -> Iterator[None]:
    """Put the states of all random number generators back afterwards."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    cpu, plain, arrays = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(plain)
        np.random.set_state(arrays)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
