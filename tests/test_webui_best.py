"""The best of a batch in the fake WebUI, on the embedded model."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from modules import images
from PIL import Image

from sgool.generate import Critics
from sgool.guidance.clip import Clip
from sgool.needs import needs
from sgool.pictures import to_tensor
from sgool.settings import Settings
from sgool.webui import best
from sgool.webui.records import Run, Score
from sgool.webui.script import SgoolScript, score_in_name

ONLY = {"iterations": 0, "best": True}
PROMPT = "a red car"
EIGHT = {"prompt": PROMPT, "batch_size": 4, "n_iter": 2, "steps": 2}


def judged(critics: Critics, image) -> float:
    """The selector's score of what the fake WebUI shows, as its file would have it."""
    pixels = (255 * (image.float() / 2 + 0.5).clamp(0, 1)).byte()
    return critics.selector.judge(pixels[None].float() / 255, PROMPT)


def fields(text: str, key: str) -> str:
    (found,) = re.findall(rf"SGOOL {key}: ([^,]*)", text)
    return found


def test_the_best_come_first_and_all_lists_follow(webui, critics):
    plain, originals = webui.make(**EIGHT)
    p, processed = webui.make(ONLY, **EIGHT)
    scores = [judged(critics, image) for image in originals.images]
    order = sorted(range(8), key=lambda i: -scores[i])
    assert order != list(range(8))
    assert all(torch.equal(processed.images[place], originals.images[i]) for place, i in enumerate(order))
    assert processed.all_seeds == [plain.all_seeds[i] for i in order] and processed.seed == processed.all_seeds[0]
    for place, i in enumerate(order):
        text = processed.infotexts[place]
        assert f"Seed: {plain.all_seeds[i]}," in text and fields(text, "rank") == f"{place + 1} of 8"
        assert float(fields(text, "score")) == pytest.approx(scores[i], abs=1e-4)
    params = p.extra_generation_params
    assert params["SGOOL rank"] == [f"{place} of 8" for place in range(1, 9)]
    assert params["SGOOL score"] == [fields(text, "score") for text in processed.infotexts]
    assert params["SGOOL scored by"] == ["embedded"] * 8
    assert processed.info == processed.infotexts[0]
    assert plain.all_seeds == p.all_seeds


def test_only_the_best_are_shown(webui):
    _, everything = webui.make(ONLY, **EIGHT)
    p, processed = webui.make({**ONLY, "best_shown": 3}, **EIGHT)
    assert len(processed.images) == len(processed.infotexts) == 3
    assert all(torch.equal(*pair) for pair in zip(processed.images, everything.images, strict=False))
    shown = [text.replace("SGOOL Best images shown: 3, ", "") for text in processed.infotexts]
    assert shown == everything.infotexts[:3]
    assert all(p.saved) and not images.saved


def test_what_is_not_shown_is_not_saved_where_that_is_asked_for(webui):
    p, processed = webui.make({**ONLY, "best_shown": 3, "best_save_all": False}, **EIGHT)
    assert p.saved == [False] * 8 and p.do_not_save_samples is False and p.do_not_save_grid is False
    assert [text for _, _, text in images.saved] == processed.infotexts
    for (_, picture, _), shown in zip(images.saved, processed.images, strict=True):
        exact = (255 * (shown.float() / 2 + 0.5).clamp(0, 1)).byte().permute(1, 2, 0).numpy()
        assert np.array_equal(np.array(picture), exact)


def test_who_saves_nothing_gets_nothing_saved(webui):
    p, _ = webui.make({**ONLY, "best_shown": 3, "best_save_all": False}, do_not_save_samples=True, **EIGHT)
    assert not images.saved and p.do_not_save_samples is True


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "ran out of memory while it scored the images, so they"),
        (ValueError("odd"), "could not score the images, so they stay in their order: ValueError: odd"),
    ],
)
def test_a_failure_leaves_the_gallery_as_it_was(webui, monkeypatch, error, told):
    plain, originals = webui.make(**EIGHT)
    calls = []

    def judge(self, image, text):
        calls.append(text)
        if len(calls) == 3:
            raise error
        return 0.5

    monkeypatch.setattr(Clip, "judge", judge)
    p, processed = webui.make({**ONLY, "best_shown": 2, "best_save_all": False}, **EIGHT)
    assert len(calls) == 3
    assert all(torch.equal(*pair) for pair in zip(processed.images, originals.images, strict=True))
    assert processed.all_seeds == plain.all_seeds
    (sentence,) = p.comments
    assert told in sentence
    assert len(images.saved) == 8  # nothing is lost
    assert "SGOOL rank" not in p.extra_generation_params and sentence in p.extra_generation_params["SGOOL note"][7]


