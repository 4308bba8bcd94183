"""img2img with the uploaded picture as it is: the WebUI samples nothing, and what is not improved keeps its pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hosts import HOST, NEO
from payloads import IMG2IMG, INPAINT, SGOOL, SIZE, difference, make, mask, outcome, picture
from PIL import Image
from test_places import ZOOM, kept, regions
from webui_server import encode

AS_IT_IS = {**SGOOL, "as_uploaded": True}
NOTHING = {**AS_IT_IS, "iterations": 0}
HEIGHT = 2 * SIZE if HOST is NEO else SIZE * 3 // 2  # Forge Neo makes sides multiples of 64
LARGE = picture().resize((2 * SIZE, HEIGHT), Image.Resampling.LANCZOS)


@pytest.fixture
def uploaded(server):
    """Calls of the UNet are counted from here on."""
    server.get("/sgool-probe/calls")
    yield server


def same(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and not difference(image, other).any()


def with_picture(image: Image.Image, **more) -> dict:
    return {**IMG2IMG, "init_images": [encode(image)], **more}


@pytest.mark.parametrize("resize_mode", [0, 1, 2])
def test_with_nothing_to_do_the_picture_comes_out_and_the_network_rests(uploaded, resize_mode):
    answer = make(uploaded, with_picture(LARGE, resize_mode=resize_mode), NOTHING)
    assert not uploaded.get("/sgool-probe/calls")
    assert "nothing to do" in outcome(answer).note
    if resize_mode == 0:
        assert same(answer.image(), LARGE.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    assert answer.image().size == (SIZE, SIZE)


def test_zoom_alone_leaves_all_other_pixels_as_they_were_uploaded(uploaded):
    answer = make(uploaded, with_picture(LARGE, width=LARGE.width, height=LARGE.height), {**ZOOM, "as_uploaded": True})
    assert kept(answer)[0] > 0
    differs = difference(answer.image(), LARGE) > 0
    assert differs.any() and not (differs & ~regions(uploaded, answer)).any()
    steps = int(ZOOM["zoom_strength"] * IMG2IMG["steps"]) + 1
    assert len(uploaded.get("/sgool-probe/calls")) <= steps * kept(answer)[1]
    assert "SGOOL Uploaded picture as it is: True" in answer.texts[0]


def test_the_picture_itself_is_improved(uploaded):
    answer = make(uploaded, with_picture(LARGE), {**AS_IT_IS, "iterations": 4, "steps": 6})
    found = outcome(answer)
    assert not found.note and found.iterations == 4
    (run,) = uploaded.get("/sgool-probe/last")
    assert run["losses"][-1] != run["losses"][0]
    shown = LARGE.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    assert same(answer.image(), shown) != (found.after > found.before)
    # All evaluations are of SGOOL's own: the inversion, the first image, and there and back for each update.
    assert len(uploaded.get("/sgool-probe/calls")) <= 6 * (2 + 2 * 4)


def test_every_image_of_a_batch_is_of_the_picture(uploaded):
    answer = make(uploaded, with_picture(LARGE, batch_size=2, n_iter=2), {**AS_IT_IS, "iterations": 1})
    assert len(answer) == 4
    assert len({outcome(answer, index).before for index in range(4)}) == 1


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("sgool", [NOTHING, {**ZOOM, "as_uploaded": True}, AS_IT_IS], ids=["nothing", "zoom", "whole"])
def test_inpainting(uploaded, only_masked, sgool):
    """Outside the mask nothing changes, and inside what is zoomed or improved alone. "Fill" would paint it over."""
    size = {"width": LARGE.width, "height": LARGE.height} if not only_masked else {}
    payload = {**INPAINT, **size, "inpaint_full_res": only_masked, "inpainting_fill": 0, "mask_blur": 4}
    payload |= {"init_images": [encode(LARGE)], "mask": encode(mask().resize(LARGE.size))}
    answer = make(uploaded, payload, sgool)
    differs = difference(answer.image(), LARGE) > 0
    assert not differs[:, : LARGE.width // 2 - 12].any()
    if sgool is NOTHING:
        assert not differs.any() and not uploaded.get("/sgool-probe/calls")
    elif "preset" in sgool and not only_masked:
        assert not (differs & ~regions(uploaded, answer)).any()
    assert differs.mean() < 0.6


def test_when_sgool_fails_the_picture_comes_out(uploaded):
    uploaded.post("/sgool-probe/arm", {"kind": "error", "times": 1})
    answer = make(uploaded, with_picture(LARGE), AS_IT_IS)
    assert "SGOOL failed" in outcome(answer).note
    assert same(answer.image(), LARGE.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def test_prompts_schedules_count_from_the_noise(uploaded):
    """Nothing has been sampled from the denoising strength on."""
    texts = {
        strength: make(uploaded, with_picture(LARGE, denoising_strength=strength, prompt="a [car:frog:0.6]"), AS_IT_IS)
        for strength in (0.2, 0.9)
    }
    scores = [(outcome(each).before, outcome(each).after) for each in texts.values()]
    assert scores[0] == scores[1]
    assert np.array_equal(*(np.array(each.image()) for each in texts.values()))
