"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) and Grad-CAM++ (Chattopadhay et al. 2018, arXiv 1710.11063).

With A_k the channels of a late convolution and g_k = dS/dA_k, S the score of the text, the map is
relu(sum_k w_k A_k). Grad-CAM weighs a channel by the mean of g_k. Grad-CAM++ takes the sum of a_k relu(g_k) with

    a_k = g_k^2 / (2 g_k^2 + sum(A_k) g_k^3)

(equations 10 and 19 of its paper, where S is the exponent of a class score).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgool.errors import SgoolError

CELLS = 7
"""The last stage with at least so many cells a side is looked at: with ResNet-50 on 224 pixels, the last of all."""

GAIN = 1024.0
"""What a score is scaled by before its gradient is taken, and the gradient back: half precision is coarse."""

Weigh = Callable[[Tensor, Tensor], Tensor]
"""(activations [N, C, h, w], gradients [N, C, h, w]) -> weights [N, C, 1, 1]."""


def mean_gradient(activations: Tensor, gradients: Tensor) -> Tensor:
    """The weights of Grad-CAM."""
    return gradients.mean((2, 3), keepdim=True)


def higher_orders(activations: Tensor, gradients: Tensor) -> Tensor:
    """The weights of Grad-CAM++."""
    second = gradients.square()
    divisor = 2 * second + activations.sum((2, 3), keepdim=True) * second * gradients
    share = torch.where(divisor != 0, second / divisor, torch.zeros_like(divisor))
    return (share * gradients.clamp_min(0)).sum((2, 3), keepdim=True)


def stages_of(visual: Any) -> list[nn.Module]:
    """The stages of a convolutional image encoder, in turn. Raises SgoolError for any other."""
    own = [getattr(visual, f"layer{number}", None) for number in (1, 2, 3, 4)]
    if all(isinstance(each, nn.Module) for each in own):
        return own  # type: ignore[return-value]
    found = getattr(getattr(visual, "trunk", None), "stages", None)
    if not isinstance(found, nn.Module):
        raise SgoolError("Grad-CAM needs a CLIP with a convolutional image encoder.")
    return list(found.children())


def maps(clip: Any, parts: Sequence[Tensor], directions: Tensor, weigh: Weigh = mean_gradient) -> Tensor:
    """Maps [T, N, h, w] of N parts [1, 3, h, w] of an image for T directions [T, D] of a text: S = feature . direction.

    The network runs once; only what comes after the stage has a graph.
    """
    with _kept(stages_of(clip.model.visual)) as kept, torch.enable_grad():
        scores = clip.encode(parts) @ directions.T
        activations = kept()
        every = []
        for number in range(len(directions)):
            last = number == len(directions) - 1
            (gradients,) = torch.autograd.grad(GAIN * scores[:, number].sum(), activations, retain_graph=not last)
            own, change = activations.detach().float(), gradients.float() / GAIN
            every.append((weigh(own, change) * own).sum(1).clamp_min(0))
    return torch.stack(every)


class _kept:
    """Meanwhile the graph of a network begins at the last of these stages that is fine enough; calling gives it."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        self.stages = stages
        self.outputs: list[Tensor] = []

    def __enter__(self) -> Callable[[], Tensor]:
        self.hooks = [stage.register_forward_hook(self._hook) for stage in self.stages]
        return lambda: self.outputs[-1]

    def _hook(self, stage: nn.Module, given: Any, output: Tensor) -> Tensor | None:
        if self.outputs and min(output.shape[-2:]) < CELLS:
            return None
        self.outputs.append(output.detach().clone().requires_grad_())
        # A clone, because the next layer may work in place.
        return self.outputs[-1].clone()

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
