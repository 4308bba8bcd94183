"""The loop on the real embedded model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sgool import tiny
from sgool.errors import SgoolError
from sgool.generate import CANDIDATE_STRIDE, Request, generate, make_sampler
from sgool.guidance.loss import SaliencyLoss, Whole
from sgool.presets import resolve
from sgool.result import TRIED, Ending, Progress, Stop
from sgool.samplers import Branch, Network, Trajectory, get_sampler, make_schedule
from sgool.update import DoodlUpdate

PROMPT = "a small penguin and a pizza on a green background"


def small(**changes):
    """Settings of a short run that goes back through the whole network, and over them these."""
    few = {"steps": 4, "strength": 1.0, "iterations": 2, "cutouts": 2, "patience": 0, "way_back": "full"}
    return resolve({**few, **changes}, model="tiny")


def asked(seed=0, latent=None):
    return Request(PROMPT, seed=seed, init_latent=latent)


class Hear(Progress):
    """Passes on what it hears."""

    def __init__(self, image=None, step=None):
        if image:
            self.image = image
        if step:
            self.step = step


def test_gradient_of_the_whole_chain_is_that_of_full_autograd(backend, critics):
    """CLIP, decoder and every sampling step, against one graph through all of it."""
    network = backend.network(PROMPT, "", 4.0)
    schedule = make_schedule(backend.alphas_cumprod, 4)
    trajectory = Trajectory(get_sampler("bdia"), schedule, network)
    loss = SaliencyLoss(critics.guide, PROMPT, whole=Whole(cutouts=0))
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


def test_a_run_returns_the_best_image_and_counts_its_work(backend, critics):
    result = generate(backend, critics, asked(1), small())
    assert len(result.losses) == len(result.scores) == 3
    assert result.first.score == result.scores[0] and result.best.score == max(result.scores)
    assert result.scores[result.best_update] == result.best.score
    for each in (result.first, result.best):
        assert each.score == pytest.approx(critics.selector.judge(each.image, PROMPT), abs=1e-6)
    assert result.unet_evals == 2 * 4 * (3 + 2)  # both halves of guidance, 4 steps, 3 ways there and 2 back
    assert result.forward_equivalents == 2 * 4 * (3 + 2 * 2)
    assert result.best.image.shape == (1, 3, 128, 128)
    assert result.best.image.min() >= 0 and result.best.image.max() <= 1
    again = generate(backend, critics, asked(1), small())
    assert again.losses == result.losses and torch.equal(again.best.image, result.best.image)


class Scripted:
    """A critic with given scores, one for each image in turn; all else is that of a real one, where it is given."""

    unit = "cosine"

    def __init__(self, scores, critic=None):
        self.scores, self.critic = iter(scores), critic

    def __getattr__(self, name):
        return getattr(self.critic, name)

    def judge(self, image, text):
        return self.judge_all(image, text)[0]

    def judge_all(self, images, text):
        assert text == PROMPT
        return [next(self.scores) for _ in images]

    def judge_parts(self, images, text):
        return torch.tensor(self.judge_all(images, text))[:, None]

    def fresh(self):
        return self

    def blocks(self):
        return ()

    def settle(self, parts):
        return parts[:, 0]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.5, 0.9, 0.83, 0.7], 1),
        ([0.5, 0.83, 0.9, 0.9], 2),
        ([0.5, 0.4, 0.5, 0.3], 0),
    ],
)
def test_the_image_with_the_highest_score_is_kept_and_the_first_when_none_beats_it(backend, critics, scores, kept):
    scripted = replace(critics, selector=Scripted(scores))
    result = generate(backend, scripted, asked(1), small(iterations=3))
    assert result.scores == scores and result.best.iteration == result.best_update == kept
    assert (result.best is result.first) == (kept == 0)


@pytest.mark.parametrize(
    ("guide", "selector", "liked"),
    [
        ([0.5, 0.6, 0.9], [0.9, 0.7, 0.2], 0),
        ([0.5, 0.8, 0.9], [0.9, 0.7, 0.2], 1),  # neither's favorite
        ([0.5, 0.8, 1.5], [0.9, 0.7, 0.2], 2),
    ],
)
def test_of_several_starts_the_one_that_guide_and_selector_like_best_is_improved(
    backend, critics, guide, selector, liked
):
    """The first start's image, which the selector alone likes best, is kept if nothing beats it there."""
    noises = [backend.noise(1 + CANDIDATE_STRIDE * i) for i in range(3)]
    scripted = replace(critics, guide=Scripted(guide, critics.guide), selector=Scripted([*selector, 0.5, 0.6]))
    seen = []
    own = small(iterations=1, candidates=3, learning_rate=0.0)
    hear = Hear(image=lambda _, newest: seen.append(newest.latent))
    result = generate(backend, scripted, asked(1), own, hear)
    schedule = make_schedule(backend.alphas_cumprod, 4)
    trajectory = Trajectory(get_sampler("bdia"), schedule, backend.network(PROMPT, "", 4.0))
    chosen = trajectory.image(trajectory.run(trajectory.initial(noises[liked])))
    assert torch.allclose(seen[0], chosen, atol=1e-5)
    assert result.best is result.first and result.first.score == 0.9
    # Where another start was chosen, the best image is none of those that the run made.
    assert result.best_update == result.first.iteration == (0 if liked == 0 else TRIED)
    assert result.scores == [0.5, 0.6] and result.iterations == 1
    assert result.unet_evals == 2 * 4 * (3 + 2)


