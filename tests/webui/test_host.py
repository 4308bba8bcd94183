"""SGOOL together with everything that the WebUI can do to a picture."""

from __future__ import annotations

import json

import pytest
import random_checkpoint
import torch
from hosts import AUTOMATIC1111, HOST, NEO, only_in
from payloads import BASE, IMG2IMG, SGOOL, SIZE, differ, difference, make, outcome
from PIL import Image
from safetensors.torch import save_file
from webui_server import ON_GPU, encode

SAMPLERS = [
    "Euler a",
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 3M SDE",
    "Heun",
    "LMS",
    "DPM2 a",
    "UniPC",
    "PLMS",
    "LCM",
]

PROMPTS = {
    "AND": "a car on a red background AND a small frog :0.7",
    "schedule": "a [car:small frog:0.5] on a busy red background",
    "alternation": "a [car|frog] on a red background",
    "emphasis": "a (car:1.3) and a [small] frog on a (((busy))) red background",
    "BREAK": "a car BREAK on a red background",
}

ATTENTION = [
    "sdp - scaled dot product",
    "sdp-no-mem - scaled dot product without memory efficient attention",
    "sub-quadratic",
    "InvokeAI",
    "Doggettx",
    "V1 - original v1",
    "None",
]

equal_on_cpus = pytest.mark.skipif(ON_GPU, reason="on a GPU the pictures of two runs differ a little")

ONCE = {**SGOOL, "iterations": 1, "steps": 3, "cutouts": 1}
"""A run that does everything once."""


SAME_STEPS = {**ONCE, "steps": BASE["steps"], "sampler": "ddim"}
"""From the seed's noise, the reference sampler takes exactly the steps of the WebUI's DDIM."""


def ran(answer, index=0):
    """Whether the run was complete: all its iterations, and a score that is not worse."""
    found = outcome(answer, index)
    return found.iterations == ONCE["iterations"] and found.after >= found.before


def begins_with_the_first_pass(server, payload, **own):
    """Whether the run's first image is the WebUI's own. If so, the payload acts in the run as in the first pass."""
    assert ran(make(server, payload, {**SAME_STEPS, **own}))
    (run,) = server.get("/sgool-probe/last")
    return run["first"] < 0.03  # the WebUI's DDIM leaves out the last step, which is tiny


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_kind_of_sampler(server, name):
    """Ancestral and stochastic samplers, too."""
    server.needs(sampler=name)
    assert ran(make(server, {**BASE, "sampler_name": name}, ONCE))


@pytest.mark.parametrize("name", ["DDIM", "Euler a", "DPM++ SDE"])
def test_an_image_start_begins_with_the_webuis_image(server, name):
    """Whatever sampler made the image, its inversion is exact, so the first image of the run has the same score."""
    make(server, {**BASE, "sampler_name": name}, {**ONCE, "start": "image"})
    (run,) = server.get("/sgool-probe/last")
    assert run["scores"][0] == pytest.approx(run["before"], abs=1e-4)
    assert run["scores"][1] != run["scores"][0]


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_prompt_syntax(server, prompt, candidates):
    """Also where candidates are made together."""
    payload = {**BASE, "prompt": prompt, "negative_prompt": "a (dog:1.2), [blue:green:0.4]"}
    assert begins_with_the_first_pass(server, payload, candidates=candidates)


@pytest.fixture
def restored_options(server):
    before = server.get("/sdapi/v1/options")
    yield
    after = server.get("/sdapi/v1/options")
    changed = {name: value for name, value in before.items() if after.get(name) != value}
    server.options(**changed)
    if "fp8_storage" in changed:  # the WebUI does not restore the precision
        server.post("/sgool-probe/reload", {})


@only_in(AUTOMATIC1111, "it chooses its attention by itself")
@pytest.mark.parametrize("name", ATTENTION)
def test_every_attention_of_the_cpu(server, restored_options, name):
    server.options(cross_attention_optimization=name)
    used = server.get("/sgool-probe/state")["attention"]
    assert used in ("", "none", "None") if name == "None" else used == name.partition(" - ")[0]
    assert ran(make(server, BASE, ONCE))


