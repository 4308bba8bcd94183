"""Shears: the one operation of all samplers, its inverse and its adjoint.

A state is a list of latents. A shear adds a function of one latent to another latent, which can be undone exactly for
any function (NICE, arXiv 1410.8516). The gradient therefore needs no stored latents: the backward pass recovers them,
and its memory does not grow with the number of operations.

Rounding must not break this exactness. Each latent is kept in two float64 words, and the function reads only the first
word. The first word is recovered to the last bit unless the inverse amplifies errors by more than about 1e16. A single
word is not enough: an error of 1e-10 makes some elements of a float32 input round the other way, and the inverse then
amplifies that error of 1e-7 too.
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
"""Called after each operation with (operations done, total). May raise an exception to abort."""

Product = Callable[[Tensor, float, Tensor], Tensor]
"""(x, t, cotangent) -> J^T cotangent, with J = d eps / d x at timestep t."""


@dataclass(frozen=True)
class Shear:
    """s[k] <- alpha * s[k] + beta * s[j] + c * eps(s[j], timestep of `node`), k != j; no eps when node is None.

    alpha = 0 overwrites s[k]. The inverse then sets s[k] to zero, because the previous value is lost.
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
    inputs: list[Tensor] | None = None,
) -> list[DoubleDouble]:
    """The state after all operations. Each operation with a node evaluates eps once.

    inputs: gets the latent s[j] that each operation reads, for `pull`.
    """
    s = list(state)
    for done, op in enumerate(ops, 1):
        if inputs is not None:
            inputs.append(s[op.j].high)
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
    """Pull cotangents of the final state back through `run`. Returns (state, cotangents) at the start.

    Each operation with a node evaluates eps once, with a graph, for both the inverse and the gradient.
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


def pull(
    ops: Sequence[Shear],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    product: Product,
    schedule: Schedule,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Like `adjoint`, but at the stored `inputs` of `run`. Nothing has to be recovered.

    product: `Network.prompt_vjp`, or the product of `Network.vjp`. Returns the cotangents at the start.
    """
    g = list(cotangents)
    for done, (op, x) in enumerate(zip(reversed(ops), reversed(inputs), strict=True), 1):
        g[op.j] = g[op.j] + op.beta * g[op.k]
        if op.node is not None:
            g[op.j] = g[op.j] + op.c * product(x, schedule.timesteps[op.node], g[op.k])
        g[op.k] = op.alpha * g[op.k]
        if on_step:
            on_step(done, len(ops))
    return g


def _eps(op: Shear, s: Sequence[DoubleDouble], network: Network, schedule: Schedule) -> Tensor | None:
    return None if op.node is None else network(s[op.j].high, schedule.timesteps[op.node])


def _shift(op: Shear, s: Sequence[DoubleDouble], eps: Tensor | None) -> Tensor:
    shift = op.beta * s[op.j].high
    return shift if eps is None else shift + op.c * eps


def _restored(op: Shear, s: Sequence[DoubleDouble], eps: Tensor | None) -> DoubleDouble:
    if op.alpha == 0:
        return exact(torch.zeros_like(s[op.k].high))
    return divide(add(s[op.k], -_shift(op, s, eps)), op.alpha)
