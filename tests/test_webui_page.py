"""What the user meets: controls, infotext, options, gallery, plot axes, routes and the installer."""

from __future__ import annotations

import copy
import html
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gradio
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from modules import script_callbacks, scripts, shared

from sgool import __version__, cost
from sgool.errors import SgoolError
from sgool.generate import Request, generate
from sgool.guidance import CRITICS, parse_critic, parse_sum
from sgool.presets import AIMS, METHODS, PRESET_FIELDS, PRESETS
from sgool.settings import ABOUT, DEFAULTS, Settings
from sgool.webui import api, controls, gallery, infotext, models, options, register, script, xyz
from sgool.webui.arguments import WEBUI, parse
from sgool.webui.records import Run
from sgool.webui.script import SgoolScript, remember_file

ROOT = Path(__file__).parents[1]
OTHER = {
    **{name: next(x for x in each.choices if x != DEFAULTS[name]) for name, each in WEBUI.items() if each.choices},
    **{"iterations": 7, "steps": 9, "strength": 0.7, "candidates": 2, "saliency_weight": 0.35, "max_regions": 2},
    **{"threshold": 0.4, "min_size": 0.3, "padding": 0.1, "refresh": 2, "cutouts": 3, "learning_rate": 0.25},
    **{"warmup": 1, "regularization": 0.5, "patience": 5, "region_prompt": 'a "red" car, big: [SEP] sea'},
    **{"guide": "clip:RN50/openai", "selector": "embedded"},
    **{"zoom": True, "zoom_places": 3, "zoom_strength": 0.45, "zoom_iterations": 4, "zoom_smallest": 0.2},
    **{"zoom_largest": 0.6, "zoom_padding": 0.5, "zoom_good": 0.7, "zoom_judge": False, "as_uploaded": True},
    **{"best": True, "best_shown": 2, "best_save_all": False, "best_improved": 3, "guide_scale": 50.0},
    "show_phrases": False,
}
"""No parameter at its default."""


def test_every_parameter_has_a_control_with_name_tooltip_and_default(webui):
    inputs = SgoolScript().ui(False)
    gradio.made.clear()
    again = SgoolScript().ui(True)
    assert [type(x) for x in again] == [type(x) for x in inputs]
    assert len(inputs) == 1 + len(WEBUI)
    assert inputs[0].value is False and inputs[0].elem_id == "sgool_txt2img"
    for control, (name, about) in zip(again[1:], WEBUI.items(), strict=True):
        assert control.elem_id == f"sgool_img2img_{name}"
        assert control.label == about.label and control.value == DEFAULTS[name]
        assert control.options["tooltip"] == about.help
        for bound in {"minimum", "maximum"} & set(control.options):
            Settings.of({"sampler": "euler", name: control.options[bound]})  # which can do with a single step
    ids = [block.elem_id for block in gradio.made if block.elem_id]
    assert len(ids) == len(set(ids))
    assert parse([True, *(control.value for control in inputs[1:])]) == Settings()


def test_few_controls_at_first_sight():
    groups = {name: about.group for name, about in WEBUI.items()}
    for hidden in controls.HIDDEN.values():
        shown = [group for name, group in groups.items() if name != hidden]
        assert shown.count("") <= 5 and shown.count("Zoom") <= 5
    assert set(groups.values()) == {*controls.FIRST, *controls.MORE, controls.EXPERT}


def test_what_only_an_expert_turns_is_apart():
    expert = {name for name, about in WEBUI.items() if about.group == controls.EXPERT}
    assert {"method", "sampler", "cutouts", "rule", "learning_rate", "warmup", "regularization", "patience"} <= expert


