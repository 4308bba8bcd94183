"""On a CUDA device: what a CPU cannot show. Half precision, the GPU's own kernels and its memory running out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sgool
from sgool import tiny
from sgool.backends.diffusers import load_backend
from sgool.generate import Request, generate, load_critics
from sgool.job import Job, run
from sgool.lab.bench import ALL, exactness, trajectory_of
from sgool.lab.bench_update import our_work, random_critics
from sgool.lab.peak_memory import PeakMemory
from sgool.lab.random_backend import SIZES, RandomBackend
from sgool.needs import needs
from sgool.presets import resolve
from sgool.result import Ending, Progress
from sgool.saliency import LoadedDetector, load_detector
from sgool.saliency.transalnet import Predictor, TranSalNet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")
PROMPT = "a small penguin and a pizza on a green background"


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def model(request):
    return load_backend("tiny", device=CUDA, dtype=getattr(torch, request.param))


@pytest.fixture(scope="module")
def cuda_critics():
    return load_critics(needs(resolve({}, model="tiny")), Path("unused"), CUDA)


@pytest.mark.parametrize("name", ["bdia", "o-belm", "edict", "ddim"])
def test_noise_is_recovered_to_the_last_bit_and_the_gradient_is_autograds(model, name) -> None:
    row = exactness(model, PROMPT, name, 20)
    assert row["reconstruction_error"] in (0.0, None)
    assert row["gradient_error"] < (1e-5 if model.dtype == torch.float32 else 0.1)


def test_memory_does_not_grow_with_the_steps(model) -> None:
    rows = [exactness(model, PROMPT, "bdia", steps) for steps in (5, 50)]
    assert rows[1]["peak_memory_mb"] < 1.05 * rows[0]["peak_memory_mb"]
    assert rows[1]["autograd_memory_mb"] > 4 * rows[0]["autograd_memory_mb"]


def test_a_run_is_much_the_same_twice_and_needs_no_stored_latents(model, cuda_critics) -> None:
    settings = resolve({"iterations": 4, "steps": 10, "candidates": 2}, model="tiny")
    first, second = (generate(model, cuda_critics, Request(PROMPT, seed=3), settings) for _ in range(2))
    assert first.error is None and first.ending is Ending.DONE and not first.stored_latents
    assert len(first.losses) == 5 and torch.tensor(first.losses).isfinite().all()
    assert first.losses == pytest.approx(second.losses, abs=0.01)  # a GPU adds up gradients in any order


def test_the_command_line_takes_the_gpu_in_half_precision(tmp_path: Path) -> None:
    figures, result = run(Job(prompt=PROMPT, out=tmp_path, seed=3, values={"iterations": 2}))
    assert result.error is None and len(result.scores) == 3
    assert figures["score_before"] == result.scores[0] and figures["score_after"] == max(result.scores)
    assert result.best.image.device.type == "cuda" and figures["peak_memory_mb"] > 1
    assert (tmp_path / "comparison.png").is_file()


@pytest.mark.parametrize("name", ["bdia", "o-belm", "edict"])
def test_stable_diffusions_architecture_is_undone_exactly_in_half_precision(name) -> None:
    """Its attention and convolutions take other kernels than those of small networks."""
    backend = RandomBackend(SIZES["sd15"], CUDA, torch.float16)
    trajectory = trajectory_of(backend, ALL[name], 10, PROMPT, 7.5)
    noise = backend.noise(0)
    final = trajectory.run(trajectory.initial(noise))
    (recovered,), (gradient,) = trajectory.adjoint(final, trajectory.image(final))
    assert torch.equal(recovered, noise) and gradient.abs().sum() > 0


def test_each_choice_of_memory_takes_less_than_the_one_before() -> None:
    peaks = []
    for memory in ("fast", "balanced", "low"):
        backend = RandomBackend(SIZES["sd15"], CUDA, torch.float16, memory)
        with PeakMemory(CUDA) as peak:
            our_work(backend, random_critics(SIZES["sd15"], CUDA), 4)(1, lambda: None)
        peaks.append(peak.bytes)
    assert peaks[0] > peaks[1] > peaks[2]


def test_a_gpu_without_memory_left_gives_the_best_image_so_far(cuda_critics) -> None:
    """A real failure to allocate, in the middle of a run."""
    backend = load_backend("tiny", device=CUDA, dtype=torch.float16)
    settings = resolve({"iterations": 4, "steps": 4}, model="tiny")
    total = torch.cuda.get_device_properties(CUDA).total_memory
    taken = []

    class Fill(Progress):
        def image(self, result, newest) -> None:
            if newest.iteration == 1:
                torch.cuda.empty_cache()
                torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**20) / total)
                taken.append(newest)

    try:
        result = generate(backend, cuda_critics, Request(PROMPT, seed=3), settings, Fill())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert taken and isinstance(result.error, torch.cuda.OutOfMemoryError)
    assert len(result.losses) == 2 and result.best.image.isfinite().all() and "best image so far" in result.ended
    again = generate(backend, cuda_critics, Request(PROMPT, seed=3), settings)
    assert again.error is None


@pytest.mark.parametrize("variant", ["res", "dense"])
def test_saliency_is_the_cpus(variant) -> None:
    torch.manual_seed(0)
    network = TranSalNet(variant).eval().requires_grad_(False)
    image = torch.rand(1, 3, 288, 384)
    on_cpu = LoadedDetector(Predictor(network), torch.device("cpu"))(image)
    on_gpu = LoadedDetector(Predictor(network.to(CUDA)), CUDA)(image.to(CUDA))
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=5e-3)


def test_spectral_saliency_is_the_cpus() -> None:
    image = torch.rand(1, 3, 288, 384, generator=torch.Generator().manual_seed(0))
    on_gpu = load_detector("spectral", device=CUDA)(image.to(CUDA))
    torch.testing.assert_close(on_gpu.cpu(), load_detector("spectral")(image), rtol=0, atol=1e-3)


def test_a_pipeline_in_half_precision_on_the_gpu_is_improved_and_left_as_it_was() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny.MODEL, safety_checker=None).to("cuda", torch.float16)
    weights = [weight for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for weight in part.parameters()]
    before = [(weight.device, weight.dtype, weight.requires_grad, weight.clone()) for weight in weights]
    improved = sgool.improve(pipeline, PROMPT, seed=3, iterations=2, memory="balanced")
    assert improved.result.error is None and len(improved.result.scores) == 3
    assert improved.score_before == improved.result.scores[0] and improved.score_after == max(improved.result.scores)
    assert improved.latent.is_cuda and improved.image.size == (128, 128)
    for weight, (device, dtype, grad, value) in zip(weights, before, strict=True):
        assert (weight.device, weight.dtype, weight.requires_grad) == (device, dtype, grad)
        assert torch.equal(weight, value)
