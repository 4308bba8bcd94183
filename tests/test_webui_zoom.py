"""Zoom in the fake WebUI, on the embedded model."""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
from types import SimpleNamespace

import k_diffusion.sampling
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from modules import devices, extra_networks, processing, scripts, sd_hijack, sd_samplers_common, shared
from PIL import Image, ImageDraw

from sgool.errors import SgoolError
from sgool.guidance.clip import Clip
from sgool.region import Region
from sgool.settings import Settings
from sgool.webui import api, gallery, inpaint, masks, progress
from sgool.webui import zoom as zooming
from sgool.webui.backend import WebuiBackend
from sgool.webui.inpaint import Area, with_networks
from sgool.webui.progress import ZoomBar
from sgool.zoom import Place, Verdict
from sgool.zoom.find import Candidate

DETAIL = {
    "iterations": 0,
    "zoom": True,
    "zoom_judge": False,
    "zoom_places": 2,
    "zoom_smallest": 0.25,
    "zoom_largest": 0.6,
    "threshold": 0.2,
    "zoom_order": "salience",
}
"""Every repaint is kept."""

LEFT = Region(20, 4, 24, 24, 0.6)
RIGHT = Region(24, 36, 20, 24, 0.4)


@pytest.fixture(autouse=True)
def two_places(monkeypatch):
    """Two places of a picture of 64 pixels, whatever it shows, so that each test knows where it is painted."""
    monkeypatch.setattr("sgool.zoom.find.regions_of", lambda interest, settings: [Candidate(LEFT), Candidate(RIGHT)])


def pixels(image) -> np.ndarray:
    """uint8 [H, W, 3] of what a generation gives: a tensor in [-1, 1] as it was decoded, or a picture."""
    if isinstance(image, Image.Image):
        return np.array(image)
    return (255 * torch.clamp((image.float() + 1) / 2, 0, 1).movedim(0, 2).numpy()).astype("uint8")


def inside(*regions: Region, size: int = 64) -> np.ndarray:
    """bool [H, W]: in one of these."""
    found = np.zeros((size, size), bool)
    for each in regions:
        found[each.top : each.top + each.height, each.left : each.left + each.width] = True
    return found


def changed(one, other) -> np.ndarray:
    """bool [H, W]: where two pictures differ."""
    return (pixels(one) != pixels(other)).any(-1)


def zooms():
    """Of the last run's images."""
    return [entry.zoom for entry in gallery.runs[next(reversed(gallery.runs))]]


def test_places_are_painted_again_and_nothing_outside_them_changes_by_one_bit(webui, capsys):
    _, plain = webui.make()
    p, processed = webui.make(DETAIL)
    differs = changed(processed.images[0], plain.images[0])
    assert (differs & inside(LEFT)).any() and (differs & inside(RIGHT)).any()
    assert not (differs & ~inside(LEFT, RIGHT)).any()
    (zoom,) = zooms()
    assert [place.verdict for place in zoom.places] == [Verdict.KEPT] * 2
    assert (zoom.before == pixels(plain.images[0])).all() and (zoom.after == pixels(processed.images[0])).all()
    text = processed.infotexts[0]
    assert text["SGOOL zoom kept"] == "2 of 2" and text["SGOOL Zoom"] == "True" and text["SGOOL Iterations"] == "0"
    assert text["SGOOL Keep only better repaints"] == "False"
    assert text["SGOOL zoom outcome"] == "a red car: kept; a red car: kept"
    assert "SGOOL score before" not in text
    assert capsys.readouterr().out.count("SGOOL: zoom, a red car: kept") == 2
    assert not p.comments


def test_what_the_judge_refuses_stays_as_it_was(webui, monkeypatch):
    """Of the first place both the place and the whole image score higher, of the second only the place."""
    told = iter([0.61, 0.74, 0.9, 0.8, 0.5, 0.6, 0.7, 0.9])
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: next(told))
    _, plain = webui.make()
    _, processed = webui.make({**DETAIL, "zoom_judge": True})
    differs = changed(processed.images[0], plain.images[0])
    assert differs.any() and not (differs & ~inside(LEFT)).any()
    assert processed.infotexts[0]["SGOOL zoom kept"] == "1 of 2"
    assert processed.infotexts[0]["SGOOL zoom outcome"] == (
        "a red car: 0.610 -> 0.740, kept; "
        "a red car: 0.500 -> 0.600, better by itself but not in the image, left as it was"
    )