@pytest.mark.parametrize("name", ["guide", "selector"])
def test_a_critic_is_chosen_from_a_list_or_typed(webui, name):
    made = dict(zip(["enabled", *WEBUI], SgoolScript().ui(False), strict=True))[name]
    assert isinstance(made, gradio.Dropdown) and made.options["allow_custom_value"]
    assert set(CRITICS) < set(made.options["choices"])
    known = {"/".join(each) for each in pytest.importorskip("open_clip").list_pretrained()}
    for choice in made.options["choices"]:
        for kind, variant in map(parse_critic, parse_sum(choice)):
            assert kind in CRITICS.values() and (not variant or variant in known)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_at_first_sight_there_is_a_choice_of_three_guides_which_says_what_it_costs(webui, tab):
    gradio.made.clear()
    made = dict(zip(["enabled", *WEBUI], SgoolScript().ui(tab == "img2img"), strict=True))
    (aim,) = [block for block in gradio.made if block.elem_id == f"sgool_{tab}_aim"]
    assert aim.options["choices"] == ["the prompt", "people's taste", "both"] == list(AIMS)
    assert AIMS[aim.value] == DEFAULTS["guide"]
    for guide in AIMS.values():
        assert Settings(guide=guide).guide == guide
    assert "2 GB" in aim.options["info"] and "GiB of the GPU" in aim.options["info"]
    # Either follows the other, in the page; the choice is no argument of its own.
    assert aim.chosen["fn"] is None and aim.chosen["outputs"] == [made["guide"]]
    assert made["guide"].changed["fn"] is None and made["guide"].changed["outputs"] == [aim]
    assert all(json.dumps(guide) in aim.chosen["_js"] for guide in AIMS.values())


def test_the_page_is_told_the_settings_without_a_request(webui):
    """When it is loaded, and whenever one of those changes that its line and its presets are about."""
    made = dict(zip(["enabled", *WEBUI], SgoolScript().ui(False), strict=True))
    counted = [made[name] for name in controls.COUNTED]
    for wiring in (gradio.context.Context.root_block.loaded, *(control.changed for control in counted)):
        assert wiring["fn"] is None and wiring["inputs"] == counted and wiring["outputs"] == []
    assert {name for name, control in made.items() if control.changed} == {*controls.COUNTED, "guide"}


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_line_under_the_title_says_what_it_does_and_costs(webui, tab):
    gradio.made.clear()
    SgoolScript().ui(tab == "img2img")
    (line,) = [block.value for block in gradio.made if block.options.get("elem_classes") == ["sgool-about"]]
    text = html.unescape(re.sub("<[^>]*>", "", line))
    start = "image" if tab == "img2img" else "seed"
    assert text == f"Improves the image's starting noise; {cost.in_words(cost.images(Settings(start=start)))}"
    told = json.loads(html.unescape(re.search('data-sgool="([^"]*)"', line)[1]))
    assert told["fields"] == list(controls.COUNTED) and set(told["presets"]) == set(PRESETS)
    assert told["presets"]["Balanced"] == {name: DEFAULTS[name] for name in PRESET_FIELDS}


def test_a_presets_tooltip_says_what_it_sets_and_paper_warns(webui):
    gradio.made.clear()
    SgoolScript().ui(False)
    tips = {b.value: b.options["tooltip"] for b in gradio.made if isinstance(b, gradio.Button)}
    assert set(tips) == set(PRESETS)
    assert "3 iterations of 10 steps" in tips["Quick"] and "4 iterations of 20 steps" in tips["Balanced"]
    assert "slow: about 760 times an image's time" in tips["Paper"]
    assert "slow" not in tips["Quick"] + tips["Balanced"]


def test_the_cost_counts_what_the_network_is_asked():
    """At the defaults the README's seven images: one is sampled again, four updates cost one and a half each."""
    assert cost.images(Settings()) == pytest.approx(1 + 4 * 1.6)
    assert cost.in_words(cost.images(Settings())) == "about 7 times an image's time"
    assert cost.images(Settings(), image_steps=40) == pytest.approx(cost.images(Settings()) / 2)
    assert cost.images(Settings(candidates=8)) == pytest.approx(8 + 4 * 1.6)
    assert cost.images(Settings(start="image", candidates=8)) == pytest.approx(1.6 + 4 * 1.6)
    assert cost.images(Settings(sampler="edict")) == pytest.approx(0.2 + 1.6 + 4 * 3.2)
    assert cost.images(Settings(method="none", candidates=4)) == pytest.approx(4)
    assert cost.images(Settings(iterations=0, candidates=2, steps=10)) == pytest.approx(1)
    assert cost.images(Settings(iterations=0)) == 0


