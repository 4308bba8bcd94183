"""Gradient checkpointing (Chen et al., arXiv 1604.06174) for the UNets and decoders of ldm, sgm and diffusers.

Blocks of a network keep only their inputs and are recomputed in the backward pass, which saves memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute


@dataclass(frozen=True)
class Memory:
    """decoder, network: whether their blocks are recomputed; with the decoder's, those of the guide.

    sequential: whether guidance runs one prompt at a time. pixels: of how many images may be made together without a
    gradient. graphs: of how many images may go through the network's gradient together. One image of any size always
    may.
    """

    decoder: bool
    network: bool
    sequential: bool
    pixels: int
    graphs: int


MEMORY = {
    "fast": Memory(decoder=False, network=False, sequential=False, pixels=8 * 512 * 512, graphs=4 * 512 * 512),
    "balanced": Memory(decoder=True, network=False, sequential=False, pixels=2 * 512 * 512, graphs=2 * 512 * 512),
    "low": Memory(decoder=True, network=True, sequential=True, pixels=0, graphs=0),
}
"""From fastest to least memory. The decoder and the guide come first because their graphs are large and cheap to
recompute. Decoding so many pixels without a graph takes about as much memory as the graphs of one image of 512 x 512.
The network's graph of so many images takes about as much as the decoder's of one (2.8 and 1.4 GiB, Stable Diffusion 1.5
in float16).
"""

_CONTAINERS = ("down_blocks", "up_blocks", "input_blocks", "output_blocks", "up", "down")
_MIDDLES = ("mid_block", "middle_block", "mid")


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of a UNet or decoder to recompute one at a time: residual, attention and resampling blocks."""
    for name, child in network.named_children():
        if name in _MIDDLES or name in _CONTAINERS:
            yield from _parts(child)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that compute something themselves, below containers and the blocks in `_WALKED`."""
    children = [child for child in module.children()]
    holds = isinstance(module, nn.ModuleList) or type(module).forward is nn.Module.forward
    if holds or type(module).__name__ in _WALKED:
        for child in children:
            yield from _parts(child)
    else:
        yield module


_WALKED = {
    "CrossAttnDownBlock2D",
    "CrossAttnUpBlock2D",
    "DownBlock2D",
    "UpBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UNetMidBlock2D",
    "UpDecoderBlock2D",
}
"""Blocks of diffusers that hold several residual blocks, which is too much for one graph."""


def checkpoint(modules: Iterator[nn.Module] | list[nn.Module]) -> Callable[[], None]:
    """Make each module's `forward` recompute while gradients are on. Returns a function that undoes this.

    A module that recomputes already goes on with it until the last of its users has undone it.
    """
    changed = list(modules)
    for module in changed:
        wrapper = vars(module).get("forward")
        if not isinstance(wrapper, _Recomputing):
            wrapper = module.forward = _Recomputing(module.forward)  # type: ignore[method-assign]
        wrapper.users += 1

    def undo() -> None:
        for module in changed:
            wrapper = vars(module).get("forward")
            if not isinstance(wrapper, _Recomputing):
                continue
            wrapper.users -= 1
            if wrapper.users:
                continue
            if getattr(wrapper.forward, "__func__", None) is type(module).forward:
                del module.forward  # uncovers the forward of the class
            else:
                module.forward = wrapper.forward  # someone else had set this forward on the object before

    return undo


def _kept(x: Any) -> Any:
    """A network may tell its blocks in a dict which of them they are, and goes on to change it."""
    return dict(x) if isinstance(x, dict) else x


class _Recomputing:
    """A forward that keeps only its inputs for the backward pass. users: how many have asked for it."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        wraps(forward)(self)
        self.forward = forward
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or not any(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
            return self.forward(*args, **kwargs)
        kept = [_kept(x) for x in args], {name: _kept(x) for name, x in kwargs.items()}
        runs = iter((self.forward,))

        def run(*args: Any, **kwargs: Any) -> Any:
            if first := next(runs, None):
                return first(*args, **kwargs)
            given, named = kept
            return self.forward(*map(_kept, given), **{name: _kept(x) for name, x in named.items()})

        # The blocks are in evaluation mode and draw no random numbers, so the generator states need not be saved.
        return recompute(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
