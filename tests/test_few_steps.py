"""Samplers for models of few steps, against diffusers and full autograd; the way back through the prompt's half."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_samplers import Method, textbook
from torch import Tensor
from toys import RANDOM, SD, SHEARS, begun, brute, error, guided, latent, toys

from sgool.errors import SgoolError
from sgool.samplers import SAMPLERS, Branch, Network, Trajectory, get_sampler, lcm, make_schedule, steps_range

FEW = ["ddim-trailing", "euler", *RANDOM]
SCHEDULERS = {
    "ddim-trailing": ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": False, "steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""diffusers' scheduler of each sampler, and its options."""


def double(scale: float, prediction: str = "epsilon") -> Network:
    """The toys in float64: guided, or at scale 1 the prompt's half alone."""
    network = guided(scale, torch.float64, prediction)
    branches = network.branches if scale != 1 else network.branches[1:]
    return Network(branches, SD, prediction, torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", FEW)
def test_the_forward_map_is_that_of_diffusers(name: str, prediction: str, steps: int, monkeypatch) -> None:
    """From the seed's noise, with the noises that the scheduler draws."""
    diffusers = pytest.importorskip("diffusers")
    kind, options = SCHEDULERS[name]
    options = {**options, "clip_sample": False} if name in ("lcm", "tcd", "ddim-trailing") else options
    scheduler = getattr(diffusers, kind)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction, **options
    )
    scheduler.set_timesteps(steps)
    drawn: list[Tensor] = []

    def draw(shape, **_) -> Tensor:
        drawn.append(latent(50 + len(drawn)).float())
        return drawn[-1]

    monkeypatch.setattr(f"{scheduler.__module__}.randn_tensor", draw)
    net = toys()[0]
    x = latent().float() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), int(t)), t, x).prev_sample

    sampler = get_sampler(name)
    schedule = sampler.schedule(scheduler.alphas_cumprod, steps)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()
    noises = drawn[: sampler.noises(schedule)]
    network = Network([Branch(1.0, net)], scheduler.alphas_cumprod, prediction)
    trajectory = Trajectory(sampler, schedule, network, 0, noises)
    assert error(trajectory.image(trajectory.run(trajectory.from_noise(latent()))), x.double()) < 1e-5
    assert bool(noises) == (name in RANDOM and steps > 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", FEW)
def test_the_gradient_is_that_of_full_autograd(name: str, scale: float, steps: int) -> None:
    for prediction in ("epsilon", "v_prediction"):
        network = double(scale, prediction)
        trajectory = begun(get_sampler(name), steps, network)
        variable = latent().requires_grad_()
        noises = [latent(100 + number) for number in range(steps - 1)]
        expected = textbook(Method(name), trajectory.schedule, brute(network), [variable], 0, noises)
        (wanted,) = torch.autograd.grad(expected, variable, latent(2))
        final = trajectory.run(trajectory.initial(latent()))
        state, gradients = trajectory.adjoint(final, latent(2))
        assert error(trajectory.image(final), expected.detach()) < 1e-9
        assert error(gradients[0], wanted) < 1e-6 and torch.equal(state[0], latent())


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8])
def test_trailing_timesteps_begin_at_the_noise(steps: int) -> None:
    for spacing in ("trailing", "distilled"):
        schedule = make_schedule(SD, steps, spacing)
        assert schedule.timesteps[0] == 999 and schedule.steps == steps
        assert schedule.sigma[-1] ** 2 == pytest.approx(1 - SD[0].item())
        clean = make_schedule(SD, steps, spacing, clean=True)
        assert clean.timesteps == schedule.timesteps and (clean.a[-1], clean.sigma[-1]) == (1.0, 0.0)
    assert make_schedule(SD, 4, "trailing").timesteps == (999, 749, 499, 249)
    assert make_schedule(SD, 4, "distilled").timesteps == (999, 759, 499, 259)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_takes_the_steps_it_says(name: str) -> None:
    sampler = get_sampler(name)
    fewest, most = steps_range(sampler.spacing)
    for steps in (fewest, most):
        assert sampler.schedule(SD, steps).steps == steps
    for steps in (fewest - 1, most + 1):
        with pytest.raises(SgoolError, match=f"between {fewest} and {most}"):
            sampler.schedule(SD, steps)


@pytest.mark.parametrize("name", FEW)
def test_the_first_steps_are_the_samplers_own(name: str) -> None:
    """A start part of the way down lies on the way of a start from the noise."""
    sampler, network = get_sampler(name), double(4.0)
    whole, part = begun(sampler, 5, network), begun(sampler, 5, network, 2)
    ends = [each.image(each.run(each.from_noise(latent()))) for each in (whole, part)]
    assert error(ends[1], ends[0]) < 1e-12