def test_the_cost_counts_the_webuis_steps_where_its_sampler_is_followed():
    few = Settings(steps=20, iterations=5)
    assert cost.images(few, 4, "LCM") == pytest.approx(1 + 5 * 1.6)
    assert cost.images(few.changed(guidance_scale=1.0), 4, "LCM") == pytest.approx(1 + 5 * 2.4)
    for other in (cost.images(few, 4, "DPM++ 2M"), cost.images(few.changed(sampler="bdia"), 4, "LCM")):
        assert other == pytest.approx(5 * (1 + 5 * 1.6))
    assert cost.images(few, 13, "LCM") == pytest.approx(20 / 13 * (1 + 5 * 1.6))
    assert cost.images(few.changed(start="image"), 4, "LCM") == pytest.approx(5 * (1.6 + 5 * 1.6))


def test_the_cost_of_zoom_is_that_of_its_places():
    detail = Settings.of({**PRESETS["Detail"], "zoom_places": 2, "zoom_strength": 0.3})
    assert cost.images(detail) == pytest.approx(2 * 0.3)
    assert cost.line(Settings.of(PRESETS["Detail"])) == cost.line(detail)
    assert cost.line(detail) == ("Paints small places again", "about an image's time")
    assert cost.images(detail.changed(zoom_places=4, zoom_strength=0.5)) == pytest.approx(4 * 0.5)
    # Inside a place, SGOOL starts from the image as it was painted: carried back, rendered, and then as everywhere.
    assert cost.images(detail.changed(zoom_places=1, zoom_iterations=3)) == pytest.approx(0.3 + 1.6 + 3 * 1.6)
    both = Settings(zoom=True, zoom_places=2, zoom_strength=0.3)
    assert cost.images(both) == pytest.approx(cost.images(Settings()) + 0.6)
    assert cost.line(both)[0] == "Improves the image's starting noise and paints small places again"
    assert cost.line(Settings(iterations=0)) == ("Has nothing to do: 0 iterations, and no zoom", "")
    assert cost.line(Settings(iterations=0, candidates=4, start="image"))[1] == ""


def test_the_cost_knows_every_sampler():
    assert set(cost.EVALUATIONS) == set(WEBUI["sampler"].choices)


@pytest.mark.parametrize(
    "values",
    [
        {"iterations": 2},
        {"iterations": 2, "way_back": "full"},
        {"iterations": 2, "guidance_scale": 1.0},
        {"iterations": 1, "candidates": 3},
        {"iterations": 1, "sampler": "edict"},
        {"iterations": 1, "start": "image"},
        {"method": "none", "candidates": 2, "sampler": "ddim", "strength": 1.0},
        {"method": "baseline", "sampler": "ddim", "strength": 1.0},
    ],
)
def test_the_cost_counts_as_a_run_counts(backend, critics, values):
    settings = Settings.of({"steps": 5, "cutouts": 0, "saliency_weight": 0.0, **values})
    latent = torch.zeros(1, 4, *backend.latent_size) if settings.start == "image" else None
    result = generate(backend, critics, Request("a red car", init_latent=latent), settings)
    told = cost.images(settings, image_steps=settings.steps)
    rough = 0.15 if settings.start == "image" else 1e-6  # there, a two-step sampler takes a step more
    assert cost.spent(result.forward_equivalents, settings) == pytest.approx(told, rel=rough)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0.2, "about an image's time"),
        (1.4, "about an image's time"),
        (6.5, "about 7 times an image's time"),
        (99.4, "about 99 times an image's time"),
        (99.5, "slow: about 100 times an image's time"),
        (755, "slow: about 760 times an image's time"),
        (12345, "slow: about 12000 times an image's time"),
    ],
)
def test_the_cost_in_words(count, words):
    assert cost.in_words(count) == words


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_button_sets_what_the_api_sets(webui, preset):
    gradio.made.clear()
    SgoolScript().ui(False)
    (button,) = [b for b in gradio.made if b.elem_id == f"sgool_txt2img_preset_{preset.lower()}"]
    labels = [control.label for control in button.clicked["outputs"]]
    assert labels == [ABOUT[name].label for name in PRESET_FIELDS]
    values = dict(zip(PRESET_FIELDS, button.clicked["fn"](), strict=True))
    assert Settings(**values) == parse(({"preset": preset},))


@pytest.mark.parametrize("method", METHODS)
def test_choosing_a_method_sets_what_the_api_sets(webui, method):
    made = dict(zip(["enabled", *WEBUI], SgoolScript().ui(False), strict=True))
    wiring = made["method"].chosen
    labels = [control.label for control in wiring["outputs"]]
    values = dict(
        zip([next(n for n in WEBUI if WEBUI[n].label == x) for x in labels], wiring["fn"](method), strict=True)
    )
    by_name = parse(({"method": method},)).changed(guidance_scale=DEFAULTS["guidance_scale"])
    assert Settings(method=method, **values) == by_name