def test_where_nothing_is_kept_the_very_image_comes_out(webui, monkeypatch):
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: 0.5)
    _, plain = webui.make()
    _, processed = webui.make({**DETAIL, "zoom_judge": True})
    assert isinstance(processed.images[0], torch.Tensor) and torch.equal(processed.images[0], plain.images[0])
    assert processed.infotexts[0]["SGOOL zoom kept"] == "0 of 2"


def test_zoom_comes_after_what_sgool_does_to_the_whole_image(webui):
    _, whole = webui.make({"start": "seed", "steps": 5, "threshold": DETAIL["threshold"]}, steps=2)
    _, processed = webui.make({**DETAIL, "iterations": 1, "start": "seed", "steps": 5}, steps=2)
    differs = changed(processed.images[0], whole.images[0])
    assert differs.any() and not (differs & ~inside(LEFT, RIGHT)).any()
    text = processed.infotexts[0]
    assert "SGOOL score after" in text and text["SGOOL zoom kept"] == "2 of 2"
    (entry,) = gallery.runs[next(reversed(gallery.runs))]
    assert (entry.before == entry.outcome.before).all() and (entry.after == pixels(processed.images[0])).all()


def test_with_zoom_alone_nothing_is_done_to_the_whole_image(webui, monkeypatch):
    monkeypatch.setattr("sgool.webui.batch.improve", lambda *args: pytest.fail("it was"))
    for own in ({}, {"method": "none"}):
        p, _ = webui.make({**DETAIL, **own})
        assert torch.equal(torch.cat(p.latents), torch.cat(webui.make()[0].latents))


def test_every_image_of_a_batch_has_a_zoom_of_its_own(webui):
    own = {"batch_size": 2, "n_iter": 2, "seed": 5}
    _, plain = webui.make(**own)
    p, processed = webui.make(DETAIL, **own)
    for i in range(4):
        differs = changed(processed.images[i], plain.images[i])
        assert differs.any() and not (differs & ~inside(LEFT, RIGHT)).any()
    assert [text["SGOOL zoom kept"] for text in processed.infotexts] == ["2 of 2"] * 4
    assert p.extra_generation_params["SGOOL zoom kept"] == ["2 of 2"] * 4
    _, alone = webui.make(DETAIL, seed=7)
    assert np.abs(pixels(alone.images[0]).astype(int) - pixels(processed.images[2])).max() <= 2


def test_after_hires_fix_the_large_image_is_zoomed_into(webui):
    _, plain = webui.make(enable_hr=True)
    _, processed = webui.make(DETAIL, enable_hr=True)
    differs = changed(processed.images[0], plain.images[0])
    assert differs.shape == (128, 128)
    assert differs.any() and not (differs & ~inside(LEFT, RIGHT, size=128)).any()
    webui.make({**DETAIL, "iterations": 1}, enable_hr=True)
    (entry,) = gallery.runs[next(reversed(gallery.runs))]
    assert entry.outcome.after.shape == (64, 64, 3)
    assert entry.before.shape == entry.after.shape == (128, 128, 3)
    assert (entry.before == entry.zoom.before).all()


def test_an_image_that_is_only_upscaled_is_zoomed_into(webui):
    _, processed = webui.make({**DETAIL, "iterations": 3}, firstpass_image=object())
    assert processed.infotexts[0]["SGOOL zoom kept"] == "2 of 2"
    assert "SGOOL score before" not in processed.infotexts[0]


def test_after_detailers_inner_pass_and_an_unticked_generation_stay_as_they_are(webui):
    _, plain = webui.make()
    for p, processed in (
        webui.make(DETAIL, _ad_inner=True),
        webui.make(False),
        webui.make({"enabled": False, **DETAIL}),
    ):
        assert not changed(processed.images[0], plain.images[0]).any() and not p.comments


