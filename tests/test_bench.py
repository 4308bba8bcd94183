"""The benchmark of the samplers: its measures against known values, and its figures for the real model."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from sgool import lab
from sgool.lab.bench import (
    ALL,
    Subject,
    autograd_gradient,
    bench,
    exactness,
    quality,
    render_tables,
    spectral_ratio,
    trajectory_of,
)
from sgool.lab.bench_descent import descent
from sgool.lab.compare import read_captions
from sgool.lab.peak_memory import PeakMemory
from sgool.samplers import Branch, Network

CPU = torch.device("cpu")
CAPTIONS = [f"caption {i}" for i in range(6)]


class Linear:
    """A backend with eps(x, t) = slope * x. A picture is the first three channels of its latent."""

    device = CPU
    alphas_cumprod = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
    size = (8, 8)

    def __init__(self, slope: float = 0.3, prediction: str = "epsilon") -> None:
        self.slope, self.prediction = slope, prediction

    def network(self, prompt, negative_prompt: str, guidance_scale: float) -> Network:
        return Network([Branch(1.0, lambda x, t: self.slope * x, 2)], self.alphas_cumprod, self.prediction)

    def noise(self, seed: int) -> Tensor:
        return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def encode(self, image: Tensor) -> Tensor:
        return torch.cat([image, image[:, :1]], 1).double()

    def decode(self, latent: Tensor) -> Tensor:
        return latent[:, :3].float()


class Seeds:
    """A judge that finds caption i in the picture of seed i, but caption 0 in the picture of seed 2."""

    def encode_text(self, prompt: str) -> Tensor:
        return torch.eye(6)[CAPTIONS.index(prompt)]

    def encode_image(self, images: Tensor) -> Tensor:
        first = torch.cat([Linear().noise(seed) for seed in range(6)])[:, :3].sign().flatten(1)
        # DDIM only scales this backend's noise, and positive entries stay positive when clamped to [0, 1].
        seeds = ((images > 0).double().flatten(1) @ first.T).argmax(1)
        return torch.eye(6)[torch.where(seeds == 2, 0, seeds)]


class Pixels:
    """A guide that embeds a picture as the picture itself, and any text as a gray picture."""

    def encode_text(self, prompt: str) -> Tensor:
        return torch.nn.functional.normalize(torch.ones(3 * 64), dim=0)

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.flatten(1), dim=1)


def test_gradient_steps_lower_a_smooth_loss_and_random_steps_do_not() -> None:
    row = descent(Linear(), Pixels(), CAPTIONS, 4.0)
    assert row["lowered"] == [1.0] * 4
    assert row["gradient"] == sorted(row["gradient"], reverse=True) and row["loss"] > 0
    for rate, change, random in zip(row["rates"], row["gradient"], row["random"], strict=True):
        assert change < -0.1 * rate and abs(random) < -0.3 * change


def test_without_guidance_a_step_lowers_the_embedded_models_loss_further(backend, critics) -> None:
    captions = [row["caption"] for row in read_captions(lab.CAPTIONS)[:6]]
    whole, none = (descent(backend, critics.guide, captions, scale)["gradient"][2] for scale in (4.0, 1.0))
    assert none < min(0.0, whole) - 0.01


def test_peak_memory_counts_live_tensors() -> None:
    x = torch.zeros(1000)
    with PeakMemory(CPU) as memory:
        y = x + 1
        z = y * 2  # two tensors of 4000 bytes: the peak
        del y
        view = z.view(10, 100)
        del z
        view += 1
        copy = view.t().contiguous()
        del view, copy
        torch.zeros(100)
    assert memory.bytes == 8000


def test_peak_memory_counts_tensors_saved_for_backward() -> None:
    x = torch.ones(1000, requires_grad=True)
    with PeakMemory(CPU) as memory:
        y = x
        for _ in range(10):
            y = y.sin()  # each saves its input, and nine of these inputs are made here
        y.sum().backward()
    assert 9 * 4000 < memory.bytes < 13 * 4000  # also the last result, and temporary gradients


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["bdia", "o-belm", "edict", "ddim"])
def test_full_autograd_is_right_for_a_linear_sampler(name: str, prediction: str) -> None:
    # With a linear network the sampler is x -> factor * x, so the gradient of |image|^2 / 2 is factor^2 * x.
    backend = Linear(prediction=prediction)
    trajectory = trajectory_of(backend, ALL[name], 6, "", 1.0)
    image = trajectory.image(trajectory.run(trajectory.initial(backend.noise(0))))
    factor = (image / backend.noise(0)).median()
    gradient = autograd_gradient(trajectory, backend.noise(0))
    torch.testing.assert_close(gradient, factor**2 * backend.noise(0), rtol=1e-4, atol=1e-5)


def test_quality_counts_scores_and_right_captions() -> None:
    row = quality(Subject(Linear(), Seeds(), Pixels(), CAPTIONS), CAPTIONS[:4], "ddim", 5, 4.0)
    assert row["accuracy"] == row["score_mean"] == 0.75
    low, high = row["ci95"]
    assert high - 0.75 == pytest.approx(0.75 - low) == pytest.approx(1.96 * 0.5 / 2)


def test_white_noise_has_a_flat_spectrum() -> None:
    noise = torch.randn(50, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert spectral_ratio(noise) == pytest.approx(1, abs=0.05)
    assert spectral_ratio(noise + 5) == pytest.approx(1, abs=0.05)
    assert spectral_ratio(torch.nn.functional.avg_pool2d(noise, 3, 1, 1)) > 3


def test_the_embedded_model_is_sampled_exactly_in_constant_memory(backend) -> None:
    rows = [exactness(backend, "a car on a red background", "bdia", steps) for steps in (2, 6)]
    for row, steps in zip(rows, (2, 6), strict=True):
        assert row["reconstruction_error"] <= 1e-8 and row["gradient_error"] <= 1e-4
        assert row["evals_forward"] == row["evals_backward"] == 2 * steps
    assert rows[1]["peak_memory_mb"] == pytest.approx(rows[0]["peak_memory_mb"], rel=0.05)
    assert rows[1]["autograd_memory_mb"] > 2.5 * rows[0]["autograd_memory_mb"]


def test_all_figures_are_json_and_tables() -> None:
    subject = Subject(Linear(), Seeds(), Pixels(), CAPTIONS, half=Linear(0.2), count=5)
    figures = bench(subject, quick=True, progress=False)
    assert json.loads(json.dumps(figures)) == figures
    keys = ("samplers", "sampler_quality", "inverted_latents", "descent", "updates")
    assert [len(figures[key]) for key in keys] == [16, 5, 4, 3, 3]
    assert {row["reconstruction_error"] for row in figures["samplers"] if row["sampler"] == "ddim"} == {None}
    assert figures["image_start_error"] < 1e-6 and figures["seconds_ratio_bdia_to_edict"] > 0
    assert figures["seconds_ratio_candidates"] > 0 and figures["seconds_ratio_lockstep"] > 0
    tables = render_tables(figures)
    rows = [line for line in tables.splitlines() if line.startswith("|")]
    assert len(rows) == 5 * 2 + 16 + 5 + 4 + 3 + 3
    assert "| bdia | 10 | float32 |" in tables and "| ddim | 5 | float32 |  |" in tables
