"""What a request and its settings ask for reaches the run, on the real embedded model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sgool import tiny
from sgool.checkpointing import MEMORY
from sgool.generate import CANDIDATE_STRIDE, NOISE_STRIDE, Request, generate, load_critics, make_trajectory, make_update
from sgool.guidance.clip import load_clip_folder
from sgool.guidance.critic import Critic, spherical_distance
from sgool.guidance.loss import crop
from sgool.needs import Needs, needs
from sgool.presets import resolve
from sgool.result import Ending, Progress
from sgool.saliency import LoadedDetector
from sgool.samplers import get_sampler
from sgool.settings import SettingError

PROMPT = "a small penguin and a pizza on a green background"


def small(**changes):
    """Settings of a very short run, and over them these."""
    few = {"steps": 3, "strength": 1.0, "iterations": 2, "cutouts": 2, "patience": 0}
    return resolve({**few, **changes}, model="tiny")


class Hear(Progress):
    """Keeps every image of a run."""

    def __init__(self):
        self.images = []

    def image(self, result, newest):
        self.images.append(newest)


def images(backend, critics, request, settings):
    """All images of a run, in turn."""
    heard = Hear()
    generate(backend, critics, request, settings, heard)
    return heard.images


def picture(backend, seed=5):
    """The latent of some picture."""
    return backend.decode(backend.noise(seed)).clamp(0, 1).detach()


class Backend:
    """A backend but for what is given."""

    def __init__(self, backend, **own):
        self.__dict__.update(own, backend=backend)

    def __getattr__(self, name):
        return getattr(self.backend, name)


def test_a_negative_prompt_that_is_the_prompt_itself_takes_the_guidance_away(backend, critics):
    """Both halves of the guidance are then the same, whatever its scale."""
    own = small(method="none", sampler="ddim")
    guided, against = (generate(backend, critics, Request(PROMPT, negative), own) for negative in ("", PROMPT))
    unguided = generate(backend, critics, Request(PROMPT), own.changed(guidance_scale=1.0))
    assert torch.allclose(against.first.latent, unguided.first.latent, atol=1e-4)
    assert not torch.allclose(guided.first.latent, unguided.first.latent, atol=0.1)


class Watched(LoadedDetector):
    """The spectral detector, which remembers the images that it was given."""

    def __init__(self, detector):
        super().__init__(detector.saliency_map, detector.device)
        self.seen = []

    def __call__(self, image):
        self.seen.append(image)
        return super().__call__(image)


def test_regions_are_looked_for_every_few_images_and_kept_in_between(backend, critics):
    """But not at the last image, whose loss nothing follows from."""
    detector = Watched(critics.detector)
    made = images(backend, replace(critics, detector=detector), Request(PROMPT), small(refresh=2, iterations=6))
    looked = [
        number for number, each in enumerate(made) if any(torch.equal(each.image, seen) for seen in detector.seen)
    ]
    assert looked == [0, 2, 4] and len(detector.seen) == 3
    for number, each in enumerate(made):
        latest = min(number // 2 * 2, 4)
        assert torch.equal(each.saliency, critics.detector(made[latest].image))
        assert each.regions == made[latest].regions
    assert made[0].regions != made[2].regions


def test_guide_and_selector_each_have_their_own_weights(backend):
    """The loss is the guide's, the score is the selector's."""
    own = load_critics(needs(small()), Path("unused"))
    guide, selector = (load_clip_folder(tiny.CLIPS[role]) for role in ("guide", "selector"))
    result = generate(backend, own, Request(PROMPT), small(iterations=0, cutouts=0, saliency_weight=0.0))
    image = result.first.image
    distance = spherical_distance(guide.encode_image(image), guide.encode_text(PROMPT))
    assert result.losses == pytest.approx([distance.item()], abs=1e-5)
    assert result.first.score == pytest.approx(selector.judge(image, PROMPT), abs=1e-5)
    assert result.first.score != pytest.approx(guide.judge(image, PROMPT), abs=1e-3)


def test_each_network_is_loaded_for_its_role_onto_the_device(tmp_path):
    own = load_critics(Needs("embedded", "embedded", "spectral"), tmp_path, "meta")
    assert {each.device.type for each in (own.guide, own.selector, own.detector)} == {"meta"}


def test_critics_loaded_under_inference_mode_can_still_guide(backend):
    with torch.inference_mode():
        own = load_critics(Needs("embedded", "embedded", "spectral"), Path("unused"))
    assert len(generate(backend, own, Request(PROMPT), small(iterations=1)).losses) == 2


def test_the_cutouts_come_from_the_seed(backend, critics):
    """From an image nothing else depends on it."""
    own = small(start="image", iterations=1, learning_rate=0.0, saliency_weight=0.0)
    latent = backend.encode(picture(backend))

    def losses(seed):
        return generate(backend, critics, Request(PROMPT, seed=seed, init_latent=latent), own).losses

    one, again, other = losses(1), losses(1), losses(2)
    assert one == again and one[0] != pytest.approx(other[0], abs=1e-5)
    assert one[0] != pytest.approx(one[1], abs=1e-5)  # each image has new ones


def test_the_saliency_weight_divides_the_loss_between_the_image_and_its_regions(backend, critics):
    def loss(weight):
        own = small(iterations=0, cutouts=0, saliency_weight=weight)
        return generate(backend, critics, Request(PROMPT), own).losses[0]

    assert abs(loss(0.0) - loss(1.0)) > 0.01
    assert loss(0.25) == pytest.approx(0.75 * loss(0.0) + 0.25 * loss(1.0), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"region_prompt": "a red car"}, "a red car"),
        ({"region_match": "prompt"}, PROMPT),
        ({"region_match": "phrases"}, None),
    ],
)
def test_regions_are_compared_with_what_the_settings_say(backend, critics, changes, wanted):
    own = small(iterations=0, cutouts=0, saliency_weight=1.0, max_regions=1, **changes)
    result = generate(backend, critics, Request(PROMPT), own)
    (region,) = result.first.regions
    features = critics.guide.encode_image(crop(result.first.image, region))
    texts = [wanted] if wanted else ["a small penguin", "a pizza on a green background"]
    distances = [critics.guide.distance(features, [text]).item() for text in texts]
    assert result.losses == pytest.approx([min(distances)], abs=1e-5)


def test_the_update_follows_the_rule_of_the_settings(backend):
    """A pixel with a hundredth of the gradient moves a hundredth as far; Adam moves it as far as any other."""
    state = [backend.noise(1)]
    gradient = torch.ones_like(state[0])
    gradient[..., ::2, :] = 0.01

    def moved(rule):
        own = small(rule=rule, warmup=0, learning_rate=1e-4, regularization=0.0)
        update = make_update(make_trajectory(backend, Request(PROMPT), own), Request(PROMPT), own)
        change = (update.step(state, [gradient])[0] - state[0]).abs()
        return (change[..., ::2, :].median() / change[..., 1::2, :].median()).item()

    assert moved("momentum") < 0.1 and moved("adam") == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("change", [{"rule": "adam"}, {"learning_rate": 0.2}, {"warmup": 0}], ids=str)
def test_each_setting_of_the_update_changes_the_next_images(backend, critics, change):
    own = small(cutouts=0, learning_rate=0.1, warmup=2)
    base, other = (images(backend, critics, Request(PROMPT), each) for each in (own, own.changed(**change)))
    assert torch.equal(base[0].latent, other[0].latent)
    assert (base[2].latent - other[2].latent).abs().max() > 1e-3


@pytest.mark.parametrize(
    "change", [{"threshold": 0.9}, {"max_regions": 1}, {"min_size": 0.9}, {"padding": 0.9}], ids=str
)
def test_each_setting_of_the_regions_changes_what_is_found(backend, critics, change):
    own = small(iterations=0, max_regions=4, min_size=0.1, threshold=0.1, padding=0.0)
    base, other = (generate(backend, critics, Request(PROMPT), each) for each in (own, own.changed(**change)))
    assert torch.equal(base.first.saliency, other.first.saliency) and base.first.regions != other.first.regions


@pytest.mark.parametrize(
    ("changes", "image"),
    [({"start": "image"}, True), ({"start": "image", "strength": 0.7}, True), ({"strength": 0.7}, False)],
    ids=["image", "image partway", "seed partway"],
)
def test_only_a_seeds_own_noise_is_drawn_to_white_noise(backend, critics, changes, image):
    """Without any learning an update is a pull to the prior alone: a state that is its own prior stays where it is."""
    own = small(learning_rate=0.0, cutouts=0, iterations=1, **changes)
    latent = backend.encode(picture(backend)) if image else None
    first, second = images(backend, critics, Request(PROMPT, init_latent=latent), own)
    assert (second.latent - first.latent).abs().max() < 1e-6


def test_a_seeds_noise_is_drawn_to_white_noise(backend, critics):
    shifted = Backend(backend, noise=lambda seed: backend.noise(seed) + 0.5)
    own = small(learning_rate=0.0, cutouts=0, iterations=1)
    first, second = images(shifted, critics, Request(PROMPT), own)
    assert (second.latent - first.latent).abs().max() > 0.1
    first, second = images(shifted, critics, Request(PROMPT), own.changed(regularization=0.0))
    assert (second.latent - first.latent).abs().max() < 1e-6


def test_doodl_keeps_the_norm_of_noise_but_not_of_an_image(backend, critics):
    own = small(method="doodl", sampler="edict")
    state = [backend.noise(1)] * 2
    outward = [-1e6 * each for each in state]

    def grown(own, latent):
        request = Request(PROMPT, init_latent=latent)
        after = make_update(make_trajectory(backend, request, own), request, own).step(state, outward)
        return (after[0].norm() / state[0].norm()).item() - 1

    assert abs(grown(own, None)) < 1e-9
    assert grown(own.changed(start="image"), backend.noise(1)) > 1e-4


def test_doodls_loss_takes_neither_regions_nor_the_image_itself(backend, critics):
    """Sixteen cutouts, the closest of which counts."""

    class Counted(Critic):
        image_size = critics.guide.image_size

        def __init__(self):
            self.seen = []

        def to(self, device, half=None):
            return self

        def encode_image(self, images):
            self.seen.append(images)
            return critics.guide.encode_image(images)

        def rate(self, features, texts):
            return critics.guide.rate(features, texts)

        def distance(self, features, texts):
            return critics.guide.distance(features, texts)

    guide = Counted()
    own = small(method="doodl", sampler="edict", iterations=0, cutouts=2)
    result = generate(backend, replace(critics, guide=guide), Request(PROMPT), own)
    (views,) = guide.seen
    assert len(views) == 16
    nearest = critics.guide.distance(critics.guide.encode_image(views), [PROMPT] * 16).min()
    assert result.losses == pytest.approx([nearest.item()], abs=1e-6)


@pytest.mark.parametrize("seed", [7, 2**63 - 1])
def test_candidates_are_noises_of_other_seeds(backend, critics, seed):
    asked = []
    recording = Backend(backend, noise=lambda seed: asked.append(seed) or backend.noise(seed % 1000))
    generate(recording, critics, Request(PROMPT, seed=seed), small(iterations=0, candidates=3))
    assert asked == [(seed + CANDIDATE_STRIDE * number) % 2**63 for number in range(3)]


@pytest.mark.parametrize(
    ("changes", "name", "gamma"),
    [
        ({}, "bdia", None),
        ({"start": "image"}, "o-belm", None),
        ({"sampler": "edict", "start": "image"}, "edict", None),
        ({"sampler": "bdia", "start": "image"}, "bdia", 1.0),
    ],
)
def test_the_sampler_suits_the_start_unless_it_is_named(backend, critics, changes, name, gamma):
    own = small(**changes)
    trajectory = make_trajectory(backend, Request(PROMPT), own)
    assert trajectory.sampler.name == name
    plain = get_sampler(name).operations(trajectory.schedule, 0)
    assert (trajectory.sampler.operations(trajectory.schedule, 0) == plain) == (gamma is None)
    assert len(plain) > 0 and trajectory.schedule.steps == 3


@pytest.mark.parametrize("image", [False, True])
def test_progress_hears_every_operation_of_every_pass(backend, critics, image):
    """Also those that carry an image back to its noise, and those before the part that is optimized."""
    heard = []

    class Steps(Progress):
        def step(self, done, total):
            heard.append((done, total))

    start = {"start": "image"} if image else {}
    request = Request(PROMPT, init_latent=backend.encode(picture(backend)) if image else None)
    own = small(steps=6, strength=0.5, iterations=1, candidates=1 if image else 2, **start)
    generate(backend, critics, request, own, Steps())
    to_the_middle, on = [(1, 6), (2, 6), (3, 6)], [(1, 3), (2, 3), (3, 3)]
    # From the image: there, on, back and on. From two seeds: to the middle together, on for each, then back and on.
    assert heard == ([(1, 2), (2, 2)] * 4 if image else to_the_middle + 2 * on + 2 * on)


class Rows:
    """Counts the calls of a UNet, and the latents in them."""

    def __init__(self, unet, monkeypatch):
        self.calls = self.rows = 0
        forward = unet.forward

        def counted(x, *args, **kwargs):
            self.calls += 1
            self.rows += len(x)
            return forward(x, *args, **kwargs)

        monkeypatch.setattr(unet, "forward", counted)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 3), ("bdia", 3), ("lcm", 2), ("euler-a", 1)])
def test_at_guidance_scale_1_the_negative_prompt_is_not_evaluated(
    backend, critics, monkeypatch, sampler, steps, memory
):
    own = small(sampler=sampler, steps=steps, guidance_scale=1.0, iterations=2, memory=memory)
    monkeypatch.setattr(backend, "memory", MEMORY[memory])
    seen = Rows(backend.unet, monkeypatch)
    result = generate(backend, critics, Request(PROMPT, "a whale"), own)
    assert seen.calls == seen.rows == result.unet_evals == 5 * steps  # three images, and two ways back
    assert result.forward_equivalents == 7 * steps and len(result.losses) == 3


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("sampler", ["bdia", "ddim", "euler", "tcd"])
def test_the_way_back_through_the_prompt_costs_a_third_less(backend, critics, monkeypatch, sampler, memory):
    """At T steps an image costs 2T, and an update 6T; 4T without the negative half on the way back."""
    monkeypatch.setattr(backend, "memory", MEMORY[memory])

    def cost(**changes):
        with monkeypatch.context() as patch:
            seen = Rows(backend.unet, patch)
            own = small(sampler=sampler, steps=4, memory=memory, **changes)
            result = generate(backend, critics, Request(PROMPT), own)
        assert seen.rows == result.unet_evals
        return result

    once, full, prompt = cost(iterations=0), cost(iterations=1, way_back="full"), cost(iterations=1)
    assert once.forward_equivalents == 2 * 4
    assert full.forward_equivalents - once.forward_equivalents == 6 * 4
    assert prompt.forward_equivalents - once.forward_equivalents == 4 * 4
    assert prompt.unet_gradients == 4 and full.losses[0] == pytest.approx(prompt.losses[0], abs=1e-4)
    assert abs(full.losses[1] - prompt.losses[1]) > 1e-6


@pytest.mark.parametrize("sampler", ["ddim-trailing", "euler", "euler-a", "lcm", "tcd"])
def test_samplers_of_few_steps_make_the_same_image_of_the_same_seed(backend, critics, sampler):
    own = small(sampler=sampler, steps=3, guidance_scale=1.0, iterations=1)
    one, again, other = (generate(backend, critics, Request(PROMPT, seed=seed), own) for seed in (1, 1, 2))
    assert one.ending is Ending.DONE and one.sampler == sampler and not one.failed
    assert one.scores == again.scores and torch.equal(one.best.image, again.best.image)
    assert one.scores[0] != other.scores[0]


@pytest.mark.parametrize("sampler", ["euler-a", "lcm", "tcd"])
def test_the_noises_between_the_steps_are_the_runs_seeds(backend, sampler):
    """None of them is the starting noise of a candidate."""
    asked = []
    recording = Backend(backend, noise=lambda seed: asked.append(seed) or backend.noise(seed))
    make_trajectory(recording, Request(PROMPT, seed=5), small(sampler=sampler, steps=4))
    assert asked == [5 + NOISE_STRIDE * number for number in (1, 2, 3)]
    assert not {5 + CANDIDATE_STRIDE * number for number in range(1000)} & set(asked)


@pytest.mark.parametrize("sampler", ["euler-a", "lcm", "tcd"])
def test_an_image_cannot_be_carried_back_by_a_sampler_that_draws_noise(backend, critics, sampler):
    own = small(sampler=sampler, start="image")
    with pytest.raises(SettingError, match=f"^sampler {sampler} draws noise .* with o-belm or ddim.$"):
        generate(backend, critics, Request(PROMPT, init_latent=backend.noise(1)), own)
