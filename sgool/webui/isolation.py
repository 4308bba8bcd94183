"""A run leaves nothing behind: what it changes in the WebUI is put back, whatever happens."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import k_diffusion.sampling
import numpy as np
import torch
from modules import devices, sd_samplers_cfg_denoiser, sd_samplers_common, shared

from sgool.checkpointing import Memory, blocks, checkpoint

_STATE = ("job", "job_no", "job_count", "current_latent", "textinfo")
"""Of shared.state. The user's wishes (interrupted, skipped), the steps and the preview's number only go forward."""


@contextmanager
def isolated(p: Any) -> Iterator[None]:
    """Freeze the model for the run of a batch; on the way out everything is as it was before."""
    with ExitStack() as stack:
        stack.callback(devices.torch_gc)
        stack.enter_context(_random_numbers())
        kept = {name: getattr(shared.state, name) for name in _STATE}
        # Without a latent the page's requests for a preview do not draw the first pass's over ours.
        stack.enter_context(attributes(shared.state, {**kept, "current_latent": None}))
        stack.enter_context(_infotext(p))
        # Sampler.initialize leaves its own random numbers in k-diffusion.
        stack.enter_context(attributes(k_diffusion.sampling, {"torch": k_diffusion.sampling.torch}))
        # The denoiser's previews would keep the graph alive, or decode in the middle of it.
        stack.enter_context(attributes(sd_samplers_common, {"store_latent": lambda decoded: None}))
        stack.enter_context(_options(skip_early_cond=0.0))
        if "hypertile" in sys.modules:
            # Random tiles would make every evaluation another network, which nothing could undo.
            stack.enter_context(attributes(sys.modules["hypertile"], {"RNG_INSTANCE": _FirstTile()}))
        stack.enter_context(_frozen(p.sd_model))
        yield


@contextmanager
def sparing(p: Any, memory: Memory) -> Iterator[None]:
    """Recompute what `memory` says, while one image is made."""
    with ExitStack() as stack:
        stack.callback(devices.torch_gc)
        if memory.sequential:
            # One prompt at a time; batched, the denoiser would forget to halve an inpainting model's conditions, too.
            stack.enter_context(_options(s_min_uncond_all=True, batch_cond_uncond=False))
        if memory.network:
            stack.callback(checkpoint(blocks(p.sd_model.model.diffusion_model)))
        if memory.decoder:
            stack.callback(checkpoint(blocks(p.sd_model.first_stage_model.decoder)))
        yield


class _FirstTile:
    def randint(self, low: int, high: int) -> int:
        return low


@contextmanager
def attributes(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Set attributes, and put the previous ones back."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _options(**values: Any) -> AbstractContextManager[None]:
    """Settings as the denoiser sees them. The user's own are not touched: a run takes minutes, in which the user may
    change them, and the WebUI may save them.
    """
    seen = sd_samplers_cfg_denoiser.shared
    return attributes(sd_samplers_cfg_denoiser, {"shared": _Overlay(seen, opts=_Overlay(seen.opts, **values))})


class _Overlay:
    """Another object, but for some attributes that are read here; all that is set is set on the other."""

    def __init__(self, other: Any, **values: Any) -> None:
        vars(self).update(values, _other=other)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_other"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_other"], name, value)


@contextmanager
def _infotext(p: Any) -> Iterator[None]:
    """The denoiser notes what it does in the infotext; what it does for us is no parameter of the user's."""
    before = dict(p.extra_generation_params)
    try:
        yield
    finally:
        p.extra_generation_params.clear()
        p.extra_generation_params.update(before)


@contextmanager
def _random_numbers() -> Iterator[None]:
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


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in free:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
