"""Samplers against textbook recurrences under full autograd, an exact solution, and diffusers."""

from __future__ import annotations

import gc
import math
import weakref
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from sgool.errors import SgoolError
from sgool.samplers import (
    SAMPLERS,
    Branch,
    Network,
    Schedule,
    Trajectory,
    bdia,
    edict,
    get_sampler,
    make_schedule,
    words,
)

SHEARS = ["bdia", "o-belm", "edict"]
SD = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).neg().add(1).cumprod(0)
"""Stable Diffusion's alphabar."""


class Toy(nn.Module):
    """A convolution, attention over the pixels and a time embedding; `text` makes two of them differ like prompts."""

    def __init__(self, text: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward, self.time, self.outward = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(2, 8), nn.Conv2d(8, 4, 1)
        self.text = text
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: int) -> Tensor:
        wave = torch.tensor([math.sin(t / 150) + self.text, math.cos(t / 150)], dtype=x.dtype)
        h = torch.nn.functional.silu(self.inward(x) + self.time(wave)[:, None, None])
        q = h.flatten(2).transpose(1, 2)
        attended = torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(h.shape)
        return 0.7 * x + self.outward(h + attended)


def toys(dtype: torch.dtype = torch.float32) -> tuple[Toy, Toy]:
    return Toy(0.0).to(dtype), Toy(0.4).to(dtype)


def guided(scale: float = 7.5, dtype: torch.dtype = torch.float32, prediction: str = "epsilon") -> Network:
    """Sequential classifier-free guidance over the two toys."""
    uncond, cond = toys(dtype)
    return Network([Branch(1 - scale, uncond), Branch(scale, cond)], SD, prediction, dtype)