# What is handed to the WebUI's inpainting.


@pytest.fixture
def painted(monkeypatch):
    """The processing objects of the passes."""
    seen, paint = [], processing.process_images_inner

    def watched(p):
        if p.scripts is None:
            seen.append(p)
        return paint(p)

    monkeypatch.setattr(processing, "process_images_inner", watched)
    return seen


def test_the_pass_is_the_images_own(webui, painted):
    prompt = "a red car on a hill <lora:one:0.5>, snow"
    own = {"negative_prompt": "rain", "seed": 9, "subseed": 4, "steps": 6, "cfg_scale": 3.0, "scheduler": "Karras"}
    webui.make({**DETAIL, "zoom_strength": 0.45}, prompt=prompt, **own)
    first, second = painted
    for inner in painted:
        assert inner.scripts is None and inner.do_not_save_samples and inner.do_not_save_grid
        assert (inner.negative_prompt, inner.steps, inner.cfg_scale, inner.scheduler) == ("rain", 6, 3.0, "Karras")
        assert (inner.width, inner.height, inner.denoising_strength) == (64, 64, 0.45)
        assert (inner.inpainting_fill, inner.inpaint_full_res, inner.inpaint_full_res_padding) == (1, True, 0)
        assert inner.prompt.endswith("<lora:one:0.5>") and "<lora" not in inner.prompts[0].replace(inner.prompt, "")
    assert (first.seed, second.seed) == (9, 10) and (first.subseed, second.subseed) == (4, 5)


def test_region_prompts_are_painted_and_bring_their_own_networks(webui, painted):
    webui.make({**DETAIL, "region_prompt": "a frog <lora:two:1> [SEP] <lora:one:1> a boat"}, prompt="x <lora:one:0.5>")
    assert [inner.prompt for inner in painted] == [
        "a frog <lora:two:1><lora:one:0.5>",
        "<lora:one:1> a boat",
    ]
    assert extra_networks.loaded == {"lora": [["one", "0.5"]]}, "the image's own networks are at work again"


def test_networks_are_added_once():
    assert with_networks("a car", "x <lora:a:1> y <hypernet:b:0.5>") == "a car<lora:a:1><hypernet:b:0.5>"
    assert with_networks("a car <lora:a:0.2>", "x <lora:a:1>") == "a car <lora:a:0.2>"


@pytest.mark.parametrize(
    "region",
    [LEFT, Region(0, 0, 30, 20, 1.0), Region(30, 40, 34, 24, 1.0), Region(0, 0, 64, 64, 1.0), Region(5, 5, 7, 6, 1)],
)
def test_a_masks_soft_edge_ends_where_the_place_ends(region):
    """But for the image's border, where there is nothing to blend with."""
    import cv2

    area = Area.of(region, (64, 64))
    mask = np.array(area.mask)
    if area.blur:  # as the WebUI blurs it
        kernel = 2 * int(2.5 * area.blur + 0.5) + 1
        mask = cv2.GaussianBlur(cv2.GaussianBlur(mask, (kernel, 1), area.blur), (1, kernel), area.blur)
    assert not mask[~inside(region)].any()
    rows, columns = mask.max(1), mask.max(0)
    assert (rows[0] == 255) == (region.top == 0) and (columns[-1] == 255) == (region.left + region.width == 64)
    assert mask.max() == 255
    reach = int(2.5 * area.blur + 0.5)
    core = mask[region.top + 2 * reach : region.top + region.height - 2 * reach]
    assert core.size == 0 or (core.max(1) == 255).all()


# Nothing is left behind.


def everything() -> dict:
    """What a zoom could leave in the WebUI."""
    hijack = sd_hijack.model_hijack
    names = ("job", "job_no", "job_count", "textinfo", "sampling_step", "sampling_steps", "current_latent")
    return {
        "state": {name: getattr(shared.state, name) for name in names},
        "options": dict(shared.opts.data),
        "processing": [processing.opts, processing.state, processing.shared, processing.cmd_opts],
        "samplers": [sd_samplers_common.state, sd_samplers_common.shared, sd_samplers_common.store_latent],
        "hijack": [hijack.circular_enabled, hijack.comments, hijack.extra_generation_params],
        "networks": dict(extra_networks.loaded),
        "params.txt": list(processing.params_txt),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "k_diffusion": k_diffusion.sampling.torch,
        "free": [parameter.requires_grad for parameter in shared.sd_model.parameters()],
        "saved": len(sys_saved()),
    }