def test_infotext_brings_every_control_back():
    assert set(OTHER) == set(WEBUI)
    assert all(OTHER[name] != DEFAULTS[name] for name in WEBUI)
    alone = {name: OTHER[name] for name in ("method", "start")}  # with these some of the others do nothing
    pulled = {"method": "baseline", "guide_scale": OTHER["guide_scale"]}
    rest = {name: value for name, value in OTHER.items() if name not in (*alone, "guide_scale")}
    for values in (alone, pulled, rest):
        p = SimpleNamespace(extra_generation_params={})
        infotext.write(p, Run(Settings(**values), lambda: None))
        written = {key: str(value) for key, value in p.extra_generation_params.items() if not callable(value)}
        assert written["SGOOL version"] == __version__
        assert infotext.paste_enabled(written) is True
        defaults = {name: DEFAULTS[name] for name in WEBUI}
        assert {name: infotext.paste(name)(written) for name in WEBUI} == {**defaults, **values}


def test_infotext_names_only_what_differs_and_the_rest_comes_back_to_its_default():
    p = SimpleNamespace(extra_generation_params={})
    infotext.write(p, Run(Settings(steps=9), lambda: None))
    written = {key: str(value) for key, value in p.extra_generation_params.items() if not callable(value)}
    assert written == {"SGOOL Steps": "9", "SGOOL version": __version__}
    assert {name: infotext.paste(name)(written) for name in WEBUI} == {
        name: 9 if name == "steps" else DEFAULTS[name] for name in WEBUI
    }


def test_an_infotext_without_sgool_unticks_it_and_leaves_the_controls():
    assert infotext.paste_enabled({"Steps": "20"}) is False
    assert all(infotext.paste(name)({"Steps": "20"}) is None for name in WEBUI)


def test_infotext_keys_are_such_as_the_webui_reads():
    keys = [infotext.key(name) for name in WEBUI]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"\w[\w \-/]+", key) for key in (*keys, "SGOOL score before", infotext.VERSION))


def test_pictures_come_and_are_saved_where_the_settings_say(webui):
    options.add()
    assert all(shared.opts.data_labels[name].default is False for name in shared.opts.data_labels)
    _, plain = webui.make({})
    assert len(plain.images) == 1 and not webui.images.saved
    for name in shared.opts.data_labels:
        shared.opts.data[name] = True
    _, processed = webui.make({}, batch_size=2)
    assert len(processed.images) == 2 + 2 * 3 == len(processed.infotexts)
    suffixes = [suffix for suffix, _, _ in webui.images.saved]
    assert suffixes == ["-sgool-before", "-sgool-saliency", "-sgool-loss"] * 2
    assert webui.images.saved[0][1].size == (64, 64)
    assert [info["Seed"] for _, _, info in webui.images.saved] == ["1"] * 3 + ["2"] * 3


def test_a_saved_picture_is_named_for_its_own_image(webui, monkeypatch):
    """The WebUI's patterns [batch_number] and [generation_number] ask the processing object."""
    shared.opts.data["sgool_save_before"] = True
    named = []
    monkeypatch.setattr(webui.images, "save_image", lambda *_, p, **__: named.append((p.iteration, p.batch_index)))
    p, _ = webui.make({}, batch_size=2, n_iter=2)
    assert named == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (p.iteration, p.batch_index) == (1, 1)


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    api.add_routes(object(), app)
    return TestClient(app)


def test_the_schema_describes_what_is_taken(client):
    schema = client.get("/sgool/v1/schema").json()
    assert schema["positional"] == ["enabled", *WEBUI]
    defaults = {name: entry["default"] for name, entry in schema["properties"].items() if "default" in entry}
    assert parse((defaults,)) == Settings()
    for name, entry in schema["properties"].items():
        for bound in ("minimum", "maximum"):
            if bound in entry:
                beside = {"sampler": "lcm"} if (name, entry[bound]) == ("steps", 1) else {}
                parse(({**beside, name: entry[bound]},))
        if "exclusiveMinimum" in entry:
            with pytest.raises(SgoolError, match=name):
                parse(({name: entry["exclusiveMinimum"]},))
        assert entry["type"] in ("boolean", "integer", "number", "string")


