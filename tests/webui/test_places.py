"""Zoom in the real WebUI, on the embedded model."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hosts import HOST
from payloads import BASE, HIRES, IMG2IMG, INPAINT, SIZE, differ, difference, make, mask, picture
from PIL import Image, ImageDraw
from test_stop import while_running
from webui_server import encode

ZOOM = {
    "preset": "Detail",
    "saliency": "spectral",
    "guide": "embedded",
    "selector": "embedded",
    "threshold": 0.25,
    "zoom_judge": False,
    "zoom_strength": 0.5,
    **HOST.zoom,
}
"""Every repaint is kept, so that there is something to see."""


def kept(answer, index=0) -> tuple[int, int]:
    """How many places an infotext says were kept, and of how many."""
    found = re.search(r"SGOOL zoom kept: (\d+) of (\d+)", answer.texts[index])
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def regions(server, answer, index=0) -> np.ndarray:
    """bool [H, W]: in one of the places, as the view's route says."""
    (run,) = answer.info["extra_generation_params"]["SGOOL run"]
    zoom = server.get(f"/sgool/v1/runs/{run}")["images"][index]["zoom"]
    size = answer.image(index).size
    inside = Image.new("L", size, 0)
    for place in zoom["places"]:
        box = place["region"]
        right, bottom = box["left"] + box["width"] - 1, box["top"] + box["height"] - 1
        ImageDraw.Draw(inside).rectangle((box["left"], box["top"], right, bottom), fill=1)
    return np.array(inside).astype(bool)


def only_the_places_differ(server, answer, plain, index=0) -> bool:
    differs = difference(answer.image(index), plain.image(index)) > 0
    return bool(differs.any() and not (differs & ~regions(server, answer, index)).any())