def sys_saved() -> list:
    from modules import images

    return images.saved


class Watch(scripts.Script):
    def __init__(self):
        self.seen = []

    def postprocess_image(self, p, pp, *args):
        self.seen.append(everything())


class Broken(Exception):
    pass


def break_(monkeypatch, how: str, at: int = 1) -> None:
    """Make the place number `at` end in this way."""
    paint, count = inpaint.Inpainter.paint, []

    def broken(self, *args):
        count.append(1)
        if len(count) == at + 1:
            if how == "interrupted":
                shared.state.interrupted = True
            elif how == "skipped":
                shared.state.skipped = True
            elif how == "memory":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            elif how == "bug":
                raise Broken("something")
            elif how == "nan":
                decode = processing.decode_latent_batch
                with monkeypatch.context() as patched:
                    patched.setattr(processing, "decode_latent_batch", lambda *a, **k: nan(decode(*a, **k)))
                    return paint(self, *args)
        return paint(self, *args)

    def nan(_):
        raise devices.NansException("A tensor with all NaNs was produced in VAE.")

    monkeypatch.setattr(inpaint.Inpainter, "paint", broken)


@pytest.mark.parametrize("how", ["success", "interrupted", "skipped", "nan", "memory", "bug"])
def test_afterwards_everything_is_as_before(webui, monkeypatch, how):
    break_(monkeypatch, how)
    first, last = Watch(), Watch()
    p, _ = webui.make(DETAIL, first=[first], last=[last], tiling=True, prompt="a red car <lora:a:1>")
    (before,), (after,) = first.seen, last.seen
    for key in before:
        assert after[key] == before[key], key
    assert before["hijack"][0] is True and before["hijack"][1] == ["of this pass"]
    assert len(processing.params_txt) == 1
    assert "Lora hashes" in p.extra_generation_params


TOLD = {
    "interrupted": "interrupted after 1 of 2 places",
    "skipped": "was skipped, so this is the image without it",
    "nan": "left the place 'a red car' as it was: The model paints it as NaN",
    "memory": "ran out of memory at the place 'a red car'",
    "bug": "zoom failed at the place 'a red car': Broken: something",
}


@pytest.mark.parametrize("how", TOLD)
def test_a_failure_is_told_and_what_was_done_stays(webui, monkeypatch, how):
    _, plain = webui.make()
    break_(monkeypatch, how)
    p, processed = webui.make(DETAIL)
    differs = changed(processed.images[0], plain.images[0])
    assert not (differs & ~inside(LEFT)).any()
    assert differs.any() == (how != "skipped")
    (sentence,) = p.comments
    assert TOLD[how] in sentence and processed.infotexts[0]["SGOOL note"] == sentence
    assert processed.infotexts[0].get("SGOOL zoom kept") == (None if how == "skipped" else "1 of 2")
    assert bool(webui.errors.reported) == (how == "bug")


@pytest.mark.parametrize(("how", "images"), [("interrupted", 2), ("skipped", 4)])
def test_who_stops_a_batchs_zoom_gets_its_images_whole(webui, monkeypatch, how, images):
    own = {"batch_size": 2, "n_iter": 2}
    _, plain = webui.make(**own)
    shared.state.interrupted = False
    break_(monkeypatch, how, at=0)
    p, processed = webui.make(DETAIL, **own)
    assert len(processed.images) == images
    assert all(not changed(processed.images[i], plain.images[i]).any() for i in range(2))
    notes = [text.get("SGOOL note", "") for text in processed.infotexts]
    assert all(how in note for note in notes[:2]) and not any(notes[2:])
    assert all(p.saved)


