"""In the fake WebUI: img2img with the uploaded picture as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modules import sd_samplers, shared
from PIL import Image

from sgool.result import Stop
from sgool.webui import batch, gallery

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
OWN = {"kind": "Img2Img", "init_images": [PICTURE], "denoising_strength": 0.6}
SHOWN = np.array(PICTURE.resize((64, 64)))


def pixels(image) -> np.ndarray:
    """As the WebUI makes a picture of what a batch holds."""
    shown = (255.0 * torch.clamp((image + 1) / 2, 0, 1).movedim(0, -1).numpy()).astype(np.uint8)
    return shown if not isinstance(image, Image.Image) else np.array(image)


@pytest.fixture
def nothing_sampled(monkeypatch):
    """The WebUI's sampler makes no step."""

    def fails(self, *args, **kwargs):
        raise AssertionError("sampled")

    monkeypatch.setattr(sd_samplers.DDIM, "_walk", fails)


@pytest.mark.parametrize(
    "values", [{"iterations": 0}, {"iterations": 0, "zoom": True, "zoom_by": "mask"}, {"learning_rate": 0.0}]
)
def test_what_is_not_improved_keeps_its_very_pixels(webui, nothing_sampled, values):
    _, processed = webui.make({"as_uploaded": True, **values}, **OWN, batch_size=2, n_iter=2)
    assert len(processed.images) == 4
    assert all((pixels(image) == SHOWN).all() for image in processed.images)


def test_the_picture_is_improved_and_scored_as_it_was_uploaded(webui, nothing_sampled, critics):
    _, processed = webui.make({"as_uploaded": True, "iterations": 3, "learning_rate": 0.3}, **OWN, prompt="a red car")
    (entry,) = next(iter(gallery.runs.values()))
    whole = torch.from_numpy(SHOWN).permute(2, 0, 1)[None] / 255
    assert entry.outcome.score_before == pytest.approx(critics.selector.judge(whole, "a red car"), abs=1e-4)
    assert (entry.before == SHOWN).all()
    assert entry.outcome.improved != (pixels(processed.images[0]) == SHOWN).all()
    assert processed.infotexts[0]["SGOOL Uploaded picture as it is"] == "True"


@pytest.mark.parametrize("error", [RuntimeError("no such luck"), Stop()])
def test_whatever_fails_the_picture_comes_out(webui, nothing_sampled, monkeypatch, error):
    def fails(*args, **kwargs):
        shared.state.skipped = isinstance(error, Stop)
        raise error

    monkeypatch.setattr(batch, "generate", fails)
    _, processed = webui.make({"as_uploaded": True}, **OWN)
    assert (pixels(processed.images[0]) == SHOWN).all() and "SGOOL note" in processed.infotexts[0]


def test_in_txt2img_it_does_nothing(webui):
    plain, _ = webui.make({})
    p, processed = webui.make({"as_uploaded": True})
    assert torch.equal(torch.cat(p.latents), torch.cat(plain.latents))
    assert "SGOOL Uploaded picture as it is" not in processed.infotexts[0]