def test_version_and_detectors(client):
    assert client.get("/sgool/v1/version").json() == {"version": __version__}
    assert "spectral" in [each["name"] for each in client.get("/sgool/v1/detectors").json()]


def test_the_critics_are_listed_with_what_they_cost_and_whether_they_are_here(client, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "models_dir", lambda: tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    listed = {each["name"]: each for each in client.get("/sgool/v1/critics").json()}
    assert list(listed) == list(CRITICS)
    assert {name for name, each in listed.items() if each["here"]} == {"embedded"}
    hps = listed["hps-v2.1"]
    assert (hps["licence"], hps["download_gb"], hps["gpu_gib"]) == ("Apache-2.0", 2.0, 1.2)
    assert "people prefer" in hps["measures"] and all(each["measures"] and each["licence"] for each in listed.values())
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"")
    assert {each["name"] for each in client.get("/sgool/v1/critics").json() if each["here"]} == {"embedded", "hps-v2.1"}


def test_a_run_can_be_seen_by_its_id(client, webui):
    p, processed = webui.make({"sampler": "bdia"}, prompt="<b>a car</b>", seed=6)
    (number,) = json.loads(json.dumps(p.extra_generation_params))["SGOOL run"]  # as the page reads it
    answer = client.get(f"/sgool/v1/runs/{number}").json()
    (image,) = answer["images"]
    assert answer["kept"] == gallery.KEPT
    text = processed.infotexts[0]
    for name in ("score_before", "score_resampled", "score_after"):
        assert f"{image[name]:.4f}" == text[f"SGOOL {name.replace('_', ' ')}"]
    assert image["iterations"] == 1 and image["regions"] >= 1 and image["message"] == ""
    assert image["sampled"] == text["SGOOL sampled with"] == "its own bdia, 2 steps"
    assert image["scored_by"] == text["SGOOL scored by"] == "embedded"
    root = f"/sgool/v1/runs/{number}"
    for name in ("before", "after", "saliency", "loss"):
        answer = client.get(f"{root}/0/{name}.png")
        assert answer.headers["content-type"] == "image/png" and answer.content.startswith(b"\x89PNG")
    for wrong in (f"{number}x/0/after", f"{number}/5/after", f"{number}/-1/after", f"{number}/0/y"):
        assert client.get(f"/sgool/v1/runs/{wrong}.png").status_code == 404
    assert client.get("/sgool/v1/runs/x").status_code == 404


def test_no_infotext_names_the_run(webui):
    """Pictures are given away, and the plot writes its grid's infotext when the run is over."""
    shared.opts.data.update(sgool_return_before=True, sgool_return_saliency=True)
    p, processed = webui.make({}, batch_size=2)
    assert all("SGOOL run" not in text for text in processed.infotexts)
    assert all("SGOOL run" not in processed.infotext(p, i) for i in range(2))


def test_runs_are_kept_for_their_own_pages_and_not_for_ever(client, webui):
    """Another generation, of this user or another, ticked or not, takes nothing away."""
    first, _ = webui.make({})
    (number,) = list.copy(first.extra_generation_params["SGOOL run"])
    webui.make(False)
    webui.make({"threshold": 7.0})
    for _ in range(gallery.KEPT_RUNS - 1):
        webui.make({})
    assert client.get(f"/sgool/v1/runs/{number}/0/after.png").status_code == 200
    webui.make({})
    assert client.get(f"/sgool/v1/runs/{number}").status_code == 404
    assert len(gallery.runs) == gallery.KEPT_RUNS


def test_the_image_before_is_the_webuis_own_and_says_nothing_of_sgool(webui):
    shared.opts.data["sgool_return_before"] = True
    _, originals = webui.make(steps=2)
    _, processed = webui.make({"sampler": "bdia", "start": "seed", "steps": 5}, steps=2)
    (entry,) = next(iter(gallery.runs.values()))
    outcome = entry.outcome
    assert outcome.improved
    pixels = (255 * torch.clamp((originals.images[0].float() + 1) / 2, 0, 1).movedim(0, 2).numpy()).astype("uint8")
    assert (outcome.before == pixels).all()
    pixels = (255 * torch.clamp((processed.images[0].float() + 1) / 2, 0, 1).movedim(0, 2).numpy()).astype("uint8")
    assert (outcome.after == pixels).all()
    assert processed.infotexts[1] == originals.infotexts[0]
    assert "SGOOL score after" in processed.infotexts[0]


