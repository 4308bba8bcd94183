"""A generation in the middle of another one: what it may see and touch of the WebUI, and that all is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from modules import devices, extra_networks, processing, sd_samplers_common, shared

from sgool.webui.hosts import host
from sgool.webui.isolation import random_numbers
from sgool.webui.overlay import Overlay, attributes

_OPTIONS = {
    "save_init_img": False,
    "overlay_inpaint": True,  # else the picture that comes out is the crop alone
    "return_mask": False,
    "return_mask_composite": False,
    "img2img_color_correction": False,
}
"""What the inner pass takes the user's settings for."""


@contextmanager
def inner_pass(p: Any, inner: Any, count: Callable[[int], None]) -> Iterator[None]:
    """Around `processing.process_images_inner(inner)`, while p's own generation goes on afterwards.

    count: hears of every sampling step, from 0. Of the WebUI's state the inner pass reads what the user asks for, and
    sets the preview's latent; all else of it (jobs, steps, what Skip has set) is the outer generation's. Its last
    parameters (params.txt) stay those of p, as do the loaded networks.
    """
    with ExitStack() as stack:
        stack.callback(devices.torch_gc)
        stack.enter_context(random_numbers())
        torch.manual_seed(inner.seed)  # the VAE's encoder draws from torch's own numbers, which others draw from, too
        stack.enter_context(attributes(host().k_diffusion(), {"torch": host().k_diffusion().torch}))
        stack.enter_context(attributes(shared.state, {"current_latent": shared.state.current_latent}))
        stack.enter_context(host().inner_pass(p))
        stack.enter_context(_without_controlnet(p.sd_model))
        stack.callback(_networks_of, p, inner)
        state = State(shared.state, count)
        quiet = Overlay(shared, opts=Overlay(shared.opts, **_OPTIONS), total_tqdm=NoBar())
        seen = {"state": state, "shared": quiet}
        stack.enter_context(attributes(sd_samplers_common, seen))
        seen |= {"opts": quiet.opts, "cmd_opts": Overlay(shared.cmd_opts, no_prompt_history=True)}
        stack.enter_context(attributes(processing, seen))
        yield


@contextmanager
def _without_controlnet(model: Any) -> Iterator[None]:
    """ControlNet leaves the UNet only after the last image, and its hints are those of the whole picture."""
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    if unet is None or "_original_forward" not in vars(unet):
        yield
        return
    with attributes(unet, {"forward": unet._original_forward}):
        yield


class State(Overlay):
    """The WebUI's state as the inner pass sees it. "Stop after this image" lets the image be finished."""

    def __init__(self, other: Any, count: Callable[[int], None]) -> None:
        super().__init__(other, stopping_generation=False, nextjob=lambda: None)
        vars(self)["_count"] = count

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "sampling_step":
            vars(self)["_count"](value)
        elif name == "current_latent":
            super().__setattr__(name, value)


class NoBar:
    """In place of the console's bar over all steps of the generation, which does not reckon with ours."""

    def update(self) -> None: ...


def _networks_of(p: Any, inner: Any) -> None:
    """Load p's own extra networks again, where the inner pass had others."""
    ours, theirs = getattr(inner, "extra_network_data", None), getattr(p, "extra_network_data", None)
    if not p.disable_extra_networks and (ours or {}) != (theirs or {}):
        with devices.autocast():
            extra_networks.activate(inner, theirs or {})  # not p: its scripts have had their call
