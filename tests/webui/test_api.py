"""What the API promises: arguments, their checks, results, infotext, files, and the extension's own routes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hosts import HOST, NEO
from payloads import (
    BASE,
    HIRES,
    IMG2IMG,
    INPAINT,
    MODEL,
    SGOOL,
    SIZE,
    differ,
    difference,
    make,
    mask,
    outcome,
    picture,
    plot,
)
from webui_server import Refused

from sgool import __version__
from sgool.guidance import CRITICS
from sgool.presets import resolve
from sgool.saliency import DETECTORS
from sgool.settings import DEFAULTS
from sgool.webui.arguments import WEBUI


@pytest.fixture(scope="module")
def plain(server):
    return make(server, BASE)


@pytest.fixture(scope="module")
def better(server):
    return make(server, BASE, SGOOL)


def positional(values):
    """The same arguments in the order of the controls. What is not given are the model's defaults, as by name."""
    values = dict(values)
    enabled, settings = values.pop("enabled"), resolve(values, model=MODEL)
    return [enabled, *(getattr(settings, name) for name in WEBUI)]


def test_the_image_is_optimized_and_says_so(plain, better):
    found = outcome(better)
    assert found.iterations == SGOOL["iterations"]
    assert found.after >= found.before
    assert found.version == __version__
    assert differ(better, plain) == found.better
    assert better.image().size == plain.image().size


def test_the_same_request_gives_the_same_bytes(server, better):
    assert make(server, BASE, SGOOL).encoded == better.encoded


def test_positional_arguments_mean_the_same(server, better):
    assert make(server, BASE, positional(SGOOL)).encoded == better.encoded


def test_switched_off_it_does_nothing(server, plain):
    assert make(server, BASE, {**SGOOL, "enabled": False}).encoded == plain.encoded
    assert make(server, BASE, positional({**SGOOL, "enabled": False})).encoded == plain.encoded


@pytest.mark.parametrize(
    "bad",
    [
        {"iterations": -1},
        {"iterations": "many"},
        {"iterations": 2.5},
        {"learning_rate": float("inf")},
        {"learning_rate": float("nan")},
        {"saliency": "../../etc/passwd"},
        {"guide": "<img src=x onerror=alert(1)>"},
        {"guide": "clip:../model/weights"},
        {"guide": "clip:ViT-B-32/no-such-weights"},
        {"guide": "embedded 1, hps-v3 5"},
        {"guide": "embedded 1, hps-v2.1 0"},
        {"guide": "embedded 1, hps-v2.1 5"},  # not here, and there is no network
        {"selector": "image-reward"},
        {"selector": "hps-v2.1", "guide": "embedded, hps-v2.1"},
        {"preset": "Best"},
        {"preset": ["Quick"]},
        {"enabled": "yes"},
        {"no_such_field": 1},
    ],
    ids=str,
)
def test_a_bad_argument_is_named_and_the_image_is_the_original(server, plain, bad):
    answer = make(server, BASE, {**SGOOL, **bad})
    assert not differ(answer, plain)
    assert next(iter(bad)) in outcome(answer).note.lower()


def test_with_a_refiner_the_image_is_the_original_and_says_why(server):
    payload = {**BASE, "refiner_checkpoint": MODEL, "refiner_switch_at": 0.5}
    answer = make(server, payload, SGOOL)
    assert not differ(answer, make(server, payload))
    assert "refiner" in outcome(answer).note


def test_each_image_of_a_batch_has_its_own_result(server):
    answer = make(server, {**BASE, "batch_size": 2, "n_iter": 2}, SGOOL)
    assert len(answer) == len(answer.texts) == 4
    found = [outcome(answer, index) for index in range(4)]
    assert len({each.before for each in found}) == 4
    for index, each in enumerate(found):
        assert each.after >= each.before
        assert f"Seed: {BASE['seed'] + index}," in answer.texts[index]
    assert any(each.better for each in found)


def test_a_batch_gives_what_single_images_give(server, better):
    batch = make(server, {**BASE, "batch_size": 2}, SGOOL)
    assert abs(outcome(batch, 0).before - outcome(better).before) < 1e-3