def test_a_score_that_is_no_number_ranks_nothing(webui, monkeypatch):
    monkeypatch.setattr(Clip, "judge", lambda self, image, text: float("nan"))
    p, processed = webui.make(ONLY, **EIGHT)
    assert processed.all_seeds == list(range(1, 9)) and "not a finite number" in next(iter(p.comments))


def test_weights_that_cannot_be_had_are_told_before_the_first_image(webui, monkeypatch):
    from sgool.errors import SgoolError
    from sgool.webui import models

    def prepare(settings):
        raise SgoolError("Cannot download it.")

    monkeypatch.setattr(models, "prepare", prepare)
    plain, _ = webui.make(**EIGHT)
    p, processed = webui.make({**ONLY, "best_shown": 1}, **EIGHT)
    assert list(p.comments) == ["SGOOL is not used: Cannot download it."]
    assert len(processed.images) == 8 and processed.all_seeds == plain.all_seeds


def test_an_interrupt_ranks_what_there_is(webui, monkeypatch):
    score = best.score

    def interrupt(p, run, image):
        score(p, run, image)
        if len(run.made) == 4:
            webui.shared.state.interrupted = True

    monkeypatch.setattr(best, "score", interrupt)
    _, processed = webui.make(ONLY, **EIGHT)
    scores = [float(fields(text, "score")) for text in processed.infotexts]
    assert len(processed.images) == 4 and scores == sorted(scores, reverse=True)
    assert [fields(text, "rank") for text in processed.infotexts] == [f"{place} of 4" for place in range(1, 5)]
    assert sorted(processed.all_seeds[:4]) == [1, 2, 3, 4] and processed.all_seeds[4:] == [5, 6, 7, 8]


def test_only_the_best_of_each_batch_are_improved(webui, critics):
    """Also where the gallery is not sorted: the two are apart."""
    plain, originals = webui.make(**EIGHT)
    scores = [critics.selector.judge((image / 2 + 0.5).clamp(0, 1)[None], PROMPT) for image in originals.images]
    p, _ = webui.make({"best_improved": 2, "learning_rate": 0.3, "warmup": 0, "start": "seed", "steps": 5}, **EIGHT)
    latents, own = torch.cat(p.latents), torch.cat(plain.latents)
    params = p.extra_generation_params
    changed = 0
    for batch in (range(4), range(4, 8)):
        order = sorted(batch, key=lambda i: -scores[i])
        for place, i in enumerate(order, 1):
            told, score = params["SGOOL rank before"][i].split(", ")
            assert told == f"{place} of 4" and float(score) == pytest.approx(scores[i], abs=1e-3)
            assert (params["SGOOL score before"][i] is not None) == (place <= 2)
            if place > 2:
                assert torch.equal(latents[i], own[i])
            changed += not torch.equal(latents[i], own[i])
    assert changed
    assert not p.comments and p.all_seeds == list(range(1, 9))


def test_interrupted_in_the_choice_no_image_changes(webui, monkeypatch):
    plain, _ = webui.make(**EIGHT)

    def judge(self, image, text):
        webui.shared.state.interrupted = True
        return 0.5

    monkeypatch.setattr(Clip, "judge", judge)
    p, _ = webui.make({"best_improved": 2}, **EIGHT)
    assert torch.equal(torch.cat(p.latents), plain.latents[0])
    assert "SGOOL was interrupted, so this is the image without it." in next(iter(p.comments))


def test_with_hires_fix_and_zoom_the_finished_image_is_scored(webui, critics):
    zoom = {"zoom": True, "zoom_judge": False, "zoom_places": 1, "zoom_largest": 1.0}
    options = {**EIGHT, "batch_size": 2, "n_iter": 1, "enable_hr": True}
    _, processed = webui.make({**ONLY, **zoom}, **options)
    for image, text in zip(processed.images, processed.infotexts, strict=True):
        assert isinstance(image, Image.Image) and image.size == (128, 128)
        score = critics.selector.judge(to_tensor(np.array(image)), PROMPT)
        assert float(fields(text, "score")) == pytest.approx(score, abs=1e-4)