@pytest.mark.parametrize("name", RANDOM)
def test_a_sampler_that_draws_noise_has_no_inverse(name: str) -> None:
    trajectory = begun(get_sampler(name), 4, guided())
    assert not trajectory.sampler.invertible
    with pytest.raises(SgoolError, match=f"The sampler {name} draws noise .* with o-belm or ddim"):
        trajectory.invert(latent())
    assert all(get_sampler(other).invertible for other in SAMPLERS if other not in RANDOM)


def test_without_its_boundary_condition_lcm_noises_just_what_the_model_predicts() -> None:
    """As Forge Neo does. Of a model that knows the noise: the true image. With the condition, it is not quite that."""
    schedule = lcm.sampler().schedule(SD, 4)
    image, noise, fresh = (latent(seed) for seed in (1, 2, 3))
    for i in range(4):
        x = schedule.a[i] * image + schedule.sigma[i] * noise
        expected = schedule.a[i + 1] * image + schedule.sigma[i + 1] * fresh
        for boundary in (True, False):
            keep, c, new = lcm.sampler(boundary=boundary).step(schedule, i)
            assert torch.allclose(keep * x + c * noise + new * fresh, expected, rtol=0, atol=1e-12) is not boundary


def halves(scale: float, dtype: torch.dtype = torch.float64) -> Network:
    """The toys with guidance as two branches, of which the prompt's half can carry the gradient alone."""
    uncond, cond = toys(dtype)
    prompt = Branch(1.0, cond)
    return Network([Branch(1 - scale, uncond, back=()), replace(prompt, weight=scale, back=(prompt,))], SD, dtype=dtype)


def batched(scale: float, dtype: torch.dtype = torch.float64) -> Network:
    """The same as one branch."""
    uncond, cond = toys(dtype)

    def both(x: Tensor, t: int) -> Tensor:
        return (1 - scale) * uncond(x, t) + scale * cond(x, t)

    return Network([Branch(1.0, both, evals=2, back=(Branch(1.0, cond),))], SD, dtype=dtype)


@pytest.mark.parametrize("make", [halves, batched])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_gradient_through_the_prompts_half_is_autograds_where_guidance_is_a_constant(name: str, make) -> None:
    network = make(4.0)
    uncond, cond = toys(torch.float64)

    def eps(x: Tensor, t: int) -> Tensor:
        return cond(x, t) + 3.0 * (cond(x, t) - uncond(x, t)).detach()

    trajectory = begun(get_sampler(name), 6, network, 1, "prompt")
    variable = latent().requires_grad_()
    noises = [latent(100 + number) for number in range(5)]
    expected = textbook(Method(name), trajectory.schedule, eps, [variable], 1, noises)
    (wanted,) = torch.autograd.grad(expected, variable, latent(2))
    final = trajectory.run(trajectory.initial(latent()))
    state, gradients = trajectory.adjoint(final, latent(2))
    assert error(trajectory.image(final), expected.detach()) < 1e-9
    assert error(gradients[0], wanted) < 1e-6 and torch.equal(state[0], latent())
    each = 5 * trajectory.sampler.evals_per_step  # of one half
    assert (network.evals_forward, network.evals_backward) == (2 * each, each)


def test_the_prompts_half_can_have_another_weight() -> None:
    """With its whole weight the negative half alone is a constant."""
    uncond, cond = toys(torch.float64)
    prompt = Branch(4.0, cond)
    network = Network(
        [Branch(-3.0, uncond, back=()), replace(prompt, back=(prompt,))], SD, "v_prediction", torch.float64
    )
    x = latent().requires_grad_()
    eps = SD[301].sqrt() * (4 * cond(x, 301) - 3 * uncond(x, 301).detach()) + (1 - SD[301]).sqrt() * x
    (wanted,) = torch.autograd.grad(eps, x, latent(2))
    assert error(network.prompt_vjp(latent(), 301, latent(2)), wanted) < 1e-12


@pytest.mark.parametrize("name", SHEARS)
def test_a_whole_state_goes_back_through_the_prompts_half(name: str) -> None:
    """Without guidance both ways back are the same, and nothing has to be recovered."""
    full, prompt = (begun(get_sampler(name), 6, double(1.0), 2, way) for way in ("full", "prompt"))
    state = full.invert(latent(3))
    wanted, got = (each.adjoint(each.run(state), latent(2))[1] for each in (full, prompt))
    assert len(got) == 2 and all(error(a, b) < 1e-9 for a, b in zip(got, wanted, strict=True))


def test_a_network_that_does_not_repeat_itself_needs_no_other_way_back_through_the_prompt() -> None:
    generator = torch.Generator().manual_seed(0)

    def unsteady(x: Tensor, t: int) -> Tensor:
        return 0.3 * x + 0.01 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    trajectory = begun(get_sampler("bdia"), 6, Network([Branch(1.0, unsteady)], SD, dtype=torch.float64), 0, "prompt")
    state, _ = trajectory.adjoint(trajectory.run(trajectory.initial(latent())), latent(2))
    assert torch.equal(state[0], latent())