def test_an_interrupt_of_the_whole_image_ends_the_zoom_too(webui, monkeypatch):
    from sgool.webui.backend import WebuiBackend

    decode, count = WebuiBackend.decode, []

    def stopped(self, latent):
        count.append(1)
        shared.state.interrupted |= len(count) == 3
        return decode(self, latent)

    monkeypatch.setattr(WebuiBackend, "decode", stopped)
    _, processed = webui.make({**DETAIL, "iterations": 3})
    assert "SGOOL zoom kept" not in processed.infotexts[0]
    assert "Interrupted" in processed.infotexts[0]["SGOOL note"]


def test_what_is_stopped_before_it_is_only_after_this_image(webui):
    """The WebUI's "don't interrupt in the middle": the image at hand is still finished, with its zoom."""

    class Stops(scripts.Script):
        def post_sample(self, p, ps, *args):
            shared.state.stopping_generation = True

    _, processed = webui.make(DETAIL, first=[Stops()], n_iter=2)
    assert [text["SGOOL zoom kept"] for text in processed.infotexts] == ["2 of 2"]


def test_a_failure_before_the_first_place_is_told(webui, monkeypatch):
    for error, told in (
        (SgoolError("No such luck."), "does not zoom into the image: No such luck."),
        (Broken("x"), "x"),
    ):
        monkeypatch.setattr(zooming, "zoom_in", lambda *args, error=error: (_ for _ in ()).throw(error))
        _, plain = webui.make()
        p, processed = webui.make(DETAIL)
        assert not changed(processed.images[0], plain.images[0]).any()
        (sentence,) = p.comments
        assert told in sentence and processed.infotexts[0]["SGOOL note"] == sentence


def test_that_no_place_is_found_is_said(webui, monkeypatch):
    p, processed = webui.make({**DETAIL, "zoom_largest": 0.3})
    (sentence,) = p.comments
    assert "all places are too large" in sentence and processed.infotexts[0]["SGOOL zoom kept"] == "0 of 0"
    monkeypatch.setattr("sgool.zoom.find.regions_of", lambda *args: [])
    p, _ = webui.make(DETAIL)
    assert list(p.comments) == ["SGOOL's zoom found no place to paint again."]
    p, _ = webui.make(DETAIL, prompt=" ")
    assert "needs a prompt" in next(iter(p.comments))


# Masks.


def drawn(left: int, top: int, right: int, bottom: int, size: int = 64) -> Image.Image:
    image = Image.new("L", (size, size), 0)
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return image


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def real_places(monkeypatch):
    """Of a mask, its own parts."""
    from sgool.saliency.regions import find_regions

    monkeypatch.setattr(
        "sgool.zoom.find.regions_of",
        lambda interest, settings: [
            Candidate(region)
            for region in find_regions(interest, max_regions=4, threshold=0.5, min_size=0.2, padding=0.0)
        ],
    )


def test_the_apis_mask_says_where(webui, real_places):
    _, plain = webui.make()
    for text in (encoded(drawn(8, 8, 24, 24)), "data:image/jpeg;base64," + encoded(drawn(8, 8, 24, 24), "JPEG")):
        _, processed = webui.make({**DETAIL, "zoom_by": "mask", "zoom_mask": text})
        differs = changed(processed.images[0], plain.images[0])
        assert differs.any() and not (differs & ~inside(Region(7, 7, 19, 19, 1))).any()
        assert processed.infotexts[0]["SGOOL Zoom on"] == "mask"
        assert "mask" not in {key.lower() for key in processed.infotexts[0]}


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (7, "zoom_mask must be a PNG or JPEG file in base64"),
        ("%%%", "zoom_mask is not base64"),
        (base64.b64encode(b"GIF89a").decode(), "zoom_mask is neither a PNG nor a JPEG file"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\nxxxx").decode(), "zoom_mask is a picture that cannot be read"),
        (encoded(Image.new("L", (32, 64), 255)), "The mask has 32x64 pixels, but the image 64x64"),
        (encoded(Image.new("L", (64, 64), 0)), "The mask is empty"),
        (None, "needs a mask"),
    ],
)
def test_a_wrong_mask_is_said_and_the_image_comes(webui, mask, told):
    _, plain = webui.make()
    p, processed = webui.make({**DETAIL, "zoom_by": "mask", "zoom_mask": mask})
    assert not changed(processed.images[0], plain.images[0]).any()
    (sentence,) = p.comments
    assert told in sentence and processed.infotexts[0]["SGOOL note"] == sentence