def test_without_updates_the_best_of_several_starts_comes_out(backend, critics):
    """Method none with candidates is best-of-N: the plain image of the start that both critics like best."""
    scripted = replace(critics, guide=Scripted([0.5, 0.8, 0.9], critics.guide), selector=Scripted([0.6, 0.7, 0.2, 0.7]))
    own = small(method="none", sampler="ddim", candidates=3)
    result = generate(backend, scripted, asked(1), own)
    plain = generate(backend, critics, asked(1 + CANDIDATE_STRIDE), own.changed(candidates=1))
    assert torch.allclose(result.best.latent, plain.first.latent, atol=1e-4)
    assert result.unet_evals == 2 * 4 * 3


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_from_partway_only_the_rest_of_the_sampling_is_gone_back_through(backend, critics, strength):
    own = small(steps=8, strength=strength, sampler="ddim", learning_rate=0.0, iterations=1)
    result = generate(backend, critics, asked(6), own)
    plain = generate(backend, critics, asked(6), small(method="none", sampler="ddim", steps=8))
    assert torch.allclose(result.first.latent, plain.first.latent, atol=1e-6)
    assert result.unet_evals == 2 * 8 * (1 + 2 * strength)
    with_update = generate(backend, critics, asked(6), own.changed(learning_rate=0.05))
    assert with_update.losses[1] != result.losses[1]


def test_without_saliency_the_loss_falls(backend, critics):
    """Small steps against a fixed loss (no random cutouts, no moving crops) must lower it."""
    own = small(saliency_weight=0.0, cutouts=0, learning_rate=1e-4, regularization=0.0)
    losses = generate(backend, critics, asked(2), own).losses
    assert losses[2] < losses[1] < losses[0]


def test_method_none_is_plain_ddim(backend, critics):
    from diffusers import DDIMScheduler

    result = generate(backend, critics, asked(4), small(method="none", sampler="ddim", steps=5))
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
def test_image_start_begins_with_the_image_itself(backend, critics, sampler, strength):
    image = generate(backend, critics, asked(5), small(method="none", sampler="ddim", steps=8)).first.image
    own = small(start="image", strength=strength, sampler=sampler, steps=8, iterations=1)
    result = generate(backend, critics, asked(latent=backend.encode(image)), own)
    assert (result.first.latent - backend.encode(image)).abs().max() < 1e-6


