"""The phrases of the prompt by the API of the real WebUI, and a mask that says where to look."""

from __future__ import annotations

import io
import urllib.request

import cv2
import numpy as np
import pytest
from payloads import BASE, INPAINT, PROMPT, SGOOL, SIZE, difference, make, mask, outcome
from PIL import Image
from webui_server import encode

TEXTS = ["a car", "a small frog on a busy red background"]


def run_of(server, pictures):
    """What the page would be told of the run, and its address."""
    address = f"/sgool/v1/runs/{pictures.info['extra_generation_params']['SGOOL run'][0]}"
    return server.get(address), address


def picture(server, address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.url + address, timeout=60) as answer:
        return Image.open(io.BytesIO(answer.read()))


def test_the_answer_has_the_phrases_of_every_image(server):
    pictures = make(server, {**BASE, "batch_size": 2}, SGOOL)
    told = pictures.info["extra_generation_params"]["SGOOL phrases"]
    assert len(told) == 2
    for own in told:
        assert [each["phrase"] for each in own] == TEXTS
        assert all(0 <= each[when] <= 1 for each in own for when in ("before", "after"))
    assert not any("SGOOL phrases" in text for text in pictures.texts)
    run, address = run_of(server, pictures)
    assert [[{**each, "maps": ["before", "after"]} for each in own] for own in told] == [
        image["phrases"]["found"] for image in run["images"]
    ]
    veil = picture(server, f"{address}/1/phrase-2-after.png")
    assert veil.mode == "RGBA" and veil.size == (512, 512)


def test_the_best_of_a_batch_have_their_phrases_in_the_gallerys_order(server):
    plain = make(server, {**BASE, "batch_size": 3}, {**SGOOL, "iterations": 0, "best": True})
    told = plain.info["extra_generation_params"]["SGOOL phrases"]
    assert len(told) == 3 and all(each["before"] == each["after"] for own in told for each in own)
    run, address = run_of(server, plain)
    assert [image["finished"]["rank"] for image in run["images"]] == ["1 of 3", "2 of 3", "3 of 3"]
    for i in range(3):
        assert not difference(picture(server, f"{address}/{i}/after.png"), plain.image(i)).any()


def test_switched_off_the_answer_has_none(server):
    pictures = make(server, BASE, {**SGOOL, "show_phrases": False})
    assert "SGOOL phrases" not in pictures.info["extra_generation_params"]
    assert run_of(server, pictures)[0]["images"][0]["phrases"] is None


@pytest.mark.parametrize("only_masked", [False, True])
def test_what_is_painted_in_inpainting_says_where_to_look(server, only_masked):
    payload = {**INPAINT, "inpaint_full_res": only_masked}
    pictures = make(server, payload, {**SGOOL, "saliency": "mask"})
    assert outcome(pictures).iterations == 2 and outcome(pictures).regions == 1 and not outcome(pictures).note
    _, address = run_of(server, pictures)
    drawn, after = (picture(server, f"{address}/0/{name}.png").convert("RGB") for name in ("saliency", "after"))
    enlarged = Image.fromarray(cv2.resize(np.asarray(after), drawn.size, interpolation=cv2.INTER_CUBIC))
    left = difference(drawn, enlarged)[:, : drawn.width // 3]
    assert only_masked or np.median(left) < 8  # nobody looks there; the region's outline is drawn around it


def test_a_mask_of_the_request_says_where_to_look(server):
    pictures = make(server, BASE, {**SGOOL, "saliency": "mask", "look_at": encode(mask())})
    assert outcome(pictures).regions == 1 and outcome(pictures).iterations == 2
    plain = make(server, BASE)
    for wrong, told in (
        (encode(Image.new("L", (48, 48), 255)), f"The mask has 48x48 pixels, but the image {SIZE}x{SIZE}"),
        ("no picture", "look_at is not base64"),
        (None, "there is none: paint one"),
    ):
        refused = make(server, BASE, {**SGOOL, "saliency": "mask", "look_at": wrong})
        assert told in outcome(refused).note and not difference(refused.image(), plain.image()).any()
    assert PROMPT in plain.texts[0]