def test_what_is_saved_besides_goes_by_the_images_own_name(webui, monkeypatch):
    """So it uses up none of the WebUI's numbers. A mask saved for the image, and a grid, are not the image."""
    shared.opts.data["sgool_save_before"] = True
    saved = []
    monkeypatch.setattr(webui.images, "save_image", lambda image, path, *_, **named: saved.append((path, named)))

    class Saves(scripts.Script):
        def postprocess(self, p, processed, *args):
            processed.images = [SimpleNamespace(already_saved_as="/out/grid-1.png")]
            for number in range(2):
                p.iteration, p.batch_index = 0, number
                for name in (f"0000{number}-1.png", f"0000{number + 5}-1-mask.png"):
                    remember_file(SimpleNamespace(p=p, filename=f"/out/{name}"))
                    processed.images.append(SimpleNamespace(already_saved_as=f"/out/{name}"))
            remember_file(SimpleNamespace(p=p, filename="/out/grid-1.png"))
            processed.index_of_first_image = 1

    webui.make({}, first=[Saves()], batch_size=2)
    assert [(path, named["forced_filename"]) for path, named in saved] == [
        ("/out", "00000-1-sgool-before"),
        ("/out", "00001-1-sgool-before"),
    ]
    assert all(named["save_to_dirs"] is False and "SGOOL" not in str(named["info"]) for _, named in saved)


@pytest.mark.parametrize("cookie_id", ["", "of-gradio-4"])
def test_who_has_not_signed_in_sees_nothing(cookie_id):
    app = FastAPI()
    app.auth, app.tokens = {"me": "secret"}, {"right": "me"}  # type: ignore[attr-defined]
    if cookie_id:
        app.cookie_id = cookie_id  # type: ignore[attr-defined]
    api.add_routes(object(), app)
    client = TestClient(app)
    assert client.get("/sgool/v1/runs/x").status_code == 401
    for token, status in (("wrong", 401), ("right", 404)):
        client.cookies.set(f"access-token-{cookie_id}" if cookie_id else "access-token", token)
        assert client.get("/sgool/v1/runs/x").status_code == status


def test_without_a_page_a_run_is_nobodys(webui):
    """With --nowebui there is no page and no password of its own: --api-auth guards the WebUI's routes only."""
    app = FastAPI()
    api.add_routes(None, app)
    webui.make({}, prompt="a secret")
    client = TestClient(app)
    (number,) = gallery.runs
    assert client.get(f"/sgool/v1/runs/{number}").status_code == 404
    assert client.get(f"/sgool/v1/runs/{number}/0/after.png").status_code == 404
    assert client.get("/sgool/v1/version").status_code == 200


@pytest.fixture
def axes(monkeypatch):
    """The plot's axes, by label."""

    class AxisOption:
        def __init__(self, label, type, apply, confirm=None, choices=None):
            self.label, self.type, self.apply, self.confirm, self.choices = label, type, apply, confirm, choices

    grid = SimpleNamespace(axis_options=[], AxisOption=AxisOption)
    script_class = type("Script", (), {"__module__": "xyz_grid.py"})
    monkeypatch.setattr(scripts, "scripts_data", [SimpleNamespace(script_class=script_class, module=grid)])
    xyz.add_axes()
    xyz.add_axes()
    assert len(grid.axis_options) == 1 + len(WEBUI)
    return {option.label: option for option in grid.axis_options}


def test_plot_axes_are_added_once_and_set_what_they_say(axes):
    p = SimpleNamespace()
    for name, about in WEBUI.items():
        axis = axes[f"[SGOOL] {about.label}"]
        value = axis.type(OTHER[name])
        if about.choices:
            assert value in axis.choices()
        else:
            assert (axis.choices is None) == (not about.suggestions and not isinstance(DEFAULTS[name], bool))
        axis.confirm(p, [value])
        axis.apply(p, value, [value])
    assert parse(({},), p.sgool_overrides) == Settings(**OTHER)