def test_method_none_from_an_image_is_that_image(backend, critics):
    latent = backend.encode(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    result = generate(
        backend, critics, asked(latent=latent), resolve({"method": "none", "start": "image"}, model="tiny")
    )
    assert (result.first.latent - latent).abs().max() < 1e-6
    assert result.best is result.first and len(result.scores) == 1
    assert torch.allclose(result.first.image, backend.decode(latent.float()).clamp(0, 1), atol=1e-5)


def test_auto_is_the_sampler_that_suits_the_method_and_the_start():
    def auto(**changes):
        return make_sampler(resolve(changes, model="tiny")).name

    assert auto() == "bdia" and auto(start="image") == "o-belm"
    assert auto(method="none") == "ddim" and auto(method="none", start="image") == "o-belm"
    assert auto(method="none", sampler="bdia") == "bdia" and auto(method="doodl") == "edict"


@pytest.mark.parametrize("how", [Stop, KeyboardInterrupt])
def test_stopping_keeps_the_best_so_far(backend, critics, how):
    def stop(result, newest):
        if newest.iteration == 1:
            raise how

    result = generate(backend, critics, asked(), small(iterations=5), Hear(image=stop))
    assert len(result.scores) == 2 and result.best.score == max(result.scores)
    assert result.ending is Ending.INTERRUPTED and "Interrupted" in result.ended and not result.failed


@pytest.mark.parametrize("how", [Stop, KeyboardInterrupt])
def test_stopping_before_the_first_image_gives_none(backend, critics, how):
    def stop(done, total):
        raise how

    with pytest.raises(how):
        generate(backend, critics, asked(), small(), Hear(step=stop))


def test_stopping_between_the_starts_keeps_the_best_of_those_tried(backend, critics):
    scripted = replace(critics, guide=Scripted([0.5, 0.9]), selector=Scripted([0.5, 0.6]))
    begun = []

    def stop(done, total):
        begun.extend([done] * (done == 1))
        if len(begun) == 3:
            raise Stop

    own = small(candidates=3, memory="low")  # one at a time
    result = generate(backend, scripted, asked(1), own, Hear(step=stop))
    assert result.ending is Ending.INTERRUPTED and result.losses == [] and result.iterations == 0
    assert result.best.score == 0.6 and result.first.score == 0.5 and result.best_update == TRIED


def test_nan_from_the_network_keeps_the_image_so_far(backend, critics, monkeypatch):
    calls = 0

    def network(prompt, negative_prompt, guidance_scale):
        whole = type(backend).network(backend, prompt, negative_prompt, guidance_scale)

        def breaking(x, t):
            nonlocal calls
            calls += 1
            return whole.branches[0].function(x, t) * (float("nan") if calls > 6 else 1)

        return Network([Branch(1.0, breaking, evals=2)], backend.alphas_cumprod)

    monkeypatch.setattr(backend, "network", network)
    result = generate(backend, critics, asked(), small())
    assert result.failed and "NaN" in result.ended and torch.isfinite(result.best.image).all()
    with pytest.raises(SgoolError, match="NaN"):
        generate(backend, critics, asked(), small())


class Unsteady:
    """A backend whose network never predicts the same twice, as some attention kernels do not."""

    def __init__(self, backend, spread):
        self.backend, self.spread = backend, spread
        self.generator = torch.Generator().manual_seed(0)

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def network(self, *args):
        (branch,) = self.backend.network(*args).branches

        def function(x, t):
            noise = torch.randn(x.shape, generator=self.generator)
            return branch.function(x, t) + self.spread * noise

        return Network([Branch(1.0, function, branch.evals)], self.backend.alphas_cumprod)


def test_a_network_that_does_not_repeat_itself_is_optimized_with_stored_latents(backend, critics):
    own = small(steps=8)
    result = generate(Unsteady(backend, 1e-3), critics, asked(1), own)
    assert "does not repeat" in result.ended and not result.failed and len(result.scores) == 3
    assert result.ending is Ending.DONE and result.stored_latents and result.sampler == "ddim"
    assert torch.isfinite(result.best.image).all()
    steady = generate(backend, critics, asked(1), own.changed(sampler="ddim"))
    assert (result.first.image - steady.first.image).abs().mean() < 0.02
    image = backend.encode(steady.first.image)
    carried = generate(Unsteady(backend, 1e-3), critics, asked(latent=image), own.changed(start="image"))
    assert carried.failed and "does not repeat" in carried.ended  # DDIM could not carry it back exactly
    assert carried.ending is Ending.FAILED and not carried.stored_latents


@pytest.mark.parametrize("how", [KeyboardInterrupt, SgoolError])
def test_what_fails_in_the_second_attempt_leaves_the_first_ones_images(backend, critics, how):
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
    result = generate(unsteady, critics, asked(1), small(steps=8), Hear(on_image, on_step))
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


def test_no_memory_left_on_the_cpu_ends_the_run_with_the_best_image_so_far(backend, critics):
    def full(latent):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    result = generate(Failing(backend, 3, full), critics, asked(1), small())
    assert result.failed and "can't allocate memory" in result.ended and len(result.scores) == 2

    def broken(latent):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        generate(Failing(backend, 3, broken), critics, asked(1), small())


def test_patience_stops_a_run_that_does_not_improve(backend, critics):
    result = generate(backend, critics, asked(), small(iterations=6, learning_rate=0.0, patience=2, cutouts=0))
    assert len(result.scores) == 3 and result.ending is Ending.PATIENCE and "Stopped early" in result.ended
    scripted = replace(critics, selector=Scripted([0.5, 0.9, 0.89, 0.88, 0.87]))
    result = generate(backend, scripted, asked(), small(iterations=6, patience=2))
    assert len(result.scores) == 4 and result.best.iteration == 1
    assert "no better image in 2 iterations" in result.ended


def test_patience_counts_the_iterations_of_a_run_whose_best_image_is_a_start_only_tried(backend, critics):
    scripted = replace(
        critics, guide=Scripted([0.1, 0.9], critics.guide), selector=Scripted([0.9, 0.5, 0.5, 0.4, 0.4, 0.4])
    )
    result = generate(backend, scripted, asked(), small(iterations=6, patience=2, candidates=2))
    assert len(result.scores) == 3 and result.best_update == TRIED
    assert "no better image in 2 iterations" in result.ended


@pytest.mark.parametrize(
    ("changes", "latent", "sentence"),
    [
        ({"start": "image"}, None, "go together"),
        ({}, torch.zeros(1, 4, 16, 16), "go together"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_anything_is_computed(changes, latent, sentence):
    with pytest.raises(SgoolError, match=sentence):
        generate(None, None, asked(latent=latent), small(**changes))


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (Request(" <lora:x:1> ,"), "prompt is empty"),
        (Request("a caf\udce9"), "not text"),
        (Request("a car", "\udce9"), "not text"),
        (Request("a car", seed=-1), "seed must lie"),
        (Request("a car", seed=2**63), "seed must lie"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(wish, sentence):
    with pytest.raises(SgoolError, match=sentence):
        generate(None, None, wish, small())


def test_memory_does_not_grow_with_the_steps(backend, critics):
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
            generate(backend, critics, asked(), small(steps=steps, iterations=1))
        return highest

    assert peak(12) <= 1.01 * peak(3)


def test_doodl_is_perturbed_by_other_noise_than_it_starts_from(backend, critics, monkeypatch):
    given = []

    class Watched(DoodlUpdate):
        def __init__(self, **options):
            given.append(options["generator"].get_state())
            super().__init__(**options)

    monkeypatch.setattr("sgool.generate.DoodlUpdate", Watched)
    generate(backend, critics, asked(3), small(method="doodl", sampler="edict", iterations=0))
    generator, start = torch.Generator(), backend.noise(3)
    generator.set_state(given[0])
    first = torch.randn(start.shape, generator=generator, dtype=torch.float64)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), start.flatten()]))[0, 1]) < 0.1


def test_doodl_runs_on_edict_with_its_own_loss(backend, critics):
    own = small(method="doodl", sampler="edict", iterations=1)
    result = generate(backend, critics, asked(), own)
    assert result.unet_evals == 2 * 2 * 4 * (2 + 1) and len(result.losses) == 2
