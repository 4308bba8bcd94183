"""Samplers against an exact solution, and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toys import error, latent, toys

from sgool.samplers import Branch, Network, Schedule, Trajectory, get_sampler, make_schedule


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
    # BDIA's leading error is (1 - gamma) / (1 + gamma) times DDIM's, and gamma is at least 0.2.
    assert distance_to_flow("bdia", steps) < distance_to_flow("ddim", steps) * 2 / 3


def test_ddim_inverts_approximately() -> None:
    model = Gaussian(1000)
    schedule = make_schedule(model.alphabar, 20)
    trajectory = Trajectory(get_sampler("ddim"), schedule, model.network)
    clean = model.mean + model.spread * latent()
    state = trajectory.invert(clean)
    assert len(state) == 1
    assert error(trajectory.image(trajectory.run(state)), clean) < 1e-3
    # The iteration has to beat the usual inversion, which takes eps at the cleaner latent.
    x = clean
    for i in reversed(range(20)):
        e = model.network(x, schedule.timesteps[i])
        x = schedule.a[i] / schedule.a[i + 1] * x + schedule.a[i] * (schedule.nu(i) - schedule.nu(i + 1)) * e
    assert error(trajectory.image(trajectory.run([x])), clean) > 1e-2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [10, 30])
def test_ddim_matches_diffusers(prediction: str, steps: int) -> None:
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
