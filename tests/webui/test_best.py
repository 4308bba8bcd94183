"""The best of a batch in the real WebUI: order, infotexts, files, grid and page; and only the best improved."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from payloads import BASE, HIRES, IMG2IMG, INPAINT, PROMPT, SGOOL, SIZE, difference, make, plot
from PIL import Image
from test_browser import (
    browser,  # noqa: F401  a fixture
    expect,
    fold,
    generate,
    number,
    open_page,  # noqa: F401  a fixture
    prepare,
    shoot,
    wait_for_the_end,
)
from webui_server import Pictures

from sgool.guidance import load_critic

BEST = {**SGOOL, "iterations": 0, "best": True}
EIGHT = {**BASE, "batch_size": 8}


@pytest.fixture(scope="module")
def judge():
    """The embedded selector's score of a picture for the prompt."""
    critic = load_critic("embedded", "selector", Path("unused"))

    def score(image: Image.Image) -> float:
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]
        return critic.judge(pixels, PROMPT)

    return score


def value(text: str, key: str) -> str:
    (found,) = re.findall(rf'SGOOL {key}: ("[^"]*"|[^,]*)', text)
    return found.strip('"')


def seeds(pictures: Pictures) -> list[int]:
    return [int(re.search(r"Seed: (\d+)", text)[1]) for text in pictures.texts]


def sorted_by(judge, pictures: Pictures, count: int) -> list[float]:
    """The scores of the pictures, once they and what is said of them have been found in order."""
    scores = [judge(pictures.image(i)) for i in range(len(pictures))]
    assert len(pictures) == len(pictures.texts) == count and scores == sorted(scores, reverse=True)
    assert [float(value(text, "score")) for text in pictures.texts] == pytest.approx(scores, abs=1e-4)
    assert pictures.info["all_seeds"][:count] == seeds(pictures) and pictures.info["seed"] == seeds(pictures)[0]
    return scores


@pytest.mark.parametrize(("size", "count"), [(8, 1), (3, 2)])
@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M"])
def test_the_best_come_first(server, judge, size, count, sampler):
    payload = {**BASE, "sampler_name": sampler, "batch_size": size, "n_iter": count}
    plain, best = make(server, payload), make(server, payload, BEST)
    total = size * count
    sorted_by(judge, best, total)
    assert [value(text, "rank") for text in best.texts] == [f"{place} of {total}" for place in range(1, total + 1)]
    own = dict(zip(plain.info["all_seeds"], range(total), strict=True))
    assert seeds(best) != plain.info["all_seeds"] and sorted(seeds(best)) == plain.info["all_seeds"]
    for place, seed in enumerate(seeds(best)):
        assert not difference(best.image(place), plain.image(own[seed])).any()
    params = best.info["extra_generation_params"]
    assert params["SGOOL score"] == [value(text, "score") for text in best.texts]


@pytest.mark.parametrize("payload", [HIRES, IMG2IMG, INPAINT], ids=["hires", "img2img", "inpainting"])
def test_the_finished_image_counts(server, judge, payload):
    payload = {**payload, "batch_size": 3}
    plain, best = make(server, payload), make(server, payload, BEST)
    scores = sorted_by(judge, best, 3)
    assert scores == pytest.approx(sorted((judge(plain.image(i)) for i in range(3)), reverse=True), abs=5e-3)


def test_after_zoom(server, judge):
    zoom = {"zoom": True, "zoom_judge": False, "zoom_places": 1, "zoom_largest": 1.0, "zoom_by": "phrases"}
    best = make(server, {**BASE, "batch_size": 3}, {**BEST, **zoom})
    sorted_by(judge, best, 3)
    assert all(value(text, "zoom kept") == "1 of 1" for text in best.texts)
    assert best.info["extra_generation_params"]["SGOOL zoom kept"] == ["1 of 1"] * 3


def test_masks_stay_with_their_images(server):
    options = {"return_mask": True, "return_mask_composite": True}
    payload = {**INPAINT, "batch_size": 3, "override_settings": options}
    plain, best = make(server, payload), make(server, payload, {**BEST, "best_shown": 2})
    own = dict(zip(plain.info["all_seeds"], range(3), strict=True))
    assert len(plain) == 9 and len(best) == 6
    for place, seed in enumerate(seeds(best)):
        for i in range(3):
            # The VAE's encoder draws random numbers, so two generations differ by a level here and there.
            assert difference(best.image(3 * place + i), plain.image(3 * own[seed] + i)).mean() < 1
    assert difference(best.image(0), best.image(3)).mean() > 1


@pytest.fixture
def new_files(server):
    """The files since the test began, by their names: of each its infotext."""
    before = set(server.outputs.rglob("*.*"))

    def found() -> dict[Path, str]:
        files = sorted(set(server.outputs.rglob("*.*")) - before)
        told = {}
        for path in files:
            with Image.open(path) as image:
                comment = image.getexif().get_ifd(0x8769).get(0x9286)
                told[path] = image.info.get("parameters") or comment[8:].decode("utf-16-be")
        return told

    return found


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_files_have_their_ranks_and_scores(server, new_files, kind):
    pattern = {"samples_filename_pattern": "[seed]-[sgool_score]", "samples_format": kind}
    payload = {**BASE, "batch_size": 2, "n_iter": 2, "save_images": True, "override_settings": pattern}
    best = make(server, payload, {**BEST, "best_shown": 1})
    saved = {text: path for path, text in new_files().items() if "-images" in str(path)}
    assert len(best) == 1 and len(saved) == 4 and best.texts[0] in saved
    assert sorted(value(text, "rank") for text in saved) == [f"{place} of 4" for place in range(1, 5)]
    for text, path in saved.items():
        assert path.stem.endswith(f"-{value(text, 'score')}") and path.suffix == f".{kind}"