def test_a_plot_switches_in_upper_and_lower_case(axes):
    switch, seen = axes["[SGOOL] On"], []
    for value in ("True", "true", "FALSE", *switch.choices()):
        p = SimpleNamespace()
        switch.confirm(p, [value])
        switch.apply(p, value, [value])
        seen.append(parse((False,), p.sgool_overrides) is not None)
    assert seen == [True, True, False, False, True]


def test_a_plots_cells_do_not_share_what_is_set(axes):
    p, switch = SimpleNamespace(), axes["[SGOOL] On"]
    switch.apply(p, "True", [])
    first = copy.copy(p)
    switch.apply(p, "False", [])
    assert first.sgool_overrides["enabled"] is True


def test_a_plots_range_of_floats_reaches_its_bound(axes):
    """The plot adds up its steps."""
    p, axis = SimpleNamespace(), axes[f"[SGOOL] {ABOUT['saliency_weight'].label}"]
    for value, meant in ((0.1 + 0.2, 0.3), (1.0000000000000002, 1.0)):
        axis.confirm(p, [value])
        axis.apply(p, value, [value])
        assert p.sgool_overrides == {"saliency_weight": meant}


@pytest.mark.parametrize("name", [name for name in WEBUI if isinstance(DEFAULTS[name], bool)])
def test_a_plot_and_an_infotext_switch_off(axes, name):
    """bool("False") is true."""
    axis = axes[f"[SGOOL] {ABOUT[name].label}"]
    assert axis.choices() == ["False", "True"]
    for text, value in (("False", False), ("true", True)):
        p = SimpleNamespace()
        axis.confirm(p, [axis.type(text)])
        axis.apply(p, axis.type(text), [text])
        assert p.sgool_overrides == {name: value}
        written = {infotext.VERSION: "x", infotext.key(name): str(value)}
        assert infotext.paste(name)(written) is value
    assert api.schema()["properties"][name]["type"] == "boolean"


@pytest.mark.parametrize(
    ("label", "name", "value"),
    [
        ("On", "enabled", "yes"),
        ("Zoom", "zoom", "yes"),
        ("Iterations", "iterations", 5000),
        ("Sampler", "sampler", "heun"),
    ],
)
def test_a_plot_refuses_a_wrong_value_before_its_first_image(axes, label, name, value):
    with pytest.raises(SgoolError, match=name):
        axes[f"[SGOOL] {label}"].confirm(None, [value])


def test_register_hands_over_the_callbacks():
    script_callbacks.registered.clear()
    register()
    assert script_callbacks.registered == [
        ("ui_settings", options.add),
        ("app_started", api.add_routes),
        ("image_saved", script.remember_file),
        ("ui_settings", script.add_name_pattern),
        ("ui_settings", xyz.add_axes),
    ]


def test_loading_the_script_imports_nothing_heavy():
    heavy = ("open_clip", "transformers", "diffusers", "cv2", "PIL.Image", "matplotlib", "scipy")
    code = f"""
import sys, runpy
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "fake_webui")!r}]
import torch
before = set(sys.modules)
module = runpy.run_path({str(ROOT / "scripts" / "sgool.py")!r})
print([name for name in {heavy!r} if name in set(sys.modules) - before])
print([name for name, value in module.items() if isinstance(value, type)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "['SgoolScript']"]


@pytest.mark.parametrize("missing", [(), ("cv2",), ("open_clip", "cv2")])
def test_the_installer_adds_only_what_lacks_and_moves_nothing(monkeypatch, missing):
    ran = []

    def run_pip(command: str, description: str) -> None:
        constraints = Path(command.split('-c "')[1].rstrip('"')).read_text()
        ran.append((command.split(" -c ")[0], constraints))

    launch = ModuleType("launch")
    launch.run_pip = run_pip  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "launch", launch)
    there = list(importlib.metadata.distributions())
    broken = SimpleNamespace(metadata={"Name": "~orch"}, version="1.0")  # as pip leaves it when it is cut off
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [*there, broken])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    spec = importlib.util.spec_from_file_location("sgool_install", ROOT / "install.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    if not missing:
        assert not ran
        return
    ((command, constraints),) = ran
    packages = {"cv2": "opencv-python-headless", "open_clip": "open-clip-torch"}
    assert command.split()[0] == "install" and set(command.split()[1:]) == {packages[name] for name in missing}
    assert "~" not in constraints
    assert any(line.startswith(f"torch=={torch.__version__.split('+')[0]}") for line in constraints.splitlines())
