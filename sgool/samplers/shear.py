"""Shears: the one operation every sampler here is made of, its inverse and its adjoint.

A state is a list of latents; a shear adds a function of one latent to another, which can be undone exactly whatever
the function is (NICE, arXiv 1410.8516). So the gradient needs no stored latents: the backward pass recovers them on its
way, and its memory does not grow with the number of operations.

Exactness must not end at rounding: latents are kept in two words, and the function reads only the first of them, which
returns to the last bit unless the inverse amplifies errors by more than some 1e16. A single word would not do: an error
of 1e-10 already makes some element of a float32 input round the other way, and that error of 1e-7 is amplified in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgool.samplers.double_double import DoubleDouble, add, divide, exact, multiply
from sgool.samplers.network import Network
from sgool.samplers.schedule import Schedule

OnStep = Callable[[int, int], None]
"""Called after each operation with (number done, total); may raise to abort."""


@dataclass(frozen=True)
class Shear:
    """s[k] <- alpha * s[k] + beta * s[j] + c * eps(s[j], timestep of `node`), k != j; no eps when node is None.

    alpha = 0 overwrites s[k]. Its inverse cannot know what was there and puts zeros.
    """

    k: int
    j: int
    alpha: float
    beta: float
    c: float = 0.0
    node: int | None = None


def run(
    ops: Sequence[Shear],
    state: Sequence[DoubleDouble],
    network: Network,
    schedule: Schedule,
    on_step: OnStep | None = None,
) -> list[DoubleDouble]:
    """The state after all operations. One evaluation of eps for each operation that has a node."""
    s = list(state)
    for done, op in enumerate(ops, 1):
        shift = _shift(op, s, _eps(op, s, network, schedule))
        s[op.k] = add(multiply(s[op.k], op.alpha), shift) if op.alpha else exact(shift)
        if on_step:
            on_step(done, len(ops))
    return s


def rewind(
    ops: Sequence[Shear],
    state: Sequence[DoubleDouble],
    network: Network,
    schedule: Schedule,
    on_step: OnStep | None = None,
) -> list[DoubleDouble]:
    """The inverse of `run`: the state before the operations, from the state after them."""
    s = list(state)
    for done, op in enumerate(reversed(ops), 1):
        s[op.k] = _restored(op, s, _eps(op, s, network, schedule) if op.alpha else None)
        if on_step:
            on_step(done, len(ops))
    return s


def adjoint(
    ops: Sequence[Shear],
    state: Sequence[DoubleDouble],
    cotangents: Sequence[Tensor],
    network: Network,
    schedule: Schedule,
    on_step: OnStep | None = None,
) -> tuple[list[DoubleDouble], list[Tensor]]:
    """Pull cotangents of the final state back through `run`: (state, cotangents) at the start.

    Each operation costs one evaluation of eps with a graph, which serves both its inverse and its gradient.
    """
    s, g = list(state), list(cotangents)
    for done, op in enumerate(reversed(ops), 1):
        eps = None
        g[op.j] = g[op.j] + op.beta * g[op.k]
        if op.node is not None:
            eps, pulled = network.vjp(s[op.j].high, schedule.timesteps[op.node], g[op.k])
            g[op.j] = g[op.j] + op.c * pulled
        g[op.k] = op.alpha * g[op.k]
        s[op.k] = _restored(op, s, eps)
        if on_step:
            on_step(done, len(ops))
    return s, g


def _eps(op: Shear, s: Sequence[DoubleDouble], network: Network, schedule: Schedule) -> Tensor | None:
    return None if op.node is None else network(s[op.j].high, schedule.timesteps[op.node])


def _shift(op: Shear, s: Sequence[DoubleDouble], eps: Tensor | None) -> Tensor:
    shift = op.beta * s[op.j].high
    return shift if eps is None else shift + op.c * eps


def _restored(op: Shear, s: Sequence[DoubleDouble], eps: Tensor | None) -> DoubleDouble:
    if op.alpha == 0:
        return exact(torch.zeros_like(s[op.k].high))
    return divide(add(s[op.k], -_shift(op, s, eps)), op.alpha)
