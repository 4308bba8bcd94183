"""Gradients through the networks of the running program, and what finite differences say of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from sgool_networks import networks
from torch import Tensor

STEP = 0.02
"""Of the differences, where the latent's numbers are about 1."""


def measured(backend: Any, decoder: bool) -> dict[str, Any]:
    """For each memory setting, and for "low" without recomputation, `_of`; beside it the differences.

    backend: of a run with memory "fast", in the isolation of that run. decoder: whether its gradient is measured, too.
    """
    from sgool.checkpointing import MEMORY
    from sgool.webui.isolation import sparing

    settings = {**MEMORY, "low, all kept": replace(MEMORY["low"], decoder=False, network=False)}
    told: dict[str, Any] = {}
    for name, memory in settings.items():
        other = copy.copy(backend)
        other.memory = memory
        with sparing(backend.p, memory):
            told[name] = _of(other, decoder)
    return {"memory": told, "differences": _differences(backend, told["fast"])}


def _of(backend: Any, decoder: bool) -> dict[str, Any]:
    """Products of the Jacobians of eps (by all prompts, and by the positive one alone) and of the decoder with fixed
    random numbers, whether the values are those without a gradient, and how many layers were evaluated.
    """
    x, network = backend.original, backend.network("", "", float(backend.p.cfg_scale))
    t = _timestep(backend)
    with _counted() as count:
        eps, by_all = network.vjp(x, t, _like(x, 1))
        by_prompt = network.prompt_vjp(x, t, _like(x, 1))
        network_layers = count()
    told = {
        "eps": by_all.flatten().tolist(),
        "eps by the prompt": by_prompt.flatten().tolist(),
        "same values": [bool((network(x, t) == eps).all())],
        "layers": [network_layers],
    }
    if decoder:
        leaf = x.clone().requires_grad_()
        with _counted() as count:
            image = backend.decode(leaf)
            (by_decoder,) = torch.autograd.grad(image, leaf, _like(image, 2))
            told["layers"].append(count())
        told["image"] = by_decoder.flatten().tolist()
        with torch.no_grad():
            told["same values"].append(bool((backend.decode(x) == image).all()))
    return told


def _differences(backend: Any, gradients: dict[str, Any]) -> dict[str, list[list[float]]]:
    """For eps and the image, along the gradient and along random numbers: [the difference, what the gradient says]."""
    x = backend.original
    network = backend.network("", "", float(backend.p.cfg_scale))
    functions = {
        "eps": (lambda z: network(z, _timestep(backend)), 1),
        **({"image": (lambda z: backend.decode(z).double(), 2)} if "image" in gradients else {}),
    }
    told = {}
    for name, (function, seed) in functions.items():
        gradient = torch.tensor(gradients[name], dtype=x.dtype).view_as(x).to(x.device)
        along = gradient / gradient.square().mean().sqrt()
        with torch.no_grad():
            told[name] = [
                [_central(function, x, direction, seed), (gradient * direction).sum().item()]
                for direction in (along, along + _like(x, 3))
            ]
    return told


def _timestep(backend: Any) -> float:
    """In the middle; where the user's own sampling is followed, one of its steps."""
    return backend.schedule.timesteps[len(backend.schedule.timesteps) // 2] if backend.schedule else 500


def _central(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, seed: int) -> float:
    """The change of the weighted sum of the function along the direction, by five points: exact to STEP ** 4."""

    def at(steps: int) -> float:
        value = function(x + steps * STEP * direction)
        return (value * _like(value, seed)).sum().item()

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * STEP)


def _like(x: Tensor, seed: int) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)


@contextmanager
def _counted() -> Iterator[Callable[[], int]]:
    """How many convolutions were evaluated, recomputed ones included."""
    calls = []
    hooks = [
        module.register_forward_pre_hook(lambda *_: calls.append(1))
        for part in networks()
        for module in part.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    try:
        yield lambda: len(calls)
    finally:
        for hook in hooks:
            hook.remove()
