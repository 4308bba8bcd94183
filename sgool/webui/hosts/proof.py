"""Where nobody can know the networks, a run first compares their gradients with finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sgool.errors import SgoolError

STEP = {False: 0.01, True: 0.05}
"""Of the finite difference, in units of the input's spread; by whether the network computes in half precision."""

TOLERANCE = {False: 0.002, True: 0.05}
"""By how much the two may differ, as a fraction."""


def prove(
    name: str, function: Callable[[Tensor], Tensor], x: Tensor, networks: Sequence[nn.Module], *, half: bool
) -> None:
    """Raises SgoolError where the gradient of the function at x is not what its finite difference says.

    name: of the network, for the sentence. networks: those that gradients have to pass. half: whether it computes in
    half precision. Takes two evaluations without a gradient and one with it.

    For a random direction v with w = J v from the difference, the gradient of <f, w> must give <J^T w, v> = <w, w>.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    step = STEP[half]
    with torch.no_grad():
        change = (function(x + step * direction).double() - function(x - step * direction).double()) / (2 * step)
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad(), _watched(networks) as lost:
        output = function(leaf)
        if lost or not output.requires_grad:
            where = f" ({lost[0]})" if lost else ""
            raise SgoolError(f"No gradient passes the {name}{where}; another attention or extension may be in its way.")
        (gradient,) = torch.autograd.grad(output, leaf, change.to(output))
    along, expected = (gradient.double() * direction).sum(), change.square().sum()
    error = abs(along.item() / expected.item() - 1)
    if not error <= TOLERANCE[half]:
        raise SgoolError(
            f"The gradient of the {name} is wrong by {error:.1%}; another extension may have changed it in a way that "
            "gradients do not pass."
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