@pytest.mark.parametrize(
    "options",
    [
        {"token_merging_ratio": 0.5},
        {"hypertile_enable_unet": True, "hypertile_max_depth_unet": 3, "hypertile_swap_size_unet": 2},
        {"CLIP_stop_at_last_layers": 2},
        {"s_min_uncond": 0.5},
        {"randn_source": "NV"},
        {"eta_noise_seed_delta": 31337},
        {"show_progress_type": "Approx cheap"},
        {"fp8_storage": "Enable"},  # on a CPU the network then computes in bfloat16, under autocast
        {"upcast_attn": True},
        {"use_downcasted_alpha_bar": True},
        {"sd_noise_schedule": "Zero Terminal SNR"},
        {"batch_cond_uncond": False},
        {"pad_cond_uncond": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_webui(server, restored_options, options):
    server.needs(*options)
    server.options(**options)
    if "token_merging_ratio" in options and HOST is not AUTOMATIC1111:
        # Which tokens are merged jumps, so no difference proves the gradient.
        answer = make(server, BASE, ONCE)
        assert "gradient" in outcome(answer).note and not differ(answer, make(server, BASE))
        return
    assert begins_with_the_first_pass(server, BASE)


@pytest.fixture(scope="module")
def fast(server):
    return make(server, BASE, {**ONCE, "memory": "fast"})


@equal_on_cpus
@pytest.mark.parametrize("memory", ["balanced", "low"])
def test_memory_settings_change_only_the_memory(server, fast, memory):
    answer = make(server, BASE, {**ONCE, "memory": memory})
    assert outcome(answer).after == pytest.approx(outcome(fast).after, abs=1e-3)
    assert difference(answer.image(), fast.image()).mean() < 1


@pytest.mark.parametrize(
    ("sampler", "start"),
    [("bdia", "seed"), ("ddim", "seed"), ("edict", "seed"), ("edict", "image"), ("o-belm", "image")],
)
def test_our_samplers(server, sampler, start):
    assert ran(make(server, BASE, {**ONCE, "sampler": sampler, "start": start}))


@pytest.mark.parametrize("size", [(SIZE * 2, SIZE), (SIZE, SIZE * 2)])
def test_other_sizes(server, size):
    width, height = size
    answer = make(server, {**BASE, "width": width, "height": height}, ONCE)
    assert ran(answer)
    assert answer.image().size == size


def test_lora_acts_as_in_the_first_pass(server, lora):
    payload = {**BASE, "prompt": f"{BASE['prompt']} <lora:{lora}:0.5>"}
    assert differ(make(server, payload), make(server, BASE))
    assert begins_with_the_first_pass(server, payload)


@pytest.fixture(scope="module")
def width(server):
    """The width of the model's text embeddings."""
    if HOST is not AUTOMATIC1111:
        return random_checkpoint.CONTEXT
    config = server.home / "models" / "Stable-diffusion" / "sgool-tiny" / "tokenizer" / "config.json"
    return json.loads(config.read_text())["hidden_size"]


@only_in(AUTOMATIC1111, "it has no hypernetworks")
def test_hypernetwork(server, width):
    (server.home / "models" / "hypernetworks").mkdir(exist_ok=True)
    layers = {"layer_structure": [1, 1], "weight_init": "KaimingNormal"}
    what = {"name": "random", "enable_sizes": [width], "overwrite_old": True, **layers}
    server.post("/sdapi/v1/create/hypernetwork", what)
    payload = {**BASE, "prompt": f"{BASE['prompt']} <hypernet:random:0.5>"}
    assert differ(make(server, payload), make(server, BASE))
    assert begins_with_the_first_pass(server, payload)


def test_textual_inversion(server, width):
    folder = server.home / HOST.embeddings
    folder.mkdir(exist_ok=True)
    save_file(
        {"emb_params": 0.02 * torch.randn(2, width, generator=torch.Generator().manual_seed(0))},
        folder / "sgoolish.safetensors",
    )
    server.post("/sdapi/v1/refresh-embeddings", {})
    assert "sgoolish" in server.get("/sdapi/v1/embeddings")["loaded"]
    assert begins_with_the_first_pass(server, {**BASE, "prompt": "a sgoolish frog on a red background"})


def test_prompts_for_the_regions(server):
    """The mask is the one region."""
    losses = []
    spot = Image.new("L", (SIZE, SIZE), 0)
    spot.paste(255, (SIZE // 8, SIZE // 8, SIZE * 3 // 8, SIZE * 3 // 8))
    looked = {**ONCE, "saliency": "mask", "look_at": encode(spot)}
    for region_prompt in ("", "a penguin [SEP] a strawberry"):
        answer = make(server, BASE, {**looked, "region_prompt": region_prompt})
        assert ran(answer)
        assert region_prompt in answer.texts[0]
        losses.append(server.get("/sgool-probe/last")[0]["losses"][0])
    assert losses[0] != losses[1]


@equal_on_cpus
def test_sd_upscale_takes_none_of_our_pictures_for_a_tile(server, restored_options):
    tiles = {"width": SIZE // 2, "height": SIZE // 2}
    own = [0, "None", 2.0, False] if HOST is NEO else ["", 0, "None", 2.0]
    payload = {**IMG2IMG, **tiles, "script_name": "SD upscale", "script_args": own}
    make(server, IMG2IMG, ONCE)  # the script's result depends a little on earlier images, with or without SGOOL
    without = make(server, payload, ONCE)
    server.options(sgool_return_before=True)
    try:
        assert len(make(server, IMG2IMG, ONCE)) == 2
        answer = make(server, payload, ONCE)
    finally:
        server.options(sgool_return_before=False)  # reForge's API does not tell of extensions' options
    assert len(answer) == len(without) == 1
    assert not differ(answer, without)


def test_sgool_stays_off_inside_after_detailers_passes(server):
    """In one generation with an inner run and all scripts on, SGOOL runs once."""
    scripts = {"SGOOL": {"args": [ONCE]}, "SGOOL probe": {"args": ["inner"]}}
    lines = len(server.output())
    answer = make(server, {**BASE, "alwayson_scripts": scripts})
    assert ran(answer)
    assert server.output()[lines:].count("SGOOL: your image") == 1


def heard(server, payload, sgool=None, but=0):
    """The steps that extensions hear of, with how many there are, from the highest noise level to the lowest; but: so
    many calls at first are left out.
    """
    server.get("/sgool-probe/steps")
    make(server, payload, sgool)
    by_level = {round(level, 3): (step, total) for level, step, total in server.get("/sgool-probe/steps")[but:]}
    return [by_level[level] for level in sorted(by_level, reverse=True)]


def test_extensions_hear_of_the_webuis_own_steps(server):
    """They switch on and off by them; the progress bar counts a run's instead."""
    payload = {**BASE, "sampler_name": "Euler"}
    plain = heard(server, payload)
    assert len(plain) == BASE["steps"]
    assert heard(server, payload, {**ONCE, "sampler": "auto", "start": "seed"}, but=len(plain)) == plain


def test_in_img2img_extensions_hear_of_its_own_steps(server):
    payload = {**IMG2IMG, "sampler_name": "Euler"}
    plain = heard(server, payload)
    run = heard(server, payload, {**ONCE, "steps": 10, "strength": 1.0}, but=len(plain))
    assert len(run) > len(plain) and run == sorted(run) and set(run) <= set(plain)
