"""The loop on the real embedded model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sgool import tiny
from sgool.errors import SgoolError
from sgool.generate import CANDIDATE_STRIDE, generate
from sgool.guidance.loss import SaliencyLoss
from sgool.optimize import Stop
from sgool.samplers import Branch, Network, Trajectory, get_sampler, make_schedule
from sgool.settings import settings
from sgool.update import DoodlUpdate

PROMPT = "a small penguin and a pizza on a green background"


def values(**changes):
    return settings(
        {**tiny.DEFAULTS, "steps": 4, "strength": 1.0, "iterations": 2, "cutouts": 2, "patience": 0, **changes}
    )


def test_gradient_of_the_whole_chain_is_that_of_full_autograd(backend, guides):
    """CLIP, decoder and every sampling step, against one graph through all of it."""
    network = backend.network(PROMPT, "", 4.0)
    schedule = make_schedule(backend.alphas_cumprod, 4)
    trajectory = Trajectory(get_sampler("bdia"), schedule, network)
    loss = SaliencyLoss(guides.clip, PROMPT, cutouts=0)
    noise = backend.noise(3)

    final = trajectory.run(trajectory.initial(noise))
    latent = trajectory.image(final).float().requires_grad_()
    (cotangent,) = torch.autograd.grad(loss(backend.decode(latent)), latent)
    _, (ours,) = trajectory.adjoint(final, cotangent)

    start = noise.clone().requires_grad_()
    (branch,) = network.branches
    state = [start, torch.zeros_like(start)]
    for op in trajectory.sampler.operations(schedule, 0):
        eps = branch.function(state[op.j].float(), schedule.timesteps[op.node]).double()
        state[op.k] = op.alpha * state[op.k] + op.beta * state[op.j] + op.c * eps
    image = backend.decode(state[schedule.steps % 2])
    (reference,) = torch.autograd.grad(loss(image), start)
    assert (ours - reference).norm() / reference.norm() < 1e-4


def test_a_run_returns_the_best_image_and_counts_its_work(backend, guides):
    result = generate(backend, guides, PROMPT, values(), seed=1)
    assert len(result.losses) == len(result.scores) == 3
    assert result.best.score in result.scores and result.best.score >= result.first.score == result.scores[0]
    assert result.unet_evals == 2 * 4 * (3 + 2)  # both halves of guidance, 4 steps, 3 ways there and 2 back
    assert result.best.image.shape == (1, 3, 128, 128)
    assert result.best.image.min() >= 0 and result.best.image.max() <= 1
    again = generate(backend, guides, PROMPT, values(), seed=1)
    assert again.losses == result.losses and torch.equal(again.best.image, result.best.image)


class Scripted:
    """A CLIP with given scores, one for each image in turn; all else is that of a real one, where it is given."""

    def __init__(self, scores, clip=None):
        self.scores, self.clip = iter(scores), clip

    def __getattr__(self, name):
        return getattr(self.clip, name)

    def similarity(self, image, prompt):
        return next(self.scores)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.5, 0.9, 0.83, 0.7], 1),
        ([0.5, 0.83, 0.9, 0.9], 2),
        ([0.5, 0.4, 0.5, 0.3], 0),
    ],
)
def test_the_image_with_the_highest_score_is_kept_and_the_first_when_none_beats_it(backend, guides, scores, kept):
    scripted = replace(guides, selector=Scripted(scores))
    result = generate(backend, scripted, PROMPT, values(iterations=3), seed=1)
    assert result.scores == scores and result.best.iteration == result.best_update == kept
    assert (result.best is result.first) == (kept == 0)


@pytest.mark.parametrize(
    ("guide", "selector", "liked"),
    [
        ([0.5, 0.6, 0.9], [0.9, 0.7, 0.2], 0),
        ([0.5, 0.8, 0.9], [0.9, 0.7, 0.2], 1),  # neither's favourite
        ([0.5, 0.8, 1.5], [0.9, 0.7, 0.2], 2),
    ],
)
def test_of_several_starts_the_one_that_guide_and_selector_like_best_is_improved(
    backend, guides, guide, selector, liked
):
    """The first start's image, which the selector alone likes best, is kept if nothing beats it there."""
    noises = [backend.noise(1 + CANDIDATE_STRIDE * i) for i in range(3)]
    scripted = replace(guides, clip=Scripted(guide, guides.clip), selector=Scripted([*selector, 0.5, 0.6]))
    seen = []
    result = generate(
        backend,
        scripted,
        PROMPT,
        values(iterations=1, candidates=3, learning_rate=0.0),
        seed=1,
        on_image=lambda _, newest: seen.append(newest.latent),
    )
    schedule = make_schedule(backend.alphas_cumprod, 4)
    trajectory = Trajectory(get_sampler("bdia"), schedule, backend.network(PROMPT, "", 4.0))
    chosen = trajectory.image(trajectory.run(trajectory.initial(noises[liked])))
    assert torch.allclose(seen[0], chosen, atol=1e-5)
    assert result.best is result.first and result.first.score == 0.9
    assert result.best_update == -1  # none of the images that the run made from the chosen start
    assert result.unet_evals == 2 * 4 * (3 + 2)


