"""The phrases of the prompt in the fake WebUI: measured after a run, told to the page and the API, drawn as veils; and
a mask says where to look.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from modules import shared
from PIL import Image
from test_webui_zoom import DETAIL, drawn, encoded, inpainting, pixels, two_places  # noqa: F401  a fixture

from sgool import phrases as core
from sgool.detect import MaskDetector
from sgool.errors import SgoolError
from sgool.pictures import to_tensor
from sgool.webui import api, gallery, phrases

PROMPT = "a red car, (a small frog:1.2)"
BEST = {"iterations": 0, "best": True}
IMPROVED = {"sampler": "bdia", "start": "seed", "steps": 5}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    api.add_routes(object(), app)
    return TestClient(app)


def last(client, p):
    """The run as its page asks for it, and its address."""
    (number,) = json.loads(json.dumps(p.extra_generation_params))["SGOOL run"]
    return client.get(f"/sgool/v1/runs/{number}").json()["images"], f"/sgool/v1/runs/{number}"


def test_a_run_tells_how_much_of_each_phrase_its_images_show(webui, client, critics):
    p, processed = webui.make(IMPROVED, prompt=PROMPT, steps=2, batch_size=2)
    images, _ = last(client, p)
    told = json.loads(json.dumps(p.extra_generation_params))["SGOOL phrases"]
    for entry, image, own in zip(gallery.runs[next(iter(gallery.runs))], images, told, strict=True):
        expected = core.measure([critics.selector], [to_tensor(entry.before), to_tensor(entry.after)], PROMPT)
        assert [each["phrase"] for each in own] == ["a red car", "a small frog"]
        for each, found in zip(own, expected.found, strict=True):
            assert each["before"] == pytest.approx(found.before, abs=2e-3)
            assert each["after"] == pytest.approx(found.after, abs=2e-3)
        assert [{**each, "maps": ["before", "after"]} for each in own] == image["phrases"]["found"]
        assert image["phrases"]["measured_by"] == "embedded" and image["phrases"]["note"] == ""
        assert image["finished"] is None
    assert any(each["before"] != each["after"] for own in told for each in own)
    assert not any("SGOOL phrases" in text for text in processed.infotexts)
    assert "SGOOL phrases" not in processed.infotext(p, 0)


def test_a_zooms_images_are_measured_as_they_come_out(webui, client, monkeypatch):
    seen = []
    monkeypatch.setattr(core, "measure", lambda critics, images, prompt: seen.append(images) or core.Phrases())
    _, processed = webui.make(DETAIL, prompt=PROMPT)
    _, plain = webui.make(prompt=PROMPT)
    ((before, after),) = seen
    assert torch.equal(before, to_tensor(pixels(plain.images[0])))
    assert torch.equal(after, to_tensor(pixels(processed.images[0])))


def test_an_image_that_is_only_scored_has_its_score_its_rank_and_its_phrases(webui, client, critics):
    p, processed = webui.make({**BEST, "best_shown": 3}, prompt=PROMPT, batch_size=2, n_iter=2, steps=2)
    images, root = last(client, p)
    assert len(images) == 3
    for i, image in enumerate(images):
        assert set(image) == {"zoom", "finished", "phrases"} and image["zoom"] is None
        text = processed.infotexts[i]
        assert image["finished"]["rank"] == f"{i + 1} of 4" and f"SGOOL rank: {i + 1} of 4" in text
        assert f"{image['finished']['score']:.4f}" == text.split("SGOOL score: ")[1].split(",")[0]
        answer = client.get(f"{root}/{i}/after.png").content
        assert np.array_equal(np.array(Image.open(io.BytesIO(answer))), pixels(processed.images[i]))
        alone = core.measure([critics.selector], [to_tensor(pixels(processed.images[i]))], PROMPT)
        for each, found in zip(image["phrases"]["found"], alone.found, strict=True):
            assert each["before"] == each["after"] == pytest.approx(found.after, abs=2e-3)
        for name in ("before", "saliency", "loss"):
            assert client.get(f"{root}/{i}/{name}.png").status_code == 404
    told = p.extra_generation_params["SGOOL phrases"]
    assert [own is None for own in list.copy(told)] == [False, False, False, True]


def test_an_image_that_is_only_scored_gives_no_more_pictures(webui):
    for name in ("before", "saliency", "loss"):
        shared.opts.data.update({f"sgool_save_{name}": True, f"sgool_return_{name}": True})
    _, processed = webui.make(BEST, prompt=PROMPT, batch_size=2)
    assert len(processed.images) == 2 and not webui.images.saved


def test_where_scoring_fails_the_view_has_what_was_scored(webui, client, monkeypatch):
    from sgool.guidance.clip import Clip

    scores = iter([0.4, float("nan")])
    monkeypatch.setattr(Clip, "judge", lambda self, image, text: next(scores))
    p, _ = webui.make(BEST, prompt=PROMPT, batch_size=3)
    images, _ = last(client, p)
    assert [image["finished"] for image in images] == [{"score": 0.4, "rank": "", "scored_by": "embedded"}]
    assert list.copy(p.extra_generation_params["SGOOL score"]) == ["0.4000", None, None]  # by which the page finds it


def test_switched_off_nothing_is_measured(webui, client, monkeypatch):
    monkeypatch.setattr(core, "measure", lambda *args: pytest.fail("it was"))
    p, _ = webui.make({"show_phrases": False}, prompt=PROMPT)
    images, _ = last(client, p)
    assert images[0]["phrases"] is None and "SGOOL phrases" not in p.extra_generation_params


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), SgoolError("No network."), ValueError("odd")]
)
def test_a_failure_costs_nothing_but_a_line_in_the_console(webui, client, monkeypatch, capsys, error):
    def fails(*args):
        raise error

    _, plain = webui.make({}, prompt=PROMPT)
    capsys.readouterr()
    monkeypatch.setattr(core, "measure", fails)
    p, processed = webui.make({}, prompt=PROMPT)
    assert torch.equal(processed.images[0], plain.images[0]) and not p.comments
    assert str(error).rstrip(".") in capsys.readouterr().err
    assert last(client, p)[0][0]["phrases"] is None
    assert bool(webui.errors.reported) == (type(error) is ValueError)


def test_what_could_not_be_measured_is_said_in_the_console_and_on_the_page(webui, client, monkeypatch, capsys):
    monkeypatch.setattr(core, "measure", lambda *args: core.Phrases(note="It cannot tell phrases."))
    p, _ = webui.make({}, prompt=PROMPT, batch_size=2)
    assert capsys.readouterr().err.count("SGOOL: It cannot tell phrases.") == 1
    assert last(client, p)[0][0]["phrases"] == {"found": [], "measured_by": "", "note": "It cannot tell phrases."}


def test_who_interrupts_is_not_kept_waiting(webui, monkeypatch):
    measure = core.measure

    def interrupted(*args):
        shared.state.interrupted = True
        return measure(*args)

    monkeypatch.setattr(core, "measure", interrupted)
    p, processed = webui.make({}, prompt=PROMPT, batch_size=2)
    told = list.copy(p.extra_generation_params["SGOOL phrases"])
    assert told[0] and told[1] is None and len(processed.images) == 2


def test_the_progress_bar_is_afterwards_as_it_was(webui, monkeypatch):
    told, measure = [], core.measure
    monkeypatch.setattr(core, "measure", lambda *args: told.append(shared.state.textinfo) or measure(*args))
    before = shared.state.job, shared.state.textinfo
    webui.make({"iterations": 1}, prompt=PROMPT)
    assert told == ["SGOOL looks for the phrases of the prompt"]
    assert (shared.state.job, shared.state.textinfo) == before


def test_a_run_leaves_the_random_numbers_alone(webui):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    webui.make(BEST, prompt=PROMPT)
    assert torch.equal(torch.get_rng_state(), before)


def veils(client, root, index=0, number=1):
    """The maps of a phrase, uint8 RGBA."""
    for when in ("before", "after"):
        answer = client.get(f"{root}/{index}/phrase-{number}-{when}.png")
        assert answer.headers["content-type"] == "image/png"
        yield answer.content


def test_maps_are_small_pictures_to_lay_over_the_image(webui, client):
    p, _ = webui.make(IMPROVED, prompt=PROMPT, steps=2)
    _, root = last(client, p)
    for number in (1, 2):
        for content in veils(client, root, number=number):
            picture = Image.open(io.BytesIO(content))
            assert picture.mode == "RGBA" and picture.size == (512, 512)
            assert len(content) < 150_000
    for wrong in ("phrase-0-before", "phrase-3-after", "phrase-1-later", "phrase--1-after", "phrase-1-before.x"):
        assert client.get(f"{root}/0/{wrong}.png").status_code == 404


def test_who_has_not_signed_in_sees_no_map(webui):
    app = FastAPI()
    app.auth, app.tokens = {"me": "secret"}, {"right": "me"}  # type: ignore[attr-defined]
    api.add_routes(object(), app)
    client = TestClient(app)
    p, _ = webui.make({}, prompt=PROMPT)
    (number,) = list.copy(p.extra_generation_params["SGOOL run"])
    assert client.get(f"/sgool/v1/runs/{number}/0/phrase-1-after.png").status_code == 401
    client.cookies.set("access-token", "right")
    assert client.get(f"/sgool/v1/runs/{number}/0/phrase-1-after.png").status_code == 200


def test_a_veil_is_clear_where_the_phrase_is_and_dark_elsewhere():
    heat = np.zeros((16, 32), np.float32)
    heat[4:8, 4:8] = 1
    shown = phrases.veil(heat, (64, 128))
    assert shown.shape == (256, 512, 4)
    inside, outside = shown[92:100, 92:100], shown[200:, 300:]
    assert inside[..., 3].max() < 30 and (outside[..., 3] == round(255 * phrases.DARKEST)).all()
    orange = (shown[..., :3] == phrases.MARK).all(-1)
    rows, columns = np.nonzero(orange)
    assert 50 < rows.min() < 80 and 110 < rows.max() < 140 and 50 < columns.min() < 80 and 110 < columns.max() < 140
    nothing = phrases.veil(np.zeros((16, 16), np.float32), (64, 64))
    assert not nothing[..., :3].any() and (nothing[..., 3] == round(255 * phrases.DARKEST)).all()


def test_the_maps_that_are_kept_take_little_memory():
    heat = torch.zeros(768, 512)
    heat[300:400, 100:200] = 1
    small = phrases._small(heat)
    assert small.shape == (128, 85) and small.dtype == torch.float16
    assert float(small[58, 25]) == pytest.approx(1, abs=0.02) and float(small[10, 10]) == 0
    assert phrases._small(None) is None and torch.equal(phrases._small(heat[:64, :64]), heat[:64, :64].half())


def test_a_large_picture_is_measured_smaller(webui, monkeypatch):
    seen = []
    monkeypatch.setattr(core, "measure", lambda critics, images, prompt: seen.extend(images) or core.Phrases())
    monkeypatch.setattr(phrases, "MEASURED_SIDE", 48)
    webui.make({}, prompt=PROMPT, height=96)
    assert seen and {tuple(image.shape) for image in seen} == {(1, 3, 72, 48)}


# A mask that says where to look.


@pytest.fixture
def looked(monkeypatch):
    """The masks of the detectors that took part, in turn."""
    seen = []
    of = MaskDetector.of

    def remembered(self, prompt):
        seen.append(self.mask)
        return of(self, prompt)

    monkeypatch.setattr(MaskDetector, "of", remembered)
    return seen


def regions():
    (entry,) = gallery.runs[next(reversed(gallery.runs))]
    return entry.regions


def test_the_users_mask_says_where_to_look(webui, looked):
    mask = drawn(32, 8, 56, 24)
    own = inpainting(mask, mask_for_overlay=mask)
    webui.make({"saliency": "mask"}, kind="Img2Img", **own)
    assert looked and all(each.shape == (64, 64) and each[8:24, 32:56].min() == 1 for each in looked)
    (region,) = regions()
    assert region.left >= 24 and region.top + region.height <= 32


def test_a_zoom_looks_where_the_mask_says(webui, looked):
    """The image is twice as large by then; updates inside a place see its own part of the mask."""
    own = {**DETAIL, "zoom_iterations": 1, "saliency": "mask", "saliency_weight": 0.5}
    _, processed = webui.make({**own, "look_at": encoded(drawn(4, 20, 28, 44))}, enable_hr=True)
    assert processed.infotexts[0]["SGOOL zoom kept"] == "2 of 2"
    assert looked[0].shape == (128, 128) and looked[0][44:84, 12:52].min() > 0.9
    inside = [each for each in looked if each.shape != (128, 128)]
    assert inside and all(each.max() > 0.5 for each in inside)
