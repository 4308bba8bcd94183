"""The few-step sibling of the embedded model."""

from __future__ import annotations

import pytest
import torch

from sgool import tiny
from sgool.backends.diffusers import load_backend
from sgool.generate import Request, generate, load_critics
from sgool.guidance.clip import load_clip_folder
from sgool.lab.training.few_step import RANK, difference
from sgool.needs import needs
from sgool.presets import resolve
from sgool.tiny import few_step
from sgool.tiny.export import export, export_few_step
from sgool.weights import default_models_dir

CAPTIONS = (
    "a frog on a red background",
    "a penguin and a pizza on a blue background",
    "a car on a busy green background",
)


@pytest.fixture(scope="module")
def sibling():
    return load_backend("tiny-lcm")


def test_four_evaluations_draw_the_caption(sibling):
    """Without guidance. The embedded model itself, asked the same way, draws less of it."""
    settings = resolve({"method": "none"}, model="tiny-lcm")
    assert (settings.steps, settings.guidance_scale) == (4, 1.0)
    critics = load_critics(needs(settings), default_models_dir())
    judge = load_clip_folder(tiny.CLIPS["judge"])

    def scores(backend):
        results = [generate(backend, critics, Request(caption, seed=1), settings) for caption in CAPTIONS]
        assert {result.unet_evals for result in results} == {4}
        return sum(judge.judge(result.first.image, text) for result, text in zip(results, CAPTIONS, strict=True)) / 3

    assert scores(sibling) > max(0.8, scores(load_backend("tiny")) + 0.02)


def test_the_difference_is_of_low_rank_and_exact_where_it_can_be():
    torch.manual_seed(0)
    base = {"wide": torch.randn(96, 200), "kernel": torch.randn(128, 96, 3, 3), "bias": torch.randn(96)}
    change = {"wide": torch.randn(96, 3) @ torch.randn(3, 200), "kernel": torch.zeros(1), "bias": torch.randn(96)}
    tuned = {name: base[name] + change[name] for name in base}
    found = difference(base, tuned)
    assert found["wide.up"].shape == (96, RANK) and found["bias"].dtype == torch.float16
    for name, weight in few_step.merged(base, found).items():
        assert (weight - tuned[name]).abs().max() < 0.02


def test_the_exported_checkpoint_is_the_sibling(sibling, tmp_path):
    export(tmp_path)
    exported = load_backend(str(export_few_step(tmp_path)))
    latent = torch.randn(1, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (each.network("a frog", "", 1.0)(latent, 499) for each in (sibling, exported))
    assert (ours - theirs).abs().max() < 0.02 * ours.abs().max()
