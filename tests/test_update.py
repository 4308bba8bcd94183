from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sgool.errors import SgoolError
from sgool.update import RULES, DoodlUpdate, Prior, SgoolUpdate

SHAPE = (2, 4, 32, 32)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(latent: torch.Tensor) -> np.ndarray:
    """In plain numpy, [6, B * C]: mean, variance, skew, kurtosis, and power below and above a radius of 4."""
    x = latent.numpy().reshape(-1, *latent.shape[-2:])
    mean, std = x.mean((1, 2)), x.std((1, 2))
    y = (x - mean[:, None, None]) / std[:, None, None]
    power = np.abs(np.fft.fft2(x)) ** 2 / x[0].size
    k = np.fft.fftfreq(x.shape[-1]) * x.shape[-1]
    radius = np.hypot(k[:, None], k[None])
    low = power[:, (radius > 0) & (radius < 4)].mean(1)
    high = power[:, radius >= 4].mean(1)
    return np.stack([mean, std**2, (y**3).mean((1, 2)), (y**4).mean((1, 2)), low, high])


def wave() -> torch.Tensor:
    x = torch.arange(32, dtype=torch.float64) * 2 * torch.pi / 32
    return (torch.sin(x)[:, None] + torch.cos(2 * x)[None]).expand(SHAPE)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("push", ["shift", "wave", "peaks"])
def test_regularization_keeps_the_statistics_of_real_noise(push: str, rule: str) -> None:
    samples = np.stack([statistics(noise(1000 + i)) for i in range(100)])
    low, high = samples.min((0, 2)), samples.max((0, 2))

    def run(regularization: float) -> np.ndarray:
        state = [noise(0)]
        update = SgoolUpdate(Prior.gaussian(), rule=rule, regularization=regularization)  # type: ignore[arg-type]
        for _ in range(100):
            gradient = {"shift": torch.ones(SHAPE).double(), "wave": wave(), "peaks": -(state[0] ** 3)}[push]
            state = update.step(state, [gradient])
        assert state[0].norm().item() == pytest.approx(noise(0).norm().item(), rel=1e-9)
        return statistics(state[0])

    kept, free = run(1.0), run(0.0)
    assert ((kept >= low[:, None]) & (kept <= high[:, None])).all()
    assert ((free < low[:, None]) | (free > high[:, None])).any(0).all()


def test_true_noise_is_hardly_changed_and_z_scores_are_standard() -> None:
    x = noise(3, (200, 4, 32, 32))[None]
    z = Prior.gaussian().z_scores(x)
    assert z.mean((1, 2, 3)).abs().max() < 0.15 and (z.std((1, 2, 3)) - 1).abs().max() < 0.1
    # The k-th Hermite polynomial of noise that is shifted by m has the mean m^k, and the variance k! / n without it.
    shifted = Prior.gaussian().z_scores(x + 0.5)[:4].mean((1, 2, 3))
    expected = torch.tensor([0.5**k / (math.factorial(k) / 1024) ** 0.5 for k in (1, 2, 3, 4)], dtype=torch.float64)
    torch.testing.assert_close(shifted, expected, rtol=0, atol=0.2)
    pulled = torch.stack(Prior.gaussian().pull([x[0]], 1.0))
    assert (pulled - x).norm() / x.norm() < 0.03
    assert Prior.gaussian().excess(pulled).abs().max() < 0.2 * Prior.gaussian().excess(x).abs().max()


def test_the_penalty_has_the_gradient_of_its_value() -> None:
    x = (noise(4, (1, 1, 6, 8)) * 1.7 + 0.5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: Prior.gaussian().penalty([t]), (x,))
    beyond = Prior.gaussian().z_scores(x[None]).abs().sub(2).clamp_min(0)  # the tolerance is two standard errors
    assert beyond.any()
    torch.testing.assert_close(Prior.gaussian().penalty([x]), beyond.square().sum() / 2)


def test_an_image_start_keeps_its_own_statistics() -> None:
    # Low-frequency, skewed, shifted: nothing like white noise.
    start = [torch.exp(0.3 * noise(5)) * 2 + 0.7 * wave() for _ in range(2)]
    prior = Prior.of(start)
    assert prior.penalty(start) == 0 and Prior.gaussian().penalty(start) > 100
    update, state = SgoolUpdate(prior), start
    for _ in range(30):
        state = update.step(state, [torch.ones(SHAPE).double(), wave()])
    for before, after in zip(start, state, strict=True):
        assert (after - before).norm() > 1e-3
        np.testing.assert_allclose(statistics(after), statistics(before), rtol=0.35, atol=0.5)
        assert np.abs(statistics(after)[0] - statistics(before)[0]).max() < 0.1