def test_only_what_is_shown_is_saved(server, new_files):
    payload = {**BASE, "batch_size": 2, "n_iter": 2, "save_images": True}
    everything = make(server, payload, BEST)
    before = set(new_files())
    best = make(server, payload, {**BEST, "best_shown": 1, "best_save_all": False})
    ((path, text),) = [(path, text) for path, text in new_files().items() if path not in before]
    assert text == best.texts[0] and value(text, "rank") == "1 of 4"
    with Image.open(path) as saved:
        assert not difference(saved.convert("RGB"), everything.image()).any()


def test_the_grid_has_the_same_order(server, new_files):
    options = {"return_grid": True, "grid_save": True, "grid_format": "png"}
    payload = {**BASE, "batch_size": 2, "n_iter": 2, "save_images": True, "override_settings": options}
    best = make(server, payload, BEST)
    assert best.info["index_of_first_image"] == 1 and len(best) == len(best.texts) == 5
    corner = best.image().crop((0, 0, SIZE, SIZE))
    assert not difference(corner, best.image(1)).any()
    assert [value(text, "rank") for text in best.texts[1:]] == [f"{place} of 4" for place in range(1, 5)]
    (grid,) = [path for path in new_files() if "grid" in path.name]
    with Image.open(grid) as saved:
        assert not difference(saved.convert("RGB"), best.image()).any()


def test_only_the_best_two_are_improved(server, judge):
    """Two steps of the WebUI's sampler make poor images, which SGOOL's own, improved, will beat."""
    payload = {**EIGHT, "steps": 2}
    plain = make(server, payload)
    improved = make(server, payload, {**SGOOL, "sampler": "bdia", "steps": 8, "best_improved": 2})
    order = sorted(range(8), key=lambda i: -judge(plain.image(i)))
    params = improved.info["extra_generation_params"]
    assert [params["SGOOL rank before"][i].split(" ")[0] for i in order] == [str(place) for place in range(1, 9)]
    assert seeds(improved) == plain.info["all_seeds"]
    for place, i in enumerate(order):
        changed = difference(improved.image(i), plain.image(i)).any()
        assert not changed if place > 1 else changed == ("SGOOL best iteration" in improved.texts[i])
        assert ("SGOOL score after" in improved.texts[i]) == (place < 2)
    assert any(difference(improved.image(i), plain.image(i)).any() for i in order[:2])


def test_improve_the_best_two_and_keep_the_best(server, judge):
    best = make(server, {**HIRES, "batch_size": 4}, {**BEST, "iterations": 2, "best_improved": 2})
    sorted_by(judge, best, 4)
    params = best.info["extra_generation_params"]
    assert sum(score is not None for score in params["SGOOL score after"]) == 2
    for i, text in enumerate(best.texts):  # the API's lists are in the same order
        assert ("SGOOL score after" in text) == (params["SGOOL score after"][i] is not None)
        assert value(text, "rank before") == params["SGOOL rank before"][i]


def test_in_a_plot(server):
    """Without grids the plot makes batches of one, and shows the first image of each cell."""
    payload = plot(server, ("[SGOOL] Best of the batch", ["False", "True"]))
    answer = make(server, {**payload, "n_iter": 4}, {**BEST, "zoom": True, "zoom_largest": 0.05, "best": False})
    plain, best = make(server, {**BASE, "n_iter": 4}), make(server, {**BASE, "n_iter": 4}, BEST)
    assert seeds(best)[0] != seeds(plain)[0]
    cells = [answer.image(i) for i in range(len(answer)) if answer.image(i).size == (SIZE, SIZE)]
    for expected in (plain, best):
        assert any(not difference(cell, expected.image()).any() for cell in cells)


def test_without_weights_the_gallery_is_as_it_was(server):
    payload = {**BASE, "batch_size": 2}
    plain, best = make(server, payload), make(server, payload, {**BEST, "selector": "clip", "best_shown": 1})
    assert len(best) == 2 and seeds(best) == plain.info["all_seeds"]
    assert "Cannot download" in best.texts[0] and "SGOOL rank" not in best.texts[0]
    assert not any(difference(best.image(i), plain.image(i)).any() for i in range(2))


def test_on_the_page(open_page, server):  # noqa: F811
    page = open_page()
    prepare(page, 0)
    fold(page, "more")
    page.locator("#sgool_txt2img_best input[type=checkbox]").click()
    shoot(page, "best-settings", "#sgool_txt2img_batch")
    fold(page, "more")
    expect(page.locator("#sgool_txt2img .sgool-does")).to_have_text("Scores the images; the best come first")
    number(page, "txt2img_batch_size", 8)
    page.evaluate("window.scrollTo(0, 0)")
    generate(page)
    wait_for_the_end(page)
    shoot(page, "best-of-eight")
    grid = page.locator("#txt2img_gallery .grid-container .thumbnail-item")
    expect(grid).to_have_count(8)
    told = page.locator("#html_info_txt2img").first
    expect(told).to_contain_text("SGOOL rank: 1 of 8")
    page.locator("#txt2img_gallery .thumbnails .thumbnail-item").nth(2).click()
    expect(told).to_contain_text("SGOOL rank: 3 of 8")
    shoot(page, "best-third")