def test_without_updates_the_best_of_several_starts_comes_out(backend, guides):
    """Method none with candidates is best-of-N: the plain image of the start that both CLIPs like best."""
    scripted = replace(guides, clip=Scripted([0.5, 0.8, 0.9], guides.clip), selector=Scripted([0.6, 0.7, 0.2, 0.7]))
    own = values(method="none", sampler="ddim", candidates=3)
    result = generate(backend, scripted, PROMPT, own, seed=1)
    plain = generate(backend, guides, PROMPT, {**own, "candidates": 1}, seed=1 + CANDIDATE_STRIDE)
    assert torch.allclose(result.best.latent, plain.first.latent, atol=1e-6)
    assert result.unet_evals == 2 * 4 * 3


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_from_partway_only_the_rest_of_the_sampling_is_gone_back_through(backend, guides, strength):
    own = values(steps=8, strength=strength, sampler="ddim", learning_rate=0.0, iterations=1)
    result = generate(backend, guides, PROMPT, own, seed=6)
    plain = generate(backend, guides, PROMPT, values(method="none", sampler="ddim", steps=8), seed=6)
    assert torch.allclose(result.first.latent, plain.first.latent, atol=1e-6)
    assert result.unet_evals == 2 * 8 * (1 + 2 * strength)
    with_update = generate(backend, guides, PROMPT, {**own, "learning_rate": 0.05}, seed=6)
    assert with_update.losses[1] != result.losses[1]


def test_without_saliency_the_loss_falls(backend, guides):
    """Small steps against a fixed loss (no random cutouts, no moving crops) must lower it."""
    own = values(saliency_weight=0.0, cutouts=0, learning_rate=1e-4, regularisation=0.0)
    losses = generate(backend, guides, PROMPT, own, seed=2).losses
    assert losses[2] < losses[1] < losses[0]


def test_method_none_is_plain_ddim(backend, guides):
    from diffusers import DDIMScheduler

    result = generate(backend, guides, PROMPT, values(method="none", sampler="ddim", steps=5), seed=4)
    scheduler = DDIMScheduler.from_pretrained(tiny.MODEL / "scheduler")
    scheduler.set_timesteps(5)
    network = backend.network(PROMPT, "", 4.0)
    x = backend.noise(4)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, int(t)), t, x).prev_sample
    assert torch.allclose(result.first.latent, x, atol=1e-4)
    assert result.unet_evals == 10 and result.best is result.first


