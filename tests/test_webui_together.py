"""The images of a batch are improved together in the fake WebUI, on the embedded model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from modules import shared

from sgool.checkpointing import MEMORY
from sgool.webui import backend as webui_backend
from sgool.webui import gallery
from sgool.webui.hosts import Automatic, host
from sgool.webui.records import Outcome

OWN = {"sampler": "ddim", "steps": 4, "start": "seed", "strength": 1.0, "iterations": 2}
PROMPTS = ["a red car", "a red car AND a small frog :0.5", "[a red car:a blue frog:0.5]"]


def outcomes() -> list[Outcome]:
    """Of the images of the last run that SGOOL has something to tell of."""
    return [entry.outcome for entry in gallery.runs[next(reversed(gallery.runs))]]


@pytest.fixture
def rows(backend, monkeypatch) -> list[int]:
    """How many latents the UNet was given, call by call."""
    seen, forward = [], backend.unet.forward
    monkeypatch.setattr(backend.unet, "forward", lambda x, *args: seen.append(len(x)) or forward(x, *args))
    return seen


@pytest.mark.parametrize("way_back", ["full", "prompt"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_each_comes_to_what_it_comes_to_one_by_one(webui, rows, prompt, way_back):
    batch = {"prompt": prompt, "negative_prompt": "snow", "batch_size": 3, "steps": 4}
    values = {**OWN, "sampler": "auto", "way_back": way_back, "memory": "balanced", "iterations": 1}
    p, _ = webui.make(values, **batch)
    together, calls = outcomes(), len(rows)
    rows.clear()
    alone_p, _ = webui.make({**values, "memory": "low"}, **batch)
    assert calls < len(rows) / 2
    for one, alone in zip(together, outcomes(), strict=True):
        (first, updated), expected = one.result.losses, alone.result.losses
        assert first == pytest.approx(expected[0], abs=1e-5) and updated == pytest.approx(expected[1], abs=2e-3)
        assert one.result.scores == pytest.approx(alone.result.scores, abs=2e-3)
    assert torch.allclose(torch.cat(p.latents), torch.cat(alone_p.latents), atol=1e-2)


@pytest.mark.parametrize(
    ("memory", "best_improved", "expected"), [("fast", 0, 5), ("fast", 2, 2), ("balanced", 0, 4), ("low", 0, 1)]
)
def test_the_host_hears_how_many_are_improved_together(webui, monkeypatch, memory, best_improved, expected):
    heard, gradients = [], Automatic.gradients
    monkeypatch.setattr(Automatic, "gradients", lambda self, p, images: heard.append(images) or gradients(self, p))
    monkeypatch.setitem(MEMORY, "balanced", replace(MEMORY["balanced"], graphs=4 * 64 * 64))
    webui.make({**OWN, "iterations": 1, "memory": memory, "best_improved": best_improved}, batch_size=5, steps=4)
    assert heard == [expected]


@pytest.mark.parametrize("memory", ["balanced", "low"])
def test_as_many_as_the_memory_setting_allows(webui, rows, monkeypatch, memory):
    if memory == "balanced":
        monkeypatch.setitem(MEMORY, memory, replace(MEMORY[memory], graphs=2 * 64 * 64 + 1))
    webui.make({**OWN, "way_back": "prompt", "iterations": 1, "memory": memory}, batch_size=5, steps=4)
    first_pass, own = rows[:4], rows[4:]
    assert first_pass == [10] * 4
    assert max(own) == (2 * 2 if memory == "balanced" else 1)
    assert sum(own) == 5 * 4 * (2 + 1 + 2)  # an image, the way back, an image


def test_prompts_of_other_parts_cannot_go_together(webui, backend):
    p, _ = webui.make(prompt=PROMPTS[1], batch_size=2, steps=4)
    one, other = (
        webui_backend.WebuiBackend(p, i, torch.cat(p.latents)[i : i + 1], None, MEMORY["fast"]) for i in (0, 1)
    )
    assert webui_backend.joined([one, other], 4.0) is not None
    p.c.batch[1] = p.c.batch[1][:1]
    assert webui_backend.joined([one, other], 4.0) is None


def test_where_an_extension_works_on_guidance_the_way_back_is_through_all_of_it(webui, backend, monkeypatch):
    """The prompt's half alone would be its work on another thing."""
    p, _ = webui.make(steps=4)
    one = webui_backend.WebuiBackend(p, 0, p.latents[0], None, MEMORY["low"])
    halves = webui_backend.joined([one], 4.0).branches
    assert len(halves) == 2 and [len(each.back) for each in halves] == [0, 1]
    monkeypatch.setattr(host(), "guides_whole", lambda model: True)
    (whole,) = webui_backend.joined([one], 4.0).branches
    assert whole.back is None


def test_a_nan_in_one_image_leaves_the_others_alone(webui, monkeypatch):
    """The second image's decoder gives NaN once it is improved."""
    decode = webui_backend.WebuiBackend.decode

    def broken(self, latent):
        return decode(self, latent) * (float("nan") if self.index == 1 and latent.requires_grad else 1.0)

    monkeypatch.setattr(webui_backend.WebuiBackend, "decode", broken)
    _, processed = webui.make({**OWN, "iterations": 3}, batch_size=3, steps=2)
    assert len(outcomes()) == 2
    assert [("NaN" in text.get("SGOOL note", "")) for text in processed.infotexts] == [False, True, False]
    assert all(len(each.result.scores) == 4 for each in outcomes())


@pytest.mark.parametrize("where", ["network", "decoder"])
def test_where_memory_runs_out_every_image_is_improved_all_the_same(webui, backend, monkeypatch, where):
    """The network has room for two latents at once, or the second image's decoder has none while others are there."""
    told, full = [], torch.cuda.OutOfMemoryError("CUDA out of memory.")
    if where == "network":
        forward = backend.unet.forward

        def small(x, *args):
            told.append(len(x))
            if torch.is_grad_enabled() and len(x) > 2:
                raise full
            return forward(x, *args)

        monkeypatch.setattr(backend.unet, "forward", small)
    else:
        decode = webui_backend.WebuiBackend.decode

        def once(self, latent):
            if self.index == 1 and self.member and latent.requires_grad:
                told.append(1)
                raise full
            return decode(self, latent)

        monkeypatch.setattr(webui_backend.WebuiBackend, "decode", once)
    _, processed = webui.make({**OWN, "way_back": "prompt"}, batch_size=3, steps=2)
    assert told and len(outcomes()) == 3
    assert all(len(each.result.scores) == 3 for each in outcomes())
    assert not any("memory" in text.get("SGOOL note", "") for text in processed.infotexts)


@pytest.mark.parametrize("request_", ["interrupted", "skipped"])
def test_interrupt_and_skip_end_all_of_them(webui, monkeypatch, request_):
    """Pressed when the last image of the batch has been updated once."""
    from sgool.webui.progress import ImageProgress

    image = ImageProgress.image

    def pressed(self, result, newest):
        if self.index == 2 and newest.iteration == 1:
            setattr(shared.state, request_, True)
        image(self, result, newest)

    monkeypatch.setattr(ImageProgress, "image", pressed)
    plain, _ = webui.make(batch_size=3, steps=2)
    p, processed = webui.make({**OWN, "iterations": 5}, batch_size=3, steps=2)
    if request_ == "skipped":
        assert torch.equal(torch.cat(p.latents), torch.cat(plain.latents))
        assert all("skipped" in text["SGOOL note"] for text in processed.infotexts)
    else:
        assert [len(each.result.scores) for each in outcomes()] == [2, 2, 2]