def test_extra_pictures_come_behind_and_in_the_same_order(webui):
    webui.shared.opts.add_option("sgool_return_before", SimpleNamespace(default=True))
    _, processed = webui.make({"best": True, "best_shown": 2, "start": "seed"}, **{**EIGHT, "n_iter": 1})
    assert len(processed.images) == len(processed.infotexts) == 4
    seeds = [re.search(r"Seed: (\d+)", text)[1] for text in processed.infotexts]
    assert seeds[:2] == seeds[2:] == [str(seed) for seed in processed.all_seeds[:2]]


def test_a_script_that_relies_on_the_order_gets_it(webui):
    p, processed = webui.make({**ONLY, "best_shown": 1}, selected=1, **EIGHT)
    assert processed.all_seeds == list(range(1, 9)) and len(processed.images) == 8
    assert "leaves their order" in next(iter(p.comments))
    assert len(p.extra_generation_params["SGOOL score"]) == 8 and not p.do_not_save_grid


def test_the_grid_is_made_of_what_is_shown(webui):
    webui.shared.opts.return_grid = True
    finished = Finished()
    _, processed = webui.make({**ONLY, "best_shown": 2}, last=[finished], **EIGHT)
    assert processed.index_of_first_image == 1 and len(processed.images) == len(processed.infotexts) == 3
    grid = np.array(processed.images[0])
    assert np.array_equal(grid, np.concatenate([np.array(image) for image in processed.images[1:]], 1))
    assert "SGOOL rank" not in processed.infotexts[0] and processed.info == processed.infotexts[0]


class Finished:
    """Another script, which gives a picture where the fake WebUI would show the decoder's numbers."""

    def postprocess_image_after_composite(self, p, pp, *args):
        pp.image = pp.image.copy()


def test_a_file_gets_its_rank_and_another_of_its_name_is_left_alone(webui, tmp_path):
    run = Run(Settings(best=True), lambda: None, scores={0: Score(0.25, "clip")}, ranks={0: 1, 1: 2})
    old = "SGOOL score: 0.2500, as I said\nSteps: 4, SGOOL score: 0.2500, SGOOL version: 1"
    new = best.ranked(old, run, 0)
    assert new == "SGOOL score: 0.2500, as I said\nSteps: 4, SGOOL score: 0.2500, SGOOL rank: 1 of 2, SGOOL version: 1"
    picture = Image.new("RGB", (8, 8), "red")
    for text, kept in ((old, new), ("of another", "of another")):
        images.save_image_with_geninfo(picture, text, str(tmp_path / "a.png"), existing_pnginfo={"own": "stays"})
        picture.already_saved_as = str(tmp_path / "a.png")
        best._tell_file(picture, old, new)
        with Image.open(tmp_path / "a.png") as saved:
            assert saved.text == {"own": "stays", "parameters": kept}
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    (tmp_path / "a.png").unlink()
    best._tell_file(picture, old, new)  # nothing to do, and no failure


def test_the_score_in_a_files_name(webui, monkeypatch):
    seen = []
    monkeypatch.setattr(SgoolScript, "postprocess", lambda self, p, processed, *args: seen.append(named(p)))

    def named(p):
        return score_in_name(images.FilenameGenerator(p, 1, PROMPT, None))

    p, _ = webui.make(ONLY, **{**EIGHT, "n_iter": 1})
    assert re.fullmatch(r"-?\d\.\d{4}", seen[0])
    assert (
        score_in_name(images.FilenameGenerator(p, 1, PROMPT, None, basename="grid"))
        is images.NOTHING_AND_SKIP_PREVIOUS_TEXT
    )
    plain, _ = webui.make(**EIGHT)
    assert named(plain) is images.NOTHING_AND_SKIP_PREVIOUS_TEXT


def test_only_scoring_needs_no_guide():
    assert needs(Settings(iterations=0, best=True)).guide == "embedded"
    assert needs(Settings(iterations=0, best=True, zoom=True)).guide == needs(Settings(best=True)).guide == "clip"


class Taker:
    """Another script, which takes an image out of the gallery before SGOOL sorts it."""

    def postprocess(self, p, processed, *args):
        del processed.images[2]


def test_a_gallery_that_lacks_an_image_is_not_sorted(webui):
    p, processed = webui.make({**ONLY, "best_shown": 2, "best_save_all": False}, first=[Taker()], **EIGHT)
    assert processed.all_seeds == p.all_seeds and len(processed.images) == 7
    assert "another extension has taken some out" in processed.comments
    assert len(images.saved) == 8