def test_without_a_prior_the_first_state_is_its_own() -> None:
    start = [torch.exp(0.3 * noise(5)) * 2 + 0.7 * wave() for _ in range(2)]
    gradients = [torch.ones(SHAPE).double(), wave()]
    states = []
    for update in (SgoolUpdate(), SgoolUpdate(Prior.of(start))):
        state = update.step(start, gradients)
        states.append(update.step(state, gradients))
    for ours, expected in zip(*states, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_goes_along_the_running_means_of_the_gradients(rule: str) -> None:
    """By hand, to first order in the step: what the norm takes back is along the state itself."""
    x, first, second = (noise(seed, (1, 1, 8, 8)) for seed in (14, 15, 16))
    first, second = (g / g.square().mean().sqrt() for g in (first, second))
    update = SgoolUpdate(learning_rate=1e-6, rule=rule, warmup=0, regularization=0.0)
    middle = update.step([x], [3 * first])[0]
    moved = update.step([middle], [5 * second])[0] - middle
    mean = (0.09 * first + 0.1 * second) / 0.19
    square = (0.000999 * first.square() + 0.001 * second.square()) / (1 - 0.999**2)
    expected = -1e-6 * x.square().mean().sqrt() * (mean if rule == "momentum" else mean / square.sqrt())
    expected -= x * (x * expected).sum() / x.square().sum()
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_steps_descend_a_quadratic(rule: str) -> None:
    target, state = noise(7), [noise(6)]
    update = SgoolUpdate(Prior.gaussian(), rule=rule, learning_rate=0.05)  # type: ignore[arg-type]
    losses = []
    for _ in range(25):
        losses.append((state[0] - target).square().mean().item())
        state = update.step(state, [2e-9 * (state[0] - target)])
    assert all(b < a for a, b in pairwise(losses)) and losses[-1] < 0.5 * losses[0]
    assert state[0].dtype == torch.float64


def test_step_length_is_the_learning_rate_in_units_of_the_latent_after_warmup() -> None:
    start = [3 * noise(8)]
    update = SgoolUpdate(Prior.gaussian(), learning_rate=1e-3, warmup=4, regularization=0.0)
    state, gradient = start, noise(9)
    moved = []
    for _ in range(6):
        after = update.step(state, [1e5 * gradient])
        moved.append(((after[0] - state[0]).square().mean() / state[0].square().mean()).sqrt().item())
        state = after
    np.testing.assert_allclose(moved, [2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3], rtol=0.01)


def test_samples_of_a_batch_and_scales_of_the_loss_do_not_interfere() -> None:
    state, gradient = noise(10), noise(11)
    scaled = gradient * torch.tensor([1e-6, 1e6], dtype=torch.float64).view(2, 1, 1, 1)
    together = SgoolUpdate(Prior.gaussian()).step([state], [scaled])[0]
    for i in range(2):
        alone = SgoolUpdate(Prior.gaussian()).step([state[i : i + 1]], [gradient[i : i + 1]])[0]
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("update", [SgoolUpdate(Prior.gaussian(), rule="adam"), DoodlUpdate(perturbation=0.0)])
def test_a_zero_gradient_keeps_the_state(update: SgoolUpdate | DoodlUpdate) -> None:
    state = [torch.stack([noise(12)[0]] * 2)]
    state = SgoolUpdate(Prior.gaussian()).prior.pull(state, 1.0)
    after = update.step(state, [torch.zeros_like(state[0])])
    torch.testing.assert_close(after[0], state[0], rtol=0, atol=2e-3)
    with pytest.raises(SgoolError, match="not finite"):
        update.step(state, [torch.full_like(state[0], float("nan"))])


def test_doodl_matches_its_published_update_by_hand() -> None:
    # Two tied latents of two numbers, norm 5. Half of the summed gradient, clipped to 1e-3, then momentum 0.9:
    # step 1: g = (0.001, -0.0002), v = g,              x = (2.999, 4.0002)
    # step 2: g = (-0.001, 0.0004), v = (-1e-4, 2.2e-4), x = x' - v
    x = torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 2, 1, 1)
    update = DoodlUpdate(perturbation=0.0)
    gradients = [[[7.0, -0.0001], [2.0, -0.0003]], [[-1.0, 0.0004], [0.5, 0.0004]]]
    state = [x, x.clone()]
    expected = np.array([3.0, 4.0])
    for pair, velocity in zip(gradients, ([0.001, -0.0002], [-0.0001, 0.00022]), strict=True):
        state = update.step(state, [torch.tensor(g, dtype=torch.float64).view(1, 2, 1, 1) for g in pair])
        expected = expected - np.array(velocity)
        expected *= 5 / np.hypot(*expected)
        for latent in state:
            np.testing.assert_allclose(latent.flatten().numpy(), expected, rtol=1e-12)


def test_doodl_perturbation_depends_only_on_its_generator() -> None:
    zero = [torch.zeros(SHAPE, dtype=torch.float64)]

    def step(seed: int) -> torch.Tensor:
        return DoodlUpdate(generator=torch.Generator().manual_seed(seed)).step([noise(13)], zero)[0]

    assert torch.equal(step(1), step(1)) and not torch.equal(step(1), step(2))
    assert (step(1) - noise(13)).std().item() == pytest.approx(1e-4, rel=0.05)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SgoolError, match="rule"):
        SgoolUpdate(Prior.gaussian(), rule="sgd")  # type: ignore[arg-type]
    with pytest.raises(SgoolError, match="regularization"):
        SgoolUpdate(Prior.gaussian(), regularization=2)