@pytest.mark.parametrize("upscaler", ["Latent", "Latent (nearest)", "Lanczos", "None"])
def test_hires_fix_upscales_the_optimized_first_pass(server, upscaler):
    if upscaler != "None" and HOST is NEO:
        pytest.skip("Forge Neo upscales no latents, and images with ESRGAN's files alone")
    payload = {**HIRES, "hr_upscaler": upscaler}
    before, after = make(server, payload), make(server, payload, SGOOL)
    assert after.image().size == before.image().size
    assert before.image().size == (SIZE * 3 // 2,) * 2 or HOST is NEO  # it rounds to 64 pixels
    found = outcome(after)
    assert found.iterations == SGOOL["iterations"]
    assert differ(after, before) == found.better
    assert len(after) == 1


def test_img2img_starts_from_the_image(server):
    before, after = make(server, IMG2IMG), make(server, IMG2IMG, SGOOL)
    found = outcome(after)
    assert found.after >= found.before
    assert differ(after, before) == found.better


def test_outside_the_inpainting_mask_nothing_moves(server):
    sgool = {**SGOOL, "iterations": 3, "learning_rate": 0.5}
    before, after = make(server, INPAINT), make(server, INPAINT, sgool)
    painted = np.asarray(mask()) > 0
    moved = difference(before.image(), after.image())
    assert moved[~painted].max() == 0
    assert difference(after.image(), picture())[~painted].max() == 0
    assert (moved[painted].max() > 0) == outcome(after).better


def test_soft_inpainting_lays_the_original_over_what_sgool_has_made_of_it(server):
    """Where it sees no change it lays the original over the image: so what SGOOL changes has to be there by then."""
    order = server.get("/sgool-probe/order/img2img/post_sample")
    assert order.index("sgool.py") < order.index("soft_inpainting.py")


def test_inpainting_at_full_resolution(server):
    answer = make(server, {**INPAINT, "inpaint_full_res": True, "inpaint_full_res_padding": 8}, SGOOL)
    assert difference(answer.image(), picture())[np.asarray(mask()) == 0].max() == 0
    assert outcome(answer).iterations == SGOOL["iterations"]


def test_the_infotext_brings_everything_back(server):
    sgool = {
        **SGOOL,
        "start": "seed",
        "learning_rate": 0.25,
        "region_prompt": 'a "small" frog, green [SEP] a car: red',
    }
    first = make(server, BASE, sgool)
    lists = {**HOST.hires, "styles": []}  # Forge fails where it reads a list from an infotext
    again = make(server, {"infotext": first.texts[0], **lists})
    assert again.texts == first.texts
    assert again.encoded == first.encoded


def test_options_return_and_save_the_other_pictures(server):
    folder = server.outputs
    before = set(folder.rglob("*sgool*"))
    server.options(
        **{f"sgool_{what}_{part}": True for what in ("return", "save") for part in ("before", "saliency", "loss")}
    )
    try:
        answer = make(server, {**BASE, "save_images": True}, SGOOL)
    finally:
        server.options(
            **{f"sgool_{what}_{part}": False for what in ("return", "save") for part in ("before", "saliency", "loss")}
        )
    assert len(answer) == 4
    new = set(folder.rglob("*sgool*")) - before
    suffixes = sorted(path.stem.partition("-sgool-")[2] for path in new)
    assert suffixes == ["before", "loss", "saliency"]


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_defaults_page_knows_every_control(server, tab):
    """The WebUI keeps a default only for a control that it can name."""
    known = json.loads((server.home / "ui-config.json").read_text())
    labels = [*(["SGOOL"] if HOST.keeps_switches else []), *(about.label for about in WEBUI.values())]
    assert [label for label in labels if f"customscript/sgool.py/{tab}/{label}/value" not in known] == []


def test_the_critics_are_listed(server):
    listed = {each["name"]: each for each in server.get("/sgool/v1/critics")}
    assert list(listed) == list(CRITICS)
    assert [name for name, each in listed.items() if each["here"]] == ["embedded"]
    assert listed["hps-v2.1"]["download_gb"] == 2.0 and listed["hps-v2.1"]["licence"] == "Apache-2.0"


def test_the_scores_say_whose_they_are(better):
    assert "SGOOL scored by: embedded," in better.texts[0]


def test_routes(server):
    assert server.get("/sgool/v1/version")["version"] == __version__
    schema = server.get("/sgool/v1/schema")
    assert set(WEBUI) <= set(str(schema).replace("'", " ").split())
    assert set(DETECTORS) <= set(str(server.get("/sgool/v1/detectors")).replace("'", " ").split())


def test_a_region_for_each_phrase_that_is_not_there(server):
    """The prompt asks for more than so small an image can show."""
    payload = {**BASE, "prompt": "a panda, a car, a whale, a sunflower, a pizza"}
    found = {}
    for match in ("phrases", "weak-phrases"):
        answer = make(server, payload, {**SGOOL, "region_match": match})
        assert not outcome(answer).note and outcome(answer).iterations == SGOOL["iterations"]
        found[match] = server.get("/sgool-probe/last")[0]["losses"]
    assert found["phrases"] != found["weak-phrases"]
    assert "SGOOL Match regions to: weak-phrases" in answer.texts[0]


def test_an_xyz_plot_over_iterations(server):
    payload = plot(server, ("[SGOOL] Iterations", "1, 2"), ("[SGOOL] On", ["False", "True"]))
    answer = make(server, payload, {**SGOOL, "enabled": False})
    done = [outcome(answer, index).iterations for index in range(len(answer))]
    assert done == [-1, -1, -1, 1, 2]  # the grid, and row by row


def test_an_xyz_plot_of_the_switch_as_text(server):
    payload = plot(server, ("[SGOOL] On", "false, true"))
    payload["script_args"][-1] = True  # also axes that have a list of values are typed in
    answer = make(server, payload, {**SGOOL, "enabled": False})
    assert [outcome(answer, index).iterations for index in range(len(answer))] == [-1, -1, SGOOL["iterations"]]


def test_an_xyz_plot_refuses_a_wrong_value_before_it_begins(server):
    with pytest.raises(Refused, match="iterations must be at most 1000"):
        make(server, plot(server, ("[SGOOL] Iterations", "1, 5000")), {**SGOOL, "enabled": False})


def curl_lines():
    """Those of the README and of docs/api.md: a path each, and the JSON that is posted, or ""."""
    root = Path(__file__).parents[2]
    text = "\n".join((root / name).read_text() for name in ("README.md", "docs/api.md"))
    return re.findall(r"^curl -s localhost:7860(\S+)(?: -H '[^']*' -d '([^']*)')?", text, re.MULTILINE)


@pytest.mark.parametrize(("path", "body"), curl_lines())
def test_the_curl_lines_of_the_docs(server, path, body):
    """As they stand there, but small, and with what needs no download."""
    if not body:
        assert server.get(path)
        return
    payload = {**json.loads(body), "width": SIZE, "height": SIZE}
    given = payload.pop("alwayson_scripts")["SGOOL"]["args"]
    own = {"saliency": "spectral", "guide": "embedded", "selector": "embedded"}
    if isinstance(given[0], dict):
        asked = given[0]
        answer = make(server, payload, {**asked, **own})
    else:
        asked = dict(zip(["enabled", *WEBUI], given, strict=False))
        answer = make(server, payload, positional({**asked, **own}))
    assert outcome(answer).iterations > 0 and not outcome(answer).note.startswith("SGOOL is not used")
    for name, value in asked.items():
        if name != "enabled" and value != DEFAULTS[name]:
            assert f"SGOOL {WEBUI[name].label}: {value}," in answer.texts[0]


def test_the_docs_have_a_curl_line_for_every_route(server):
    paths = {path for path, _ in curl_lines()}
    ours = {path for path in server.get("/openapi.json")["paths"] if path.startswith("/sgool/") and "runs" not in path}
    assert {"/sdapi/v1/txt2img", *ours} == paths


def test_method_baseline_pulls_while_the_seed_is_sampled(server, plain):
    """As the user samples, so without a pull it is the user's image."""
    own = {name: SGOOL[name] for name in ("enabled", "guide", "selector", "cutouts")}
    made = {
        scale: make(server, BASE, {**own, "method": "baseline", "start": "seed", "guide_scale": scale})
        for scale in (0.0, 3.0)
    }
    assert not differ(made[0.0], plain)
    found = outcome(made[3.0])
    assert found.iterations == 0 and not found.note
    assert differ(made[3.0], plain) == found.better
