"""Samplers against textbook recurrences under full autograd; exact recovery, evaluation counts and memory."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from toys import RANDOM, SD, SHEARS, begun, brute, error, guided, latent, toys

from sgool.errors import SgoolError
from sgool.samplers import SAMPLERS, Branch, Network, Schedule, Trajectory, bdia, edict, get_sampler, make_schedule


class Method(NamedTuple):
    """A method and its parameter: EDICT's p, or BDIA's gamma (None: the default for the number of steps)."""

    name: str
    p: float = 0.93
    gamma: float | None = None


def textbook(
    method: Method, schedule: Schedule, eps, latents: list[Tensor], start: int = 0, noises: Sequence[Tensor] = ()
) -> Tensor:
    """Each method as in its paper, step by step and differentiable. latents: one latent, or a pair."""
    name, p, gamma = method
    a, sigma, t = schedule.a, schedule.sigma, schedule.timesteps
    nu = [s / b for s, b in zip(sigma, a, strict=True)]

    def ddim(x: Tensor, i: int, to: int, e: Tensor) -> Tensor:
        return a[to] * (x - sigma[i] * e) / a[i] + sigma[to] * e

    if name in RANDOM:
        (x,) = latents
        for i in range(start, schedule.steps):
            last, e = i == schedule.steps - 1, eps(x, t[i])
            z = 0.0 if last else noises[i]
            x0 = (x - sigma[i] * e) / a[i]
            if name == "lcm":
                s = 10 * t[i]
                x0 = 0.25 / (s * s + 0.25) * x + s / (s * s + 0.25) ** 0.5 * x0
                x = x0 if last else a[i + 1] * x0 + sigma[i + 1] * z
            elif name == "euler-a":
                up = (nu[i + 1] ** 2 * (nu[i] ** 2 - nu[i + 1] ** 2) / nu[i] ** 2) ** 0.5
                down = (nu[i + 1] ** 2 - up**2) ** 0.5
                x = a[i + 1] * (x / a[i] + (down - nu[i]) * e + up * z)
            else:
                between, to = SD[0 if last else math.floor(0.7 * t[i + 1])], SD[0 if last else t[i + 1]]
                x = between.sqrt() * x0 + (1 - between).sqrt() * e
                x = (to / between).sqrt() * x + (1 - to / between).sqrt() * z
        return x
    if name == "edict":
        x, y = latents if len(latents) == 2 else latents * 2
        for i in range(start, schedule.steps):
            if i % 2 == 0:
                x = ddim(x, i, i + 1, eps(y, t[i])) if i else ddim(x, 0, 1, eps(y, t[0]))
                y = ddim(y, i, i + 1, eps(x, t[i]))
            else:
                y = ddim(y, i, i + 1, eps(x, t[i]))
                x = ddim(x, i, i + 1, eps(y, t[i]))
            x = p * x + (1 - p) * y
            y = p * y + (1 - p) * x
        return x
    trail = list(latents)
    for i in range(start + len(trail) - 1, schedule.steps):
        now = trail[-1]
        e = eps(now, t[i])
        if name in ("ddim", "ddim-trailing", "euler") or len(trail) == 1:
            trail.append(ddim(now, i, i + 1, e))
        elif name == "bdia":
            g = gamma or max(0.2, 1e16 ** (-1 / schedule.steps))
            before = trail[-2]
            ahead, back = ddim(now, i, i + 1, e) - now, ddim(now, i, i - 1, e) - now
            trail.append(before - (1 - g) * (before - now) - g * back + ahead)
        else:  # O-BELM: the Taylor polynomial of degree 2 of z = x / a in nu through z_{i-1}, z_i and z'_i = eps.
            z, previous = now / a[i], trail[-2] / a[i - 1]
            back, ahead = nu[i - 1] - nu[i], nu[i + 1] - nu[i]
            curvature = (previous - z - back * e) / back**2
            trail.append(a[i + 1] * (z + ahead * e + ahead**2 * curvature))
    return trail[-1]


@pytest.mark.parametrize("steps", [2, 7, 10, 50, 300, 500])
def test_schedule_has_sd_spacing(steps: int) -> None:
    schedule = make_schedule(SD.float(), steps)
    assert schedule.steps == len(schedule.timesteps) == steps
    assert schedule.timesteps[-1] == 1 and schedule.timesteps[0] < 1000
    assert {b - a for a, b in zip(schedule.timesteps[1:], schedule.timesteps, strict=False)} == {1000 // steps}
    assert schedule.nu(steps) == pytest.approx((0.00085 / (1 - 0.00085)) ** 0.5, rel=1e-4)
    assert schedule.a[0] ** 2 + schedule.sigma[0] ** 2 == pytest.approx(1, abs=1e-15)


def test_bad_arguments_raise_sgool_error() -> None:
    for steps in (1, 501):
        with pytest.raises(SgoolError, match="between 2 and 500"):
            make_schedule(SD, steps)
    with pytest.raises(SgoolError, match="fall strictly"):
        make_schedule(SD.flip(0), 10)
    with pytest.raises(SgoolError, match="bdia, o-belm, edict, ddim, ddim-trailing, euler, euler-a, lcm, tcd"):
        get_sampler("heun")
    with pytest.raises(SgoolError, match="one of leading, trailing, distilled"):
        make_schedule(SD, 4, "karras")
    with pytest.raises(SgoolError, match="needs 3 noises for these steps, not 0"):
        Trajectory(get_sampler("lcm"), get_sampler("lcm").schedule(SD, 4), guided())
    with pytest.raises(SgoolError, match="one of full, prompt"):
        begun(get_sampler("lcm"), 4, guided(), way_back="half")
    with pytest.raises(SgoolError, match="gamma"):
        bdia.sampler(gamma=0.0)
    with pytest.raises(SgoolError, match="mixing"):
        edict.sampler(p=1.5)
    with pytest.raises(SgoolError, match="prediction type"):
        Network([Branch(1.0, toys()[0])], SD, "sample")
    for strength in (0.0, 1.1):
        with pytest.raises(SgoolError, match="strength"):
            get_sampler("bdia").start_node(make_schedule(SD, 10), strength)
    with pytest.raises(SgoolError, match="at least 2 steps"):
        Trajectory(get_sampler("bdia"), make_schedule(SD, 10), guided(), 9).invert(latent())


@pytest.mark.parametrize("steps", [6, 7])
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("name", SAMPLERS)
def test_run_and_adjoint_agree_with_the_textbook_under_autograd(name: str, start: int, steps: int) -> None:
    # The tolerance is for float32, in which the last bit of the float64 state can change an element of the input.
    network = guided(dtype=torch.float32 if name in (*SHEARS, "ddim") else torch.float64)
    trajectory = begun(get_sampler(name), steps, network, start)
    noise, cotangent = latent(batch=2), latent(2, batch=2)
    variable = noise.clone().requires_grad_()
    noises = [latent(100 + number) for number in range(steps - 1)]
    expected = textbook(Method(name), trajectory.schedule, brute(network), [variable], start, noises)
    (gradient,) = torch.autograd.grad(expected, variable, cotangent)

    final = trajectory.run(trajectory.initial(noise))
    state, gradients = trajectory.adjoint(final, cotangent)
    assert error(trajectory.image(final), expected.detach()) < 1e-5
    assert len(state) == len(gradients) == 1
    assert error(state[0], noise) < 1e-9
    assert error(gradients[0], gradient) < 1e-5


@pytest.mark.parametrize("name", SHEARS)
def test_gradient_of_a_whole_state_agrees_with_autograd(name: str) -> None:
    network, schedule = guided(2.0, prediction="v_prediction"), make_schedule(SD, 8)
    sampler = get_sampler(name)
    start = sampler.start_node(schedule, 0.7)
    assert start == 2
    trajectory = Trajectory(sampler, schedule, network, start)
    pair = [latent(5), latent(6)]
    variables = [x.clone().requires_grad_() for x in pair]
    expected = textbook(Method(name), schedule, brute(network), variables, start)
    wanted = torch.autograd.grad(expected, variables, latent(2))

    final = trajectory.run(pair)
    state, gradients = trajectory.adjoint(final, latent(2))
    assert error(trajectory.image(final), expected.detach()) < 1e-5
    for got, want, back, given in zip(gradients, wanted, state, pair, strict=True):
        assert error(got, want) < 1e-5
        assert error(back, given) < 1e-9


@pytest.mark.parametrize("option", [bdia.sampler(gamma=1), edict.sampler(p=0.6)])
def test_options_reach_the_coefficients(option) -> None:
    network, schedule = guided(), make_schedule(SD, 6)
    trajectory = Trajectory(option, schedule, network)
    expected = textbook(Method(option.name, p=0.6, gamma=1.0), schedule, brute(network), [latent()])
    assert error(trajectory.image(trajectory.run(trajectory.initial(latent()))), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("name", SHEARS)
def test_the_noise_is_recovered(name: str, steps: int, dtype: torch.dtype) -> None:
    network = guided(dtype=dtype)
    try:
        network(latent(), 1)
    except RuntimeError as e:
        pytest.skip(f"this torch cannot convolve {dtype} on the CPU: {e}")
    trajectory = Trajectory(get_sampler(name), make_schedule(SD, steps), network)
    final = trajectory.run(trajectory.initial(latent()))
    # Inverting 50 steps of BDIA amplifies errors 1e15 times. Only the second word of the state makes this affordable.
    state = trajectory.adjoint(final, latent(2))[0]
    assert error(state[0], latent()) < 1e-14


def test_gamma_stays_within_its_budget() -> None:
    assert bdia.gamma(10) == bdia.gamma(22) == 0.2
    assert bdia.gamma(100) ** -100 == pytest.approx(1e16)
    assert bdia.gamma(50, budget=1e3) ** -50 == pytest.approx(1e3)


@pytest.mark.parametrize("name", SHEARS)
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_inverted_image_is_reproduced(name: str, strength: float, dtype: torch.dtype) -> None:
    schedule, sampler = make_schedule(SD, 10), get_sampler(name)
    trajectory = Trajectory(sampler, schedule, guided(2.0, dtype), sampler.start_node(schedule, strength))
    state = trajectory.invert(latent(3))
    assert len(state) == 2 and all(torch.isfinite(x).all() for x in state)
    assert error(trajectory.image(trajectory.run(state)), latent(3)) < 1e-9


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_and_progress(name: str) -> None:
    network, sampler = guided(), get_sampler(name)
    trajectory = begun(sampler, 10, network)
    calls: list[tuple[int, int]] = []
    final = trajectory.run(trajectory.initial(latent()), on_step=lambda done, total: calls.append((done, total)))
    each = 2 * (20 if name == "edict" else 10)  # Two branches.
    assert (network.evals_forward, network.evals_backward) == (each, 0)
    assert each == 2 * 10 * sampler.evals_per_step
    assert calls == [(i, len(calls)) for i in range(1, len(calls) + 1)]
    trajectory.adjoint(final, latent(2))
    assert (network.evals_forward, network.evals_backward) == (each, each)

    def abort(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trajectory.adjoint(final, latent(2), on_step=abort)
    assert network.evals_backward <= each + 2


@pytest.mark.parametrize("name", SHEARS)
def test_memory_does_not_grow_with_the_number_of_steps(name: str) -> None:
    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def peaks(steps: int) -> tuple[int, int]:
        alive: weakref.WeakSet[Saved] = weakref.WeakSet()
        most_saved, most_tensors = 0, 0

        def pack(tensor: Tensor) -> Saved:
            nonlocal most_saved
            saved = Saved(tensor)
            alive.add(saved)
            most_saved = max(most_saved, len(alive))
            return saved

        def count(done: int, total: int) -> None:
            nonlocal most_tensors
            if done > total - 2:
                most_tensors = max(most_tensors, sum(type(o) is Tensor for o in gc.get_objects()))

        trajectory = Trajectory(get_sampler(name), make_schedule(SD, steps), guided())
        final = trajectory.run(trajectory.initial(latent()), on_step=count)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            trajectory.adjoint(final, latent(2), on_step=count)
        assert most_saved > 0
        return most_saved, most_tensors

    gc.collect()
    assert peaks(5) == peaks(50)
