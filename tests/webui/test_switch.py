"""Forge, Forge Neo and reForge: other models between two runs, and other ways to keep the weights."""

from __future__ import annotations

import pytest
import random_checkpoint
from hosts import AUTOMATIC1111, HOST, not_in
from payloads import BASE, IMG2IMG, INPAINT, SGOOL, differ, make, outcome
from test_gradient import measure, right

pytestmark = not_in(AUTOMATIC1111, "test_models.py switches there")

SAME_STEPS = {**SGOOL, "iterations": 1, "steps": BASE["steps"], "sampler": "ddim"}
"""From the seed's noise, the reference sampler takes exactly the steps of the WebUI's DDIM."""


@pytest.fixture(scope="module")
def models(server):
    """The names of three checkpoints. Afterwards the first one is loaded again."""
    first = server.home / "models" / "Stable-diffusion" / HOST.checkpoint
    second = random_checkpoint.vary(first, "sgool-second.safetensors", 1)
    inpainting = random_checkpoint.vary(first, "sgool-inpainting.safetensors", 2, channels=9)
    server.post("/sdapi/v1/refresh-checkpoints", {})
    yield {"first": first.name, "second": second.name, "inpainting": inpainting.name}
    server.options(sd_model_checkpoint=first.name)


def with_model(payload, name):
    settings = {"sd_model_checkpoint": name}
    return {**payload, "override_settings": settings, "override_settings_restore_afterwards": False}


def test_each_model_gives_the_same_as_before(server, models):
    first = {}
    for kind in ("first", "second", "first", "inpainting", "second"):
        base = with_model(BASE, models[kind])
        ticked, plain = make(server, base, SGOOL), make(server, base)
        assert not outcome(ticked).note and outcome(ticked).iterations == SGOOL["iterations"]
        assert first.setdefault(kind, (ticked.texts, plain.encoded)) == (ticked.texts, plain.encoded)
    assert len({encoded[0] for _, encoded in first.values()}) == 3


@pytest.mark.parametrize("payload", [BASE, IMG2IMG, INPAINT], ids=["image", "img2img", "inpainting"])
def test_a_model_for_inpainting(server, models, payload):
    payload = with_model(payload, models["inpainting"])
    answer = make(server, payload, {**SGOOL, "iterations": 1, "start": "image"})
    assert not outcome(answer).note and outcome(answer).iterations == 1
    (run,) = server.get("/sgool-probe/last")
    assert run["scores"][0] == pytest.approx(run["before"], abs=1e-3)
    right(measure(server, payload))


@pytest.fixture
def stored(server, models):
    """Has the weights of the second model stored in another way until the test ends."""
    server.needs("forge_unet_storage_dtype")

    def store(how):
        server.options(forge_unet_storage_dtype=how)
        server.options(sd_model_checkpoint=models["second"])  # a change of models makes it take effect

    server.options(sd_model_checkpoint=models["first"])
    yield store
    server.options(forge_unet_storage_dtype="Automatic")
    server.options(sd_model_checkpoint=models["first"])


def test_online_lora(server, lora, stored):
    """Weights that are merged with a LoRA at every evaluation."""
    stored("Automatic (fp16 LoRA)")
    payload = {**BASE, "prompt": f"a small frog <lora:{lora}:0.5>"}
    assert differ(make(server, payload), make(server, {**BASE, "prompt": "a small frog"}))
    assert not outcome(make(server, payload, SAME_STEPS)).note
    (run,) = server.get("/sgool-probe/last")
    assert run["first"] < 0.03
    right(measure(server, payload))


def test_weights_of_eight_bits(server, stored):
    """They are numbers with a point, which are cast for every evaluation."""
    stored("float8-e4m3fn")
    plain = make(server, BASE)
    ticked = make(server, BASE, SAME_STEPS)
    if outcome(ticked).note:
        assert not differ(ticked, plain)
        return
    (run,) = server.get("/sgool-probe/last")
    assert run["first"] < 0.03
    right(measure(server, BASE))
