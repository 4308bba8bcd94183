"""Where nobody can know the networks, a run first compares their gradients with finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sgool.errors import SgoolError, brief, out_of_memory

STEPS = {False: (0.002, 0.0005), True: (0.03, 0.01)}
"""Of the finite differences, in units of the input's spread; by whether the network computes roughly, as in half
precision or with a GPU's TF32. The second is for networks that curve too much for the first.
"""

TOLERANCE = {False: 0.001, True: 0.05}
"""By how much gradient and difference may differ, as a fraction."""


def prove(
    name: str, function: Callable[[Tensor], Tensor], x: Tensor, networks: Sequence[nn.Module], *, rough: bool
) -> None:
    """Raises SgoolError where the gradient of the function at x is not what its finite difference says.

    name: of the network, for the sentence. networks: those that gradients have to pass. rough: whether it computes
    with less than float32. Takes four evaluations without a gradient and one with it; twice that, where they differ.
    """
    errors = []
    for step in STEPS[rough]:
        errors.append(_error(name, function, x, networks, step))
        if errors[-1] <= TOLERANCE[rough]:
            return
    raise SgoolError(
        f"The gradient of the {name} is wrong by {min(errors):.1%}; another extension may have changed it in a way "
        "that gradients do not pass."
    )


def _error(
    name: str, function: Callable[[Tensor], Tensor], x: Tensor, networks: Sequence[nn.Module], step: float
) -> float:
    """For a random direction v, with w and w' = J v from two differences, <J^T w, v> must be <w, w'>: by how much it is
    not. With one difference its own rounding would count, which in bfloat16 is a large part of it.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * (x.std().item() or 1.0)

    def difference(step: float) -> Tensor:
        return (function(x + step * direction).double() - function(x - step * direction).double()) / (2 * step)

    with torch.no_grad():
        change, other = difference(step), difference(1.5 * step)
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad(), _watched(networks) as lost:
        try:
            output = function(leaf)
        except RuntimeError as error:
            if "inference tensor" in str(error).lower():
                raise _blocked(name, brief(error)) from error
            raise
        if lost or not output.requires_grad:
            raise _blocked(name, lost[0] if lost else "")
        try:
            (gradient,) = torch.autograd.grad(output, leaf, change.to(output))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise _blocked(name, brief(error)) from error
    along, expected = (gradient.double() * direction).sum().item(), (change * other).sum().item()
    if not math.isfinite(along) or not math.isfinite(expected):
        raise SgoolError(f"The {name} or its gradient gave NaN or infinite values; use a higher precision.")
    if along == expected:  # both are 0 where an inpainting mask leaves nothing free
        return 0.0
    return abs(along / expected - 1) if expected else math.inf


def _blocked(name: str, where: str) -> SgoolError:
    where = f" ({where})" if where else ""
    return SgoolError(
        f"No gradient passes the {name}{where}; another attention, setting or extension may be in its way."
    )


@contextmanager
def _watched(networks: Sequence[nn.Module]) -> Iterator[list[str]]:
    """The kinds of modules from which a gradient does not come back."""
    lost: list[str] = []

    def watch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
        if wanted and isinstance(output, Tensor) and not output.requires_grad:
            lost.append(type(module).__name__)

    hooks = [module.register_forward_hook(watch) for network in networks for module in network.modules()]
    try:
        yield lost
    finally:
        for hook in hooks:
            hook.remove()