def latent(seed: int = 1, batch: int = 1) -> Tensor:
    return torch.randn(batch, 4, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def textbook(name: str, schedule: Schedule, eps, latents: list[Tensor], start: int, p=0.93, gamma=None) -> Tensor:
    """Each method as its paper states it, step by step and differentiable. `latents`: one, or the pair given."""
    a, sigma, t = schedule.a, schedule.sigma, schedule.timesteps
    nu = [s / b for s, b in zip(sigma, a, strict=True)]

    def ddim(x: Tensor, i: int, to: int, e: Tensor) -> Tensor:
        return a[to] * (x - sigma[i] * e) / a[i] + sigma[to] * e

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
        if name == "ddim" or len(trail) == 1:
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


def brute(network: Network):
    """The network as one differentiable function."""

    def eps(x: Tensor, t: int) -> Tensor:
        out = sum(b.weight * b.function(x.to(network.dtype), t).double() for b in network.branches)
        if network.prediction == "epsilon":
            return out
        return SD[t].sqrt() * out + (1 - SD[t]).sqrt() * x

    return eps


@pytest.mark.parametrize("steps", [2, 7, 10, 50, 300, 500])
def test_schedule_has_sd_spacing(steps: int) -> None:
    schedule = make_schedule(SD.float(), steps)
    assert schedule.steps == len(schedule.timesteps) == steps
    assert schedule.timesteps[-1] == 1 and schedule.timesteps[0] < 1000
    assert {b - a for a, b in zip(schedule.timesteps[1:], schedule.timesteps, strict=False)} == {1000 // steps}
    assert schedule.nu(steps) == pytest.approx((0.00085 / (1 - 0.00085)) ** 0.5, rel=1e-4)
    assert schedule.a[0] ** 2 + schedule.sigma[0] ** 2 == pytest.approx(1, abs=1e-15)


def test_bad_requests_are_refused_in_a_sentence() -> None:
    for steps in (1, 501):
        with pytest.raises(SgoolError, match="between 2 and 500"):
            make_schedule(SD, steps)
    with pytest.raises(SgoolError, match="fall strictly"):
        make_schedule(SD.flip(0), 10)
    with pytest.raises(SgoolError, match="bdia, o-belm, edict, ddim"):
        get_sampler("euler")
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
    network, schedule = guided(), make_schedule(SD, steps)
    trajectory = Trajectory(get_sampler(name), schedule, network, start)
    noise, cotangent = latent(batch=2), latent(2, batch=2)
    variable = noise.clone().requires_grad_()
    expected = textbook(name, schedule, brute(network), [variable], start)
    (gradient,) = torch.autograd.grad(expected, variable, cotangent)

    final = trajectory.run(trajectory.initial(noise))
    state, gradients = trajectory.adjoint(final, cotangent)
    # A last bit of the float64 state can move an element of the float32 input by one float32 rounding.
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
    expected = textbook(name, schedule, brute(network), variables, start)
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
    expected = textbook(option.name, schedule, brute(network), [latent()], 0, p=0.6, gamma=1.0)
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
    # Undoing 50 steps of BDIA amplifies errors 1e15 times: only the second word of the state can pay for that.
    state = trajectory.adjoint(final, latent(2))[0]
    assert error(state[0], latent()) < 1e-14


def test_gamma_spends_its_budget_and_no_more() -> None:
    assert bdia.gamma(10) == bdia.gamma(22) == 0.2
    assert bdia.gamma(100) ** -100 == pytest.approx(1e16)
    assert bdia.gamma(50, budget=1e3) ** -50 == pytest.approx(1e3)


@pytest.mark.parametrize("factor", [0.5, 0.93, -1.0 / 3, 1.7e5])
def test_words_are_twice_as_precise(factor: float) -> None:
    def value(x: words.Words) -> list[Fraction]:
        pairs = zip(*torch.broadcast_tensors(*x), strict=True)
        return [Fraction(high.item()) + Fraction(low.item()) for high, low in pairs]

    def deviation(result: words.Words, expected: list[Fraction]) -> float:
        assert torch.equal(result.high + result.low, result.high)
        assert any(result.low != 0)
        return max(float(abs(a / b - 1)) for a, b in zip(value(result), expected, strict=True))

    high, low, other = torch.randn(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pair = high.tolist(), low.tolist()
    x = words.add(words.exact(high), 2.0**-54 * low)
    assert deviation(x, [Fraction(a) + Fraction(b) / 2**54 for a, b in zip(*pair, strict=True)]) == 0
    scale = Fraction(factor)
    assert deviation(words.multiply(x, factor), [scale * a for a in value(x)]) < 2.0**-103
    assert deviation(words.divide(x, factor), [a / scale for a in value(x)]) < 2.0**-103
    added = [a + Fraction(b) for a, b in zip(value(x), other.tolist(), strict=True)]
    assert deviation(words.add(x, other), added) < 2.0**-100  # Relative to a sum that cancels a few bits.


def test_a_combined_denoiser_equals_sequential_guidance() -> None:
    uncond, cond = toys()
    combined = Network([Branch(1.0, lambda x, t: -6.5 * uncond(x, t) + 7.5 * cond(x, t), evals=2)], SD)
    sequential = guided(7.5)
    results = [n.vjp(latent(), 501, latent(2)) for n in (combined, sequential)]
    for one, other in zip(*results, strict=True):
        assert error(one, other) < 1e-5
    assert combined.evals_backward == sequential.evals_backward == 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_vjp_repeats_eps_bit_for_bit(prediction: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        network = guided(dtype=dtype, prediction=prediction)
        assert torch.equal(network(latent(), 301), network.vjp(latent(), 301, latent(2))[0])


def test_a_tiny_or_huge_cotangent_survives_low_precision() -> None:
    network = guided(dtype=torch.bfloat16)
    half = Network([Branch(1.0, lambda x, t: (x.float() * (1 + x.float().sin())).half())], SD, dtype=torch.float16)
    for n in (network, half):
        plain = n.vjp(latent(), 301, latent(2))[1]
        for scale in (2.0**-80, 2.0**80):
            assert error(n.vjp(latent(), 301, scale * latent(2))[1], scale * plain) < 1e-12
        assert n.vjp(latent(), 301, torch.zeros_like(latent()))[1].abs().max() == 0


def test_what_a_network_may_not_do_is_named() -> None:
    with pytest.raises(SgoolError, match="NaN"):
        Network([Branch(1.0, lambda x, t: x / 0)], SD)(latent(), 1)
    with pytest.raises(SgoolError, match="gradient is NaN"):
        Network([Branch(1.0, lambda x, t: (x - x).sqrt())], SD).vjp(latent(), 1, latent())
    for cut in (torch.no_grad(), torch.inference_mode()):
        with pytest.raises(SgoolError, match="No gradient flows"):
            Network([Branch(1.0, cut(lambda x, t: 2 * x))], SD).vjp(latent(), 1, latent())


@pytest.mark.parametrize("name", SHEARS)
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_survives_the_way_back_and_forth(name: str, strength: float, dtype: torch.dtype) -> None:
    schedule, sampler = make_schedule(SD, 10), get_sampler(name)
    trajectory = Trajectory(sampler, schedule, guided(2.0, dtype), sampler.start_node(schedule, strength))
    state = trajectory.invert(latent(3))
    assert len(state) == 2 and all(torch.isfinite(x).all() for x in state)
    assert error(trajectory.image(trajectory.run(state)), latent(3)) < 1e-9


class Gaussian:
    """Data N(mean, spread^2) in each pixel: eps and the probability flow are known in closed form."""

    mean, spread = 0.8, 0.4

    def __init__(self, total: int) -> None:
        u = torch.arange(1, total + 1, dtype=torch.float64) / total
        self.alphabar = torch.exp(-(0.5 * u + 4.86 * u * u))
        self.network = Network([Branch(1.0, self.eps)], self.alphabar, dtype=torch.float64)

    def eps(self, x: Tensor, t: int) -> Tensor:
        a2 = self.alphabar[t]
        return (1 - a2).sqrt() * (x - a2.sqrt() * self.mean) / (a2 * self.spread**2 + 1 - a2)

    def flow(self, x: Tensor, schedule: Schedule, start: int, end: int) -> Tensor:
        def deviation(i: int) -> float:
            return math.hypot(schedule.a[i] * self.spread, schedule.sigma[i])

        unit = (x - schedule.a[start] * self.mean) / deviation(start)
        return schedule.a[end] * self.mean + deviation(end) * unit


def distance_to_flow(name: str, steps: int) -> float:
    model = Gaussian(12800)
    schedule = make_schedule(model.alphabar, steps)
    trajectory = Trajectory(get_sampler(name), schedule, model.network)
    exact = model.flow(latent(), schedule, 0, steps)
    return error(trajectory.image(trajectory.run(trajectory.initial(latent()))), exact)


@pytest.mark.parametrize("name", ["o-belm", "edict", "ddim"])
def test_order_of_convergence_to_the_exact_flow(name: str) -> None:
    order = math.log2(distance_to_flow(name, 80) / distance_to_flow(name, 160))
    assert order == pytest.approx(get_sampler(name).order, abs=0.15)


@pytest.mark.parametrize("steps", [10, 20, 40, 80, 160])
def test_bdia_has_at_most_two_thirds_of_the_error_of_ddim(steps: int) -> None:
    # Its leading error is (1 - gamma) / (1 + gamma) times DDIM's, and gamma is at least a fifth.
    assert distance_to_flow("bdia", steps) < distance_to_flow("ddim", steps) * 2 / 3


def test_ddim_inverts_approximately() -> None:
    model = Gaussian(1000)
    schedule = make_schedule(model.alphabar, 20)
    trajectory = Trajectory(get_sampler("ddim"), schedule, model.network)
    clean = model.mean + model.spread * latent()
    state = trajectory.invert(clean)
    assert len(state) == 1
    assert error(trajectory.image(trajectory.run(state)), clean) < 1e-3
    # The usual inversion, eps taken at the cleaner latent, is what the iteration has to beat.
    x = clean
    for i in reversed(range(20)):
        e = model.network(x, schedule.timesteps[i])
        x = schedule.a[i] / schedule.a[i + 1] * x + schedule.a[i] * (schedule.nu(i) - schedule.nu(i + 1)) * e
    assert error(trajectory.image(trajectory.run([x])), clean) > 1e-2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [10, 30])
def test_ddim_is_that_of_diffusers(prediction: str, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading", prediction_type=prediction,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    schedule = make_schedule(scheduler.alphas_cumprod, steps)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()
    net, x = toys()[0], latent()
    for t in scheduler.timesteps:
        x = scheduler.step(net(x.float(), int(t)).double(), t, x).prev_sample
    trajectory = Trajectory(
        get_sampler("ddim"), schedule, Network([Branch(1.0, net)], scheduler.alphas_cumprod, prediction)
    )
    assert error(trajectory.image(trajectory.run(trajectory.initial(latent()))), x) < 1e-5


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_and_progress(name: str) -> None:
    network, sampler = guided(), get_sampler(name)
    trajectory = Trajectory(sampler, make_schedule(SD, 10), network)
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
def test_memory_does_not_grow_with_the_steps(name: str) -> None:
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


def test_only_one_branch_has_a_graph_at_a_time() -> None:
    uncond, cond = toys()
    saved: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def watched(net: Toy):
        def function(x: Tensor, t: int) -> Tensor:
            assert len(saved) == 0
            hidden = x * 1.0
            saved.add(hidden)
            return net(hidden, t)

        return function

    Network([Branch(-6.5, watched(uncond)), Branch(7.5, watched(cond))], SD).vjp(latent(), 301, latent(2))
