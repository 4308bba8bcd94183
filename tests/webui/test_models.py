"""Models other than the tiny one: Stable Diffusion 2.x, one for inpainting, SDXL, and switching between them."""

from __future__ import annotations

import pytest
import random_models
from hosts import AUTOMATIC1111, only_in
from payloads import BASE, HIRES, IMG2IMG, INPAINT, SGOOL, difference, make, outcome, plot
from test_places import ZOOM, kept, only_the_places_differ

pytestmark = only_in(AUTOMATIC1111, "it builds no small Stable Diffusion 2 or SDXL")

SAME_STEPS = {**SGOOL, "iterations": 1, "steps": BASE["steps"], "sampler": "ddim"}
"""From the seed's noise, the reference sampler takes exactly the steps of the WebUI's DDIM."""


@pytest.fixture(scope="module")
def models(server):
    """The names of the checkpoints by kind. Afterwards the tiny model is loaded again."""
    tokenizer = server.home / "models" / "Stable-diffusion" / "sgool-tiny" / "tokenizer"
    yield {
        "tiny": "sgool-tiny.safetensors",
        "sd2": random_models.write(server, "random-sd2", random_models.sd2()),
        "inpainting": random_models.write(server, "random-inpainting", random_models.inpainting()),
        "sdxl": random_models.write(server, "random-sdxl", random_models.sdxl(tokenizer)),
    }
    server.options(sd_model_checkpoint="sgool-tiny.safetensors")


def with_model(payload, name):
    settings = {"sd_model_checkpoint": name}
    return {**payload, "override_settings": settings, "override_settings_restore_afterwards": False}


def payloads_of(kind):
    upscaler = "Lanczos" if kind == "inpainting" else "Latent"  # the WebUI's own latent upscaling fails on such a model
    hires = {**HIRES, "hr_upscaler": upscaler}
    return {"image": BASE, "hires": hires, "img2img": IMG2IMG, "inpainting": INPAINT}


@pytest.fixture(params=["tiny", "sd2", "inpainting", "sdxl"])
def base(request, models):
    return with_model(BASE, models[request.param])


def last(server):
    (run,) = server.get("/sgool-probe/last")
    return run


def test_our_first_image_is_the_webuis(server, base):
    """Guidance, prediction and schedule therefore mean the same as in the WebUI."""
    make(server, base, SAME_STEPS)
    run = last(server)
    assert run["first"] < 0.03  # the WebUI's DDIM leaves out the last step, which is tiny
    assert run["losses"][1] != run["losses"][0]


def test_at_cfg_scale_1_our_first_image_is_the_webuis_without_the_negative_prompt(server, base):
    """The WebUI evaluates it all the same, with no weight."""
    make(server, {**base, "cfg_scale": 1.0, "negative_prompt": "snow"}, SAME_STEPS)
    run = last(server)
    assert run["first"] < 0.03
    assert run["losses"][1] != run["losses"][0]


def test_the_gradient_goes_back_through_the_prompt_alone(server, base):
    """The first image is the same, and it is changed by another update."""
    losses = []
    for way in ("full", "prompt"):
        assert not outcome(make(server, base, {**SAME_STEPS, "way_back": way})).note
        losses.append(last(server)["losses"])
    assert losses[1][0] == pytest.approx(losses[0][0], abs=1e-4) and losses[1][1] != losses[0][1]


def test_memory_settings_change_only_the_memory(server, base):
    """The loss after an update is the same, so the gradient is the same too."""
    make(server, base)
    before = server.get("/sgool-probe/state")
    losses = []
    for memory in ("fast", "balanced", "low"):
        assert not outcome(make(server, base, {**SAME_STEPS, "memory": memory})).note
        losses.append(last(server)["losses"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[2] == pytest.approx(losses[0], abs=1e-4)
    after = server.get("/sgool-probe/state")
    assert {**after, "rng": ""} == {**before, "rng": ""}


@pytest.mark.parametrize("kind", ["sd2", "inpainting", "sdxl"])
@pytest.mark.parametrize("way", ["image", "hires", "img2img", "inpainting"])
def test_every_way_to_make_a_picture(server, models, kind, way):
    sgool = {**SGOOL, "iterations": 1, "start": "image"}
    answer = make(server, with_model(payloads_of(kind)[way], models[kind]), sgool)
    found = outcome(answer)
    assert not found.note
    assert found.iterations == 1
    run = last(server)
    assert run["scores"][0] == pytest.approx(run["before"], abs=1e-3)


@pytest.mark.parametrize("kind", ["sd2", "inpainting", "sdxl"])
@pytest.mark.parametrize("way", ["image", "hires", "img2img", "inpainting"])
def test_zoom_on_every_way_to_make_a_picture(server, models, kind, way):
    payload = with_model(payloads_of(kind)[way], models[kind])
    make(server, payload)  # img2img's encoder draws from numbers that the image before it has left, without SGOOL too
    plain = make(server, payload)
    answer = make(server, payload, {**ZOOM, "zoom_largest": 1.0})
    count, all_ = kept(answer)
    assert count == all_ > 0 and not outcome(answer).note
    if way == "inpainting":
        differs = difference(answer.image(), plain.image()) > 0
        assert differs.any() and not differs[:, :64].any()
    else:
        assert only_the_places_differ(server, answer, plain)
    assert make(server, payload).encoded == plain.encoded


@pytest.mark.parametrize("kind", ["sd2", "inpainting", "sdxl"])
def test_updates_inside_a_place(server, models, kind):
    """Whether one of them is better than the place as it was painted is up to the random weights."""
    payload = with_model(BASE, models[kind])
    own = {**ZOOM, "zoom_places": 1, "zoom_largest": 1.0, "steps": 4, "cutouts": 2, "learning_rate": 0.3, "warmup": 0}
    plain = make(server, payload)
    server.get("/sgool-probe/calls")
    painted = make(server, payload, own)
    few = len(server.get("/sgool-probe/calls"))
    before = server.get("/sgool-probe/state")
    answer = make(server, payload, {**own, "zoom_iterations": 3})
    assert kept(answer) == kept(painted) == (1, 1) and not outcome(answer).note
    assert len(server.get("/sgool-probe/calls")) >= few + 3 * 2 * 3  # of 4 steps, 0.8 are improved
    assert only_the_places_differ(server, answer, plain)
    assert {**server.get("/sgool-probe/state"), "rng": ""} == {**before, "rng": ""}
    assert make(server, payload).encoded == plain.encoded


def test_models_switched_between_generations(server, models):
    """Each model gives the same as before, with and without SGOOL."""
    first = {}
    for kind in ("tiny", "sdxl", "sd2", "sdxl", "tiny", "sd2"):
        base = with_model(BASE, models[kind])
        texts, plain = make(server, base, SGOOL).texts, make(server, base)
        assert first.setdefault(kind, (texts, plain.encoded)) == (texts, plain.encoded)


def test_models_switched_between_the_images_of_a_plot(server, models):
    names = [models[kind] for kind in ("sd2", "tiny", "sdxl")]
    answer = make(server, plot(server, ("Checkpoint name", names)), SGOOL)
    done = [outcome(answer, index) for index in range(len(answer))]
    assert [each.iterations for each in done].count(SGOOL["iterations"]) >= len(names)
    assert not any(each.note for each in done)
    assert len({each.before for each in done if each.iterations > 0}) == len(names)