@pytest.mark.parametrize("sampler", ["bdia", "o-belm", "edict"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_start_begins_with_the_image_itself(backend, guides, sampler, strength):
    image = generate(backend, guides, PROMPT, values(method="none", sampler="ddim", steps=8), seed=5).first.image
    own = values(start="image", strength=strength, sampler=sampler, steps=8, iterations=1)
    result = generate(backend, guides, PROMPT, own, init_latent=backend.encode(image))
    assert (result.first.latent - backend.encode(image)).abs().max() < 1e-6


@pytest.mark.parametrize("how", [Stop, KeyboardInterrupt])
def test_stopping_keeps_the_best_so_far(backend, guides, how):
    def stop(result, newest):
        if newest.iteration == 1:
            raise how

    result = generate(backend, guides, PROMPT, values(iterations=5), on_image=stop)
    assert len(result.scores) == 2 and result.best.score == max(result.scores)
    assert "Interrupted" in result.ended and not result.failed


def test_nan_from_the_network_keeps_the_image_so_far(backend, guides, monkeypatch):
    calls = 0

    def network(prompt, negative_prompt, guidance_scale):
        whole = type(backend).network(backend, prompt, negative_prompt, guidance_scale)

        def breaking(x, t):
            nonlocal calls
            calls += 1
            return whole.branches[0].function(x, t) * (float("nan") if calls > 6 else 1)

        return Network([Branch(1.0, breaking, evals=2)], backend.alphas_cumprod)

    monkeypatch.setattr(backend, "network", network)
    result = generate(backend, guides, PROMPT, values())
    assert result.failed and "NaN" in result.ended and torch.isfinite(result.best.image).all()
    with pytest.raises(SgoolError, match="NaN"):
        generate(backend, guides, PROMPT, values())


class Unsteady:
    """A backend whose network never predicts the same twice, as some attention kernels do not."""

    def __init__(self, backend, size):
        self.backend, self.size = backend, size
        self.generator = torch.Generator().manual_seed(0)

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def network(self, *args):
        (branch,) = self.backend.network(*args).branches

        def function(x, t):
            noise = torch.randn(x.shape, generator=self.generator)
            return branch.function(x, t) + self.size * noise

        return Network([Branch(1.0, function, branch.evals)], self.backend.alphas_cumprod)


def test_a_network_that_does_not_repeat_itself_is_optimised_with_stored_latents(backend, guides):
    own = values(steps=8)
    result = generate(Unsteady(backend, 1e-3), guides, PROMPT, own, seed=1)
    assert "does not repeat" in result.ended and not result.failed and len(result.scores) == 3
    assert result.sampler == "ddim"
    assert torch.isfinite(result.best.image).all()
    steady = generate(backend, guides, PROMPT, {**own, "sampler": "ddim"}, seed=1)
    assert (result.first.image - steady.first.image).abs().mean() < 0.02
    image = backend.encode(steady.first.image)
    carried = generate(Unsteady(backend, 1e-3), guides, PROMPT, {**own, "start": "image"}, init_latent=image)
    assert carried.failed and "does not repeat" in carried.ended  # DDIM could not carry it back exactly


@pytest.mark.parametrize("how", [KeyboardInterrupt, SgoolError])
def test_what_fails_in_the_second_attempt_leaves_the_first_ones_images(backend, guides, how):
    """A network that does not repeat itself fails at its second image; the run that begins again, at its first step."""
    seen = []

    def on_image(result, newest):
        seen.append(newest)

    def on_step(done, total):
        if on_step.began and done == 1 and done_before[-1] != 0:
            raise how("again")
        done_before.append(done)

    on_step.began, done_before = False, [0]
    unsteady = Unsteady(backend, 1e-3)
    network = unsteady.network

    def once_more(*args):
        on_step.began = hasattr(unsteady, "asked")
        unsteady.asked = True
        return network(*args)

    unsteady.network = once_more
    result = generate(unsteady, guides, PROMPT, values(steps=8), seed=1, on_image=on_image, on_step=on_step)
    assert len(seen) == 1 and result.best.image is seen[0].image
    assert result.failed == (how is SgoolError) and result.ended.startswith("Ended" if result.failed else "Interrupted")


class Failing:
    """A backend whose decoder does something else at its n-th image."""

    def __init__(self, backend, number, decode):
        self.backend, self.left, self.other = backend, number, decode

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def decode(self, latent):
        self.left -= 1
        return self.backend.decode(latent) if self.left else self.other(latent)


def test_no_memory_left_on_the_cpu_ends_the_run_with_the_best_image_so_far(backend, guides):
    def full(latent):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    result = generate(Failing(backend, 3, full), guides, PROMPT, values(), seed=1)
    assert result.failed and "can't allocate memory" in result.ended and len(result.scores) == 2

    def broken(latent):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        generate(Failing(backend, 3, broken), guides, PROMPT, values(), seed=1)


def test_a_start_whose_image_is_nan_is_not_the_best(backend, guides):
    nan = Failing(backend, 2, lambda latent: backend.decode(latent) * torch.nan)
    result = generate(nan, guides, PROMPT, values(candidates=3), seed=1)
    assert result.failed and "NaN" in result.ended
    assert result.best is result.first and torch.isfinite(result.best.image).all() and result.best.score > 0


def test_patience_stops_a_run_that_does_not_improve(backend, guides):
    result = generate(backend, guides, PROMPT, values(iterations=6, learning_rate=0.0, patience=2, cutouts=0))
    assert len(result.scores) == 3 and "Stopped early" in result.ended
    scripted = replace(guides, selector=Scripted([0.5, 0.9, 0.89, 0.88, 0.87]))
    result = generate(backend, scripted, PROMPT, values(iterations=6, patience=2))
    assert len(result.scores) == 4 and result.best.iteration == 1


def test_memory_does_not_grow_with_the_steps(backend, guides):
    """Tensors saved for backward, at most alive at once, during a whole run."""

    def peak(steps: int) -> int:
        alive = highest = 0

        class Saved:
            def __init__(self, tensor):
                nonlocal alive, highest
                self.tensor = tensor
                alive += tensor.numel()
                highest = max(highest, alive)

            def __del__(self):
                nonlocal alive
                alive -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            generate(backend, guides, PROMPT, values(steps=steps, iterations=1))
        return highest

    assert peak(12) <= 1.01 * peak(3)


def test_doodl_is_perturbed_by_other_noise_than_it_starts_from(backend, guides, monkeypatch):
    given = []

    class Watched(DoodlUpdate):
        def __init__(self, **options):
            given.append(options["generator"].get_state())
            super().__init__(**options)

    monkeypatch.setattr("sgool.generate.DoodlUpdate", Watched)
    generate(backend, guides, PROMPT, values(method="doodl", sampler="edict", iterations=0), seed=3)
    generator, start = torch.Generator(), backend.noise(3)
    generator.set_state(given[0])
    first = torch.randn(start.shape, generator=generator, dtype=torch.float64)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), start.flatten()]))[0, 1]) < 0.1


def test_doodl_runs_on_edict_with_its_own_loss(backend, guides):
    own = values(method="doodl", sampler="edict", iterations=1)
    result = generate(backend, guides, PROMPT, own)
    assert result.unet_evals == 2 * 2 * 4 * (2 + 1) and len(result.losses) == 2