def test_sgool_looks_where_the_api_says(webui):
    look = {"saliency": "mask", "iterations": 1, "steps": 2, "cutouts": 1, "zoom": False}
    p, processed = webui.make({**look, "look_at": encoded(drawn(8, 8, 24, 24))})
    assert processed.infotexts[0]["SGOOL Saliency detector"] == "mask" and not p.comments
    (entry,) = next(iter(gallery.runs.values()))
    outcome = entry.outcome
    region = max(outcome.regions, key=lambda each: each.mass)
    assert outcome.saliency[16, 16] == 1 and outcome.saliency[40, 40] == 0
    assert region.top <= 8 and region.left <= 8 and region.top + region.height < 40


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (None, "there is none: paint one in img2img, Inpaint."),
        ("%%%", "look_at is not base64"),
        (encoded(Image.new("L", (32, 64), 255)), "The mask has 32x64 pixels, but the image 64x64"),
        (encoded(Image.new("L", (64, 64), 0)), "The mask is empty"),
    ],
)
def test_without_a_mask_that_fits_it_looks_nowhere_and_the_image_comes(webui, mask, told):
    _, plain = webui.make()
    p, processed = webui.make({"saliency": "mask", "iterations": 1, "steps": 2, "cutouts": 1, "look_at": mask})
    assert not changed(processed.images[0], plain.images[0]).any()
    (sentence,) = p.comments
    assert told in sentence and processed.infotexts[0]["SGOOL note"] == sentence


def test_a_mask_to_look_at_goes_with_its_detector():
    with pytest.raises(SgoolError, match="look_at goes with saliency mask"):
        masks.given(({"look_at": encoded(drawn(0, 0, 9, 9))},), Settings())


def test_a_mask_is_no_file_of_any_size(monkeypatch):
    settings = Settings(zoom=True, zoom_by="mask")
    monkeypatch.setattr(masks, "LARGEST", 100)
    with pytest.raises(SgoolError, match="larger"):
        masks.given(({"zoom_mask": "A" * 1000},), settings)
    monkeypatch.setattr(masks, "LARGEST", 10**6)
    monkeypatch.setattr(masks, "MOST_PIXELS", 63 * 64)
    with pytest.raises(SgoolError, match="too many"):
        masks.given(({"zoom_mask": encoded(drawn(0, 0, 9, 9))},), settings)
    with pytest.raises(SgoolError, match="goes with"):
        masks.given(({"zoom_mask": encoded(drawn(0, 0, 9, 9))},), settings.changed(zoom_by="attention"))


def test_without_a_mask_the_whole_image_is_improved_all_the_same(webui):
    _, processed = webui.make({**DETAIL, "zoom_by": "mask", "iterations": 1})
    text = processed.infotexts[0]
    assert "needs a mask" in text["SGOOL note"] and "SGOOL score after" in text and "SGOOL zoom kept" not in text


def inpainting(mask: Image.Image, **own) -> dict:
    nmask = (
        torch.from_numpy(np.array(mask.resize((8, 8), Image.Resampling.NEAREST))).float()[None].repeat(4, 1, 1) / 255
    )
    latent = torch.zeros(1, 4, 8, 8)
    return {"init_latent": latent, "mask": 1 - nmask, "nmask": nmask, "image_mask": mask, **own}


@pytest.mark.parametrize("overlay", [True, False], ids=["overlay", "latent mask"])
def test_where_the_user_inpaints_nothing_else_is_painted(webui, painted, overlay):
    """The right place is outside of the mask, and the left one half."""
    mask = drawn(0, 0, 16, 64)
    own = inpainting(mask, **({"mask_for_overlay": mask} if overlay else {}))
    _, plain = webui.make(kind="Img2Img", **own)
    _, processed = webui.make(DETAIL, kind="Img2Img", **own)
    assert len(painted) == 1
    differs = changed(processed.images[0], plain.images[0])
    assert differs.any() and not (differs & ~inside(Region(20, 4, 24, 12 if overlay else 17, 1))).any()


