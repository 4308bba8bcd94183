"""In the fake WebUI: the noise that was found, sampled once more by the user's own sampler."""

from __future__ import annotations

import pytest
import torch
from modules import devices, shared

from sgool.checkpointing import MEMORY
from sgool.guidance.clip import Clip
from sgool.result import Stop
from sgool.webui import batch, gallery, render
from sgool.webui.backend import WebuiBackend
from sgool.webui.isolation import isolated

YOURS = {"render": "yours", "strength": 1.0, "sampler": "bdia", "steps": 4, "iterations": 1}
KEY = "SGOOL by your sampler"


def outcome():
    return gallery.runs[next(reversed(gallery.runs))][0].outcome


@pytest.mark.parametrize("sampler", ["DDIM", "Euler a"])
@pytest.mark.parametrize("prompt", ["a red car", "a red car AND a small frog"])
def test_the_users_sampler_makes_the_users_image_of_the_users_noise(webui, sampler, prompt):
    """Of every image of a batch, with the noises between the steps that are its own."""
    shared.opts.data["eta_noise_seed_delta"] = 31337
    p, _ = webui.make(batch_size=2, sampler_name=sampler, seed=5, prompt=prompt)
    (latents,) = p.latents
    before = dict(vars(p))
    for index in range(2):
        noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5 + index))[None].double()
        backend = WebuiBackend(p, index, latents[index : index + 1], noise, MEMORY["fast"])
        steps = []
        with isolated(p), devices.without_autocast():
            made = render.sampled(backend, noise, steps.append)
        assert torch.allclose(made, latents[index : index + 1], atol=1e-4)
        assert sampler != "DDIM" or steps[-1] == p.steps
    assert vars(p) == before


@pytest.mark.parametrize(("score", "kept"), [(0.95, True), (0.85, False)])
def test_it_is_kept_only_where_the_selector_prefers_it(webui, monkeypatch, capsys, score, kept):
    told = iter([0.7, 0.5, 0.9, score])
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: next(told))
    p, processed = webui.make(YOURS)
    text = processed.infotexts[0]
    assert text[KEY] == f"{score:.4f}, {'kept' if kept else 'not kept'}"
    assert text["SGOOL score after"] == f"{max(score, 0.9):.4f}" and text["SGOOL best iteration"] == "1"
    assert text["SGOOL Final image"] == "yours"
    assert f"after iteration 1 0.900, by your sampler {score:.3f}{', which is kept' if kept else ''}" in (
        capsys.readouterr().out
    )
    found = outcome()
    assert found.by_yours == kept and found.rendered == score
    assert p.latents[0].shape == (1, 4, 8, 8)


def test_the_image_that_is_kept_is_the_one_that_was_rendered(webui, monkeypatch):
    """It is made of the noise of the best image."""
    made, given = [], []
    plain = render.sampled

    def watched(backend, noise, count):
        given.append(noise)
        made.append(plain(backend, noise, count))
        return made[-1]

    monkeypatch.setattr(render, "sampled", watched)
    told = iter([0.1, 0.2, 0.9, 0.95])
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: next(told))
    p, _ = webui.make(YOURS, seed=3)
    assert torch.equal(torch.cat(p.latents), made[0])
    seeds = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    assert not torch.allclose(given[0].float(), seeds) and 0.9 < float(given[0].std()) < 1.1


@pytest.mark.parametrize("values", [{"strength": 0.5}, {"start": "image"}])
def test_what_is_no_noise_cannot_be_rendered_and_that_is_said(webui, values):
    p, processed = webui.make({**YOURS, **values})
    assert [sentence.startswith("SGOOL keeps the image as optimized") for sentence in p.comments] == [True]
    assert KEY not in processed.infotexts[0] and outcome().rendered is None


def test_where_the_user_is_followed_there_is_nothing_else_to_render(webui):
    p, processed = webui.make({**YOURS, "sampler": "auto"})
    assert not p.comments and KEY not in processed.infotexts[0]


@pytest.mark.parametrize("asked", ["interrupted", "skipped"])
def test_interrupt_keeps_the_optimized_image_and_skip_the_original(webui, monkeypatch, asked):
    def stopped(*args):
        setattr(shared.state, asked, True)
        raise Stop

    monkeypatch.setattr(batch, "rendered", stopped)
    told = iter([0.1, 0.2, 0.9])
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: next(told))
    plain, _ = webui.make()
    p, _ = webui.make(YOURS)
    assert torch.equal(torch.cat(p.latents), torch.cat(plain.latents)) == (asked == "skipped")
    if asked == "interrupted":
        assert outcome().improved and not outcome().by_yours


def test_a_failure_keeps_the_optimized_image(webui, monkeypatch):
    def fails(*args):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(batch, "rendered", fails)
    told = iter([0.1, 0.2, 0.9])
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: next(told))
    _, processed = webui.make(YOURS)
    assert "SGOOL's noise could not be sampled by your sampler" in processed.infotexts[0]["SGOOL note"]
    assert outcome().score_after == 0.9
