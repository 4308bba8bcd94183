"""Where the user's sampler takes few steps, SGOOL samples as the user does, and its first image is the user's own."""

from __future__ import annotations

import pytest
import random_models
from hosts import AUTOMATIC1111, HOST, REFORGE, only_in
from payloads import BASE, HIRES, SGOOL, difference, make, outcome

FEW = {**SGOOL, "iterations": 1, "cutouts": 1}
SAMPLERS = ("LCM", "Euler", "Euler a", "DDIM")
SCHEDULES = (
    "Automatic",
    "Uniform",
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "DDIM",
    "Beta",
)
FEW_STEP_MODEL = {
    "override_settings": {"sd_model_checkpoint": "sgool-tiny-lcm.safetensors"},
    "override_settings_restore_afterwards": False,
}


@pytest.fixture
def lcm_model(server):
    yield
    server.options(sd_model_checkpoint="sgool-tiny.safetensors")


@pytest.fixture
def options(server):
    """Sets options of the WebUI until the test ends."""
    before = server.get("/sdapi/v1/options")

    def set_(**values):
        server.needs(*values)
        server.options(**values)

    yield set_
    after = server.get("/sdapi/v1/options")
    server.options(**{name: value for name, value in before.items() if after.get(name) != value})


def followed(server, payload, sgool=FEW):
    """The distances of the runs' first latents from the WebUI's own, once all have been sampled as the user does."""
    server.needs(sampler=payload["sampler_name"], schedule=payload.get("scheduler", ""))
    answer = make(server, payload, sgool)
    for index in range(len(answer)):
        assert not outcome(answer, index).note
        assert f'SGOOL sampled with: "your own {payload["sampler_name"]}, ' in answer.texts[index]
        assert "SGOOL Sampler:" not in answer.texts[index] and "score resampled" not in answer.texts[index]
    runs = server.get("/sgool-probe/last")
    assert all(run["losses"][1] != run["losses"][0] for run in runs)
    return [run["first"] for run in runs]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS[:3])
def test_every_schedule_type(server, sampler, schedule):
    (distance,) = followed(server, {**BASE, "sampler_name": sampler, "scheduler": schedule})
    assert distance < 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 4, 8, 12])
@only_in(AUTOMATIC1111, "the embedded model for few steps loads there alone")
def test_the_few_step_model(server, lcm_model, sampler, steps):
    if (sampler, steps) == ("DDIM", 1):
        pytest.skip("the WebUI's DDIM makes no image in one step")
    payload = {**BASE, **FEW_STEP_MODEL, "sampler_name": sampler, "steps": steps, "cfg_scale": 1.0, "batch_size": 2}
    distances = followed(server, {**payload, "scheduler": "SGM Uniform"}, {**FEW, "sampler": "auto"})
    assert len(distances) == 2 and max(distances) < 1e-4


@pytest.mark.parametrize("sampler", ["LCM", "Euler a"])
def test_a_batch_has_noises_of_its_own(server, sampler):
    assert max(followed(server, {**BASE, "sampler_name": sampler, "batch_size": 2, "n_iter": 2})) < 1e-4


@pytest.mark.parametrize(
    ("sampler", "set_options"),
    [
        ("Euler a", {"eta_noise_seed_delta": 31337, "eta_ancestral": 0.6}),
        ("Euler", {"always_discard_next_to_last_sigma": True}),
        ("DDIM", {"always_discard_next_to_last_sigma": True}),
        ("LCM", {"sgm_noise_multiplier": True}),
        ("Euler", {"enable_quantization": True}),
        ("Euler", {"sd_noise_schedule": "Zero Terminal SNR"}),
        ("LCM", {"randn_source": "NV"}),
    ],
)
def test_options_of_the_webui(server, options, sampler, set_options):
    options(**set_options)
    assert max(followed(server, {**BASE, "sampler_name": sampler, "scheduler": "Karras"})) < 1e-4


@pytest.mark.parametrize(("sampler", "set_options"), [("Euler", {"s_churn": 10.0}), ("DDIM", {"eta_ddim": 0.5})])
def test_what_cannot_be_followed(server, options, sampler, set_options):
    options(**set_options)
    answer = make(server, {**BASE, "sampler_name": sampler}, FEW)
    assert 'SGOOL sampled with: "its own bdia, 4 steps"' in answer.texts[0] and not outcome(answer).note
    assert f"it cannot sample as your {sampler} does" in server.output()


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DDIM"])
@only_in(AUTOMATIC1111, "it builds no small Stable Diffusion 2")
def test_a_model_that_predicts_v(server, lcm_model, sampler):
    """Between the timesteps too: Karras' levels lie there."""
    name = random_models.write(server, "random-sd2", random_models.sd2())
    payload = {**BASE, "sampler_name": sampler, "scheduler": "Karras"}
    override = {"sd_model_checkpoint": name}
    payload |= {"override_settings": override, "override_settings_restore_afterwards": False}
    assert max(followed(server, payload)) < 1e-4


def test_prompt_schedules_and_hires_fix(server):
    prompt = "a [car:small frog:0.5] AND a red background"
    payload = {**HIRES, "sampler_name": "Euler", "prompt": prompt}
    assert max(followed(server, payload)) < 1e-4


THRESHOLDING = [7.0, 0.95, "Constant", 0.0, "Constant", 0.0, 1.0, "enable", "ZERO", "STD", 1.0]
GUIDANCE = {
    "PerturbedAttentionGuidance Integrated": [True, 3.0, 0.0, 0.5, 1.0],  # in the second half of the steps
    # In reForge the second box is its simple mode.
    "DynamicThresholding (CFG-Fix) Integrated": [*([True, False] if HOST is REFORGE else [True]), *THRESHOLDING],
}
"""Extensions that some forks have built in, and their arguments."""


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("script", GUIDANCE)
def test_what_an_extension_makes_of_guidance(server, script, memory):
    server.needs(script=script)
    payload = {**BASE, "sampler_name": "Euler", "alwayson_scripts": {script: {"args": GUIDANCE[script]}}}
    assert difference(make(server, payload).image(), make(server, {**payload, "alwayson_scripts": {}}).image()).any()
    assert max(followed(server, payload, {**FEW, "memory": memory})) < 1e-4