def test_the_users_mask_is_the_zooms(webui, real_places):
    mask = drawn(40, 8, 60, 28)
    webui.make({**DETAIL, "zoom_by": "mask"}, kind="Img2Img", **inpainting(mask, mask_for_overlay=mask))
    (place,) = zooms()[0].places
    assert place.region.left >= 38 and place.region.top + place.region.height <= 30


def test_with_only_masked_the_mask_is_that_of_the_part_at_hand():
    mask = drawn(32, 32, 48, 64, size=128)
    p = SimpleNamespace(image_mask=mask, mask_for_overlay=mask, paste_to=(32, 32, 32, 32), overlay_images=[mask])
    found = masks.of_user(p, (64, 64))
    assert found.shape == (64, 64) and found[:, :30].min() == 1 and found[:, 34:].max() == 0
    assert torch.equal(masks.of_request(p, mask, (64, 64)), found)
    assert masks.of_request(p, drawn(0, 0, 9, 9, 50), (64, 64)).shape == (50, 50)


# SGOOL inside a place.


def test_updates_inside_a_place(webui, monkeypatch):
    """Each update is found better than all before it."""
    scores = itertools.count(0.1, 0.01)
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: next(scores))
    own = {**DETAIL, "zoom_places": 1, "learning_rate": 0.3, "warmup": 0}
    _, plain = webui.make()
    _, painted = webui.make(own)
    told = []
    monkeypatch.setattr(progress, "tell", told.append)
    p, processed = webui.make({**own, "zoom_iterations": 3})
    assert not p.comments
    differs = changed(processed.images[0], plain.images[0])
    assert not (differs & ~inside(LEFT)).any()
    assert changed(processed.images[0], painted.images[0]).any()
    assert any("SGOOL zoom 1/1: a red car, update 3/3, painted 0." in text for text in told)


def test_without_gradients_places_are_only_painted_again(webui, monkeypatch):
    _, painted = webui.make(DETAIL)
    monkeypatch.setattr("sgool.webui.unsupported.reason", lambda p: "SGOOL needs gradients.")
    p, processed = webui.make({**DETAIL, "zoom_iterations": 3})
    assert not changed(processed.images[0], painted.images[0]).any()
    assert list(p.comments) == ["Places are only painted again: SGOOL needs gradients."]


def test_updates_that_run_out_of_memory_try_again_with_less(webui, monkeypatch):
    from sgool.webui import refine

    generate, count = refine.generate, []

    def broken(*args):
        count.append(1)
        if len(count) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return generate(*args)

    monkeypatch.setattr(refine, "generate", broken)
    proofs = []
    monkeypatch.setattr(WebuiBackend, "prove", lambda self, scale: proofs.append(self.memory))
    p, processed = webui.make({**DETAIL, "zoom_places": 1, "zoom_iterations": 1})
    assert list(p.comments) == ["SGOOL ran out of memory and tries again with memory 'low'."]
    assert len(proofs) == len(set(proofs)) == 2, "with less memory the gradient is made otherwise"
    assert processed.infotexts[0]["SGOOL zoom kept"] == "1 of 1"


# What is seen of it.


def test_the_bar_says_which_place_and_never_goes_back(webui, monkeypatch):
    seen, count = [], ZoomBar.count

    def watch(self, step):
        count(self, step)
        state = shared.state
        seen.append((state.sampling_step, state.sampling_steps, state.job_no, state.job_count, state.textinfo))

    monkeypatch.setattr(ZoomBar, "count", watch)
    p, _ = webui.make({**DETAIL, "zoom_places": 4}, batch_size=2, steps=10)
    steps = [each[0] for each in seen]
    assert steps == sorted(steps) and steps[0] >= p.steps and steps[-1] == seen[-1][1]
    assert len(set(steps)) >= 8
    assert {each[2:4] for each in seen} == {(0, 1)}
    assert list(dict.fromkeys(each[4] for each in seen)) == [
        f"SGOOL image {i}/2, zoom {j}/2: a red car" for i in (1, 2) for j in (1, 2)
    ]


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    api.add_routes(object(), app)
    return TestClient(app)