CASES = {
    "txt2img": BASE,
    "euler a": {**BASE, "sampler_name": "Euler a"},
    "sde": {**BASE, "sampler_name": "DPM++ SDE", "scheduler": "Karras"},
    "not square": {**BASE, "width": SIZE * 3 // 2, "height": SIZE},
    "hires": HIRES,
    "img2img": IMG2IMG,
    "variation": {**BASE, "subseed": 5, "subseed_strength": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_only_the_places_change_and_the_next_image_is_the_same(server, case):
    payload = CASES[case]
    plain = make(server, payload)
    answer = make(server, payload, ZOOM)
    count, all_ = kept(answer)
    assert count == all_ > 0
    assert only_the_places_differ(server, answer, plain)
    assert "SGOOL Zoom: True" in answer.texts[0] and "SGOOL note" not in answer.texts[0]
    assert not differ(make(server, payload, ZOOM), answer)
    assert make(server, payload).encoded == plain.encoded


def test_the_judge_keeps_only_what_is_better(server):
    answer = make(server, {**BASE, "batch_size": 4}, {**ZOOM, "zoom_judge": True})
    texts = " ".join(answer.texts)
    told = re.findall(r"(\d\.\d+) -> (\d\.\d+), (kept|not better)", texts)
    assert told
    assert all(float(after) > float(before) for before, after, verdict in told if verdict == "kept")


def test_every_image_of_batches(server):
    payload = {**BASE, "batch_size": 2, "n_iter": 2}
    plain = make(server, payload)
    answer = make(server, payload, ZOOM)
    assert len(answer) == 4
    for i in range(4):
        assert kept(answer, i)[0] > 0
        assert only_the_places_differ(server, answer, plain, i)
    third = make(server, {**BASE, "seed": BASE["seed"] + 2}, ZOOM)
    assert difference(third.image(), answer.image(2)).max() <= 2
    assert make(server, payload).encoded == plain.encoded


@pytest.mark.parametrize("only_masked", [False, True])
def test_where_the_user_inpaints_nothing_else_changes(server, only_masked):
    payload = {**INPAINT, "inpaint_full_res": only_masked, "inpaint_full_res_padding": 8, "mask_blur": 4}
    make(server, payload)  # img2img's encoder draws from numbers that the image before it has left, without SGOOL too
    plain = make(server, payload)
    answer = make(server, payload, {**ZOOM, "zoom_largest": 1.0})
    assert kept(answer)[0] > 0
    differs = difference(answer.image(), plain.image()) > 0
    assert differs.any() and not differs[:, : SIZE // 2 - 12].any()
    by_mask = make(server, payload, {**ZOOM, "zoom_by": "mask", "zoom_largest": 1.0})
    assert kept(by_mask) == (1, 1)
    assert make(server, payload).encoded == plain.encoded


def test_a_mask_over_the_api(server):
    drawn = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(drawn).rectangle((SIZE // 6, SIZE // 4, SIZE // 2, SIZE * 2 // 3), fill=255)
    own = {**ZOOM, "zoom_by": "mask", "zoom_padding": 0.1}
    plain = make(server, BASE)
    answer = make(server, BASE, {**own, "zoom_mask": encode(drawn)})
    assert kept(answer) == (1, 1) and only_the_places_differ(server, answer, plain)
    assert "zoom_mask" not in answer.texts[0] and "SGOOL Zoom on: mask" in answer.texts[0]
    for wrong, told in (
        (encode(drawn.resize((48, 48))), f"The mask has 48x48 pixels, but the image {SIZE}x{SIZE}."),
        ("?", "zoom_mask is not base64"),
        (None, "needs a mask"),
    ):
        refused = make(server, BASE, {**own, "zoom_mask": wrong})
        assert not differ(refused, plain)
        assert told in refused.texts[0]


def test_with_the_whole_image_and_with_updates_inside_the_places(server):
    whole = {**ZOOM, "iterations": 2, "steps": 4, "cutouts": 2, "learning_rate": 0.3, "warmup": 0}
    plain = make(server, BASE, {**whole, "zoom": False})
    answer = make(server, BASE, whole)
    assert "SGOOL score before" in answer.texts[0] and kept(answer)[0] > 0
    assert only_the_places_differ(server, answer, plain)
    updates = make(server, BASE, {**ZOOM, "zoom_iterations": 2, "steps": 4, "cutouts": 2, "learning_rate": 0.3})
    assert kept(updates)[0] > 0 and "SGOOL note" not in updates.texts[0]
    assert only_the_places_differ(server, updates, make(server, BASE))


def test_nothing_is_left_behind(server):
    parameters = server.home / "params.txt"
    inits = server.home / "output" / "init-images"
    server.options(save_init_img=True, outdir_init_images=str(inits))
    payload = {**BASE, "batch_size": 2, "n_iter": 2, "tiling": True}
    try:
        make(server, payload)
        text, state = parameters.read_text(), server.get("/sgool-probe/state")
        for own in (ZOOM, {**ZOOM, "zoom_iterations": 1, "steps": 4}):
            make(server, payload, own)
            after = parameters.read_text()
            assert text.splitlines()[0] == after.splitlines()[0] and "SGOOL Zoom: True" in after
            assert "Denoising strength" not in after and "Mask blur" not in after
            assert server.get("/sgool-probe/state") == state
        assert not inits.exists()
    finally:
        server.options(save_init_img=False)


def test_the_files_that_are_saved_are_the_zoomed_images(server):
    folder = server.outputs
    before = set(folder.rglob("*.png"))
    answer = make(server, {**BASE, "save_images": True}, ZOOM)
    (path,) = set(folder.rglob("*.png")) - before
    with Image.open(path) as image:
        assert not difference(image.convert("RGB"), answer.image()).any()
        assert "SGOOL zoom kept" in image.info["parameters"]


LONG = {**ZOOM, "zoom_iterations": 200, "patience": 0, "steps": 4, "cutouts": 2}


def test_an_interrupt_in_the_first_place_keeps_the_image(server):
    plain = make(server, BASE)
    own = {**ZOOM, "zoom_strength": 0.8}
    first = make(server, BASE, {**own, "zoom_places": 1})
    answer, texts = while_running(server, {**BASE, "steps": 5}, "zoom 1/", "interrupt", LONG)
    assert not differ(answer, plain) and "interrupted after 0 of" in answer.texts[0]
    told = [text for text, _, _ in texts if "zoom 1/" in text]
    assert told and told[0].startswith("SGOOL zoom 1/2: ")
    assert differ(first, plain)
    assert make(server, BASE).encoded == plain.encoded


@pytest.mark.parametrize("updates", [0, 12])
def test_an_interrupt_in_the_second_place_keeps_the_first(server, updates):
    """In the WebUI's own sampling of the place, and in SGOOL's updates there."""
    payload = {**BASE, "steps": 150 if not updates else 5}
    own = {**ZOOM, "zoom_strength": 0.9, "zoom_iterations": updates, "patience": 0, "steps": 4, "cutouts": 2}
    first = make(server, payload, {**own, "zoom_places": 1})
    answer, _ = while_running(server, payload, "zoom 2/2", "interrupt", own)
    assert kept(first) == (1, 1) and kept(answer) == (1, 2)
    assert "interrupted after 1 of 2 places" in answer.texts[0]
    assert not differ(answer, first) and differ(answer, make(server, payload))


def test_skip_gives_the_image_without_zoom(server):
    plain = make(server, BASE)
    answer, _ = while_running(server, BASE, "zoom 1/", "skip", LONG)
    assert not differ(answer, plain) and "zoom was skipped" in answer.texts[0]
    assert kept(make(server, BASE, ZOOM))[0] > 0


def test_lora_of_the_prompt_and_of_a_place(server, lora):
    """Each paints the place otherwise. A LoRA that only a place has is unloaded afterwards."""
    own = {**ZOOM, "zoom_places": 1, "as_uploaded": True}
    tag = f"<lora:{lora}:0.5>"
    without = make(server, IMG2IMG, own)
    prompted = {**IMG2IMG, "prompt": f"{IMG2IMG['prompt']} {tag}"}
    placed = {**own, "region_prompt": f"a small frog {tag}"}
    plain = make(server, BASE)
    for payload, each in ((prompted, own), (IMG2IMG, placed)):
        answer = make(server, payload, each)
        assert kept(answer) == (1, 1) and "SGOOL note" not in answer.texts[0]
        assert only_the_places_differ(server, answer, without)
        assert make(server, BASE).encoded == plain.encoded
    assert differ(make(server, IMG2IMG, placed), make(server, IMG2IMG, {**own, "region_prompt": "a small frog"}))
    both = make(server, {**BASE, "prompt": prompted["prompt"]}, {**ZOOM, "region_prompt": "a small frog"})
    assert only_the_places_differ(server, both, make(server, {**BASE, "prompt": prompted["prompt"]}))


def test_settings_come_back_from_the_infotext_of_the_image(server):
    answer = make(server, BASE, {**ZOOM, "zoom_places": 3})
    text = answer.texts[0]
    for part in ("SGOOL Zoom: True", "SGOOL Zoom places: 3", "SGOOL Keep only better repaints: False"):
        assert part in text
    info = server.post("/sdapi/v1/png-info", {"image": "data:image/png;base64," + answer.encoded[0]})
    assert info["parameters"]["SGOOL Zoom"] == "True" and info["parameters"]["SGOOL Iterations"] == "0"


def test_mask_is_the_right_half():
    """What the inpainting test relies on."""
    assert np.array(mask())[:, SIZE // 2 :].min() == 255 and np.array(mask())[:, : SIZE // 2].max() == 0
    assert picture().size == (SIZE, SIZE)
