"""In the fake WebUI: with few steps, SGOOL samples as the user does."""

from __future__ import annotations

import pytest
import torch
from modules import sd_samplers, shared

from sgool.cost import MOST_STEPS
from sgool.webui import batch, gallery


@pytest.fixture
def distances(monkeypatch):
    """Of every run's first latent from the WebUI's own, relative to that."""
    found = []
    generate = batch.generate

    def watched(host, *args, **kwargs):
        result = generate(host, *args, **kwargs)
        found.append(float((result.first.latent - host.original).norm() / host.original.norm()))
        return result

    monkeypatch.setattr(batch, "generate", watched)
    return found


@pytest.mark.parametrize("sampler", ["DDIM", "Euler a"])
@pytest.mark.parametrize("prompt", ["a red car", "[a red car:a blue frog:0.5]"])
def test_the_first_image_is_the_users_own(webui, distances, sampler, prompt):
    """Each image of a batch with noises of its own; a prompt's schedule counts the user's steps."""
    p, processed = webui.make({"iterations": 1}, batch_size=2, n_iter=2, sampler_name=sampler, steps=5, prompt=prompt)
    assert len(distances) == 4 and max(distances) < 1e-4
    for text in processed.infotexts:
        assert text["SGOOL sampled with"] == f"your own {sampler}, 5 steps"
        assert not {"SGOOL Sampler", "SGOOL score resampled"} & set(text)
    (entry, *_) = next(iter(gallery.runs.values()))
    assert entry.outcome.follows and entry.outcome.result.losses[0] != entry.outcome.result.losses[1]
    assert "next" not in vars(p.rng)


@pytest.mark.parametrize("options", [{"eta_noise_seed_delta": 31337}, {}])
@pytest.mark.parametrize("eta", [None, 0.5])
def test_noises_between_the_steps_are_the_users_own(webui, distances, options, eta):
    shared.opts.data.update(options)
    webui.make({}, sampler_name="Euler a", steps=4, eta=eta)
    assert max(distances) < 1e-4


def test_with_hires_fix_the_first_pass_is_followed(webui, distances):
    _, processed = webui.make({}, enable_hr=True, sampler_name="Euler a")
    assert max(distances) < 1e-4 and processed.infotexts[0]["SGOOL sampled with"] == "your own Euler a, 4 steps"


def test_an_image_that_is_no_better_than_by_rounding_is_the_users_very_own(webui):
    plain, _ = webui.make()
    p, processed = webui.make({"learning_rate": 0.0, "iterations": 3})
    assert torch.equal(torch.cat(p.latents), torch.cat(plain.latents))
    assert "SGOOL best iteration" not in processed.infotexts[0]


@pytest.mark.parametrize(
    ("values", "generation"),
    [
        ({}, {"steps": MOST_STEPS + 1}),
        ({"sampler": "bdia"}, {}),
        ({"start": "image"}, {}),
    ],
)
def test_otherwise_sgool_samples_with_its_own(webui, values, generation):
    p, processed = webui.make(values, **generation)
    assert processed.infotexts[0]["SGOOL sampled with"].startswith("its own ") and not p.comments


@pytest.mark.parametrize(
    ("options", "generation", "why"),
    [
        ({"skip_early_cond": 0.2}, {}, "it leaves the negative prompt out of some steps."),
        ({}, {"s_min_uncond": 1.0}, "it leaves the negative prompt out of some steps."),
        ({}, {"steps": 1}, ""),
    ],
)
def test_what_cannot_be_followed_is_said(webui, options, generation, why):
    shared.opts.data.update(options)
    p, processed = webui.make({}, **generation)
    told = "SGOOL samples with its own sampler, because it cannot sample as your DDIM does: "
    assert list(p.comments) == ([told + why] if why else [])
    assert processed.infotexts[0]["SGOOL sampled with"].startswith("its own bdia" if why else "your own DDIM, 1 step")
    assert "SGOOL note" not in processed.infotexts[0]


def test_an_extensions_own_sampler_is_not_followed(webui):
    class Replaces(webui.scripts.Script):
        def process_before_every_sampling(self, p, *args, **kwargs):
            p.sampler.sample = lambda p, x, *args, **kwargs: x

    p, _ = webui.make({}, last=[Replaces()])
    assert [sentence.endswith("another extension has replaced it.") for sentence in p.comments] == [True]


def test_noise_levels_must_fall_within_the_models(webui, monkeypatch):
    """The network has no timestep for more noise than its own most."""
    levels = {"sigmas": torch.tensor([40.0, 30.0, 1.0, 0.0])}
    monkeypatch.setattr(sd_samplers.EulerAncestral, "levels", lambda self, p, count: levels)
    p, processed = webui.make({}, sampler_name="Euler a")
    assert [sentence.endswith("its noise levels do not fall within the model's.") for sentence in p.comments] == [True]
    assert processed.infotexts[0]["SGOOL sampled with"] == "its own bdia, 2 steps"


def test_other_seeds_are_sampled_likewise(webui):
    """They have the noises between the steps in common."""
    _, processed = webui.make({"candidates": 3}, sampler_name="Euler a")
    assert processed.infotexts[0]["SGOOL sampled with"] == "your own Euler a, 4 steps"