def test_the_view_gets_places_and_their_pictures(webui, client, monkeypatch):
    shared.opts.data.update(sgool_return_before=True, sgool_return_saliency=True, sgool_return_loss=True)
    p, processed = webui.make(DETAIL, prompt="<b>car</b>")
    (number,) = json.loads(json.dumps(p.extra_generation_params))["SGOOL run"]
    (image,) = client.get(f"/sgool/v1/runs/{number}").json()["images"]
    assert set(image) == {"zoom", "finished", "phrases"} and image["zoom"]["kept"] == 2
    first = image["zoom"]["places"][0]
    assert first["verdict"] == "kept" and first["region"] == {"left": 4, "top": 20, "width": 24, "height": 24}
    assert first["before"] is first["after"] is None and first["pictures"] == ["before", "after"]
    root = f"/sgool/v1/runs/{number}/0"
    for name in ("before", "after", "saliency", "place-1-before", "place-2-after"):
        assert client.get(f"{root}/{name}.png").content.startswith(b"\x89PNG")
    for name in ("loss", "place-0-before", "place-3-after", "place-1-x"):
        assert client.get(f"{root}/{name}.png").status_code == 404
    crop = Image.open(io.BytesIO(client.get(f"{root}/place-1-before.png").content))
    assert crop.size == (264, 264)
    assert [image.size for image in processed.images] == [(64, 64), (64, 64), (256, 256)]
    assert "SGOOL" not in str(processed.infotexts[1])


def test_without_a_zoom_the_view_is_told_of_none(webui, client):
    p, _ = webui.make({})
    (number,) = list.copy(p.extra_generation_params["SGOOL run"])
    (image,) = client.get(f"/sgool/v1/runs/{number}").json()["images"]
    assert image["zoom"] is None and "score_before" in image


def test_an_images_transparency_is_kept(webui, monkeypatch):
    """Another extension may have cut it out."""

    class Cuts(scripts.Script):
        def postprocess_image(self, p, pp, *args):
            pp.image = pp.image.convert("RGBA")
            pp.image.putalpha(drawn(0, 0, 40, 64))

    _, processed = webui.make(DETAIL, first=[Cuts()])
    assert processed.images[0].getchannel("A").tobytes() == drawn(0, 0, 40, 64).tobytes()


def test_settings_that_only_the_zoom_uses_are_written_down(webui):
    own = {**DETAIL, "method": "none", "region_prompt": "a frog"}
    p, processed = webui.make(own)
    assert processed.infotexts[0]["SGOOL Region prompt"] == "a frog"
    assert not [sentence for sentence in p.comments if "do nothing" in sentence and "Region prompt" in sentence]
    _, processed = webui.make({"zoom_places": 5})
    assert "SGOOL Zoom places" not in processed.infotexts[0]


def test_a_place_is_cut_out_of_what_the_places_before_it_left(webui, painted):
    paint = zooming.WebuiPaint
    seen = []

    class Seen(paint):
        def __call__(self, image, place: Place, number):
            seen.append(image)
            return super().__call__(image, place, number)

    zooming.WebuiPaint = Seen
    try:
        webui.make(DETAIL)
    finally:
        zooming.WebuiPaint = paint
    assert not torch.equal(*seen)
    assert (np.array(painted[1].init_images[0]) == (seen[1][0].movedim(0, 2).numpy() * 255).round()).all()


def test_controlnet_has_no_part_in_a_place(webui):
    """As ControlNet does, which takes its hold off the UNet only after the last image."""
    p, _ = webui.make()
    unet, calls = p.sd_model.model.diffusion_model, []
    plain = unet.forward

    def hinted(*args, **options):
        calls.append(1)
        return plain(*args, **options)

    unet._original_forward, unet.forward = plain, hinted
    try:
        webui.make()
        alone = len(calls)
        _, processed = webui.make(DETAIL)
        assert unet.forward is hinted
    finally:
        del unet.forward, unet._original_forward
    assert processed.infotexts[0]["SGOOL zoom kept"] == "2 of 2"
    assert len(calls) == 2 * alone > 0
