"""`sgool.improve` on a diffusers pipeline of the caller's own, which it leaves as it was."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sgool
from sgool import tiny
from sgool.errors import SgoolError
from sgool.images import fit
from sgool.needs import needs
from sgool.presets import resolve
from sgool.result import Ending, Progress, Stop
from sgool.settings import ABOUT, SettingError

PROMPT = "a small penguin and a pizza on a green background"
FEW = {"steps": 4, "iterations": 2, "cutouts": 2}
PARTS = ("text_encoder", "vae", "unet")


def load(dtype: torch.dtype = torch.float32, **parts: Any) -> Any:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    made = StableDiffusionPipeline.from_pretrained(tiny.MODEL, safety_checker=None, local_files_only=True, **parts)
    made.set_progress_bar_config(disable=True)
    return made.to(dtype)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load()


def own_image(pipeline: Any) -> np.ndarray:
    """What the pipeline itself makes of the prompt."""
    generator = torch.Generator().manual_seed(3)
    return pipeline(PROMPT, num_inference_steps=2, generator=generator, output_type="np").images


def state(pipeline: Any) -> dict[str, Any]:
    """All that a run might leave changed in a pipeline."""
    told: dict[str, Any] = {"scheduler": dict(pipeline.scheduler.config), "own image": own_image(pipeline).tobytes()}
    for part in PARTS:
        network = getattr(pipeline, part)
        told[part] = id(network)
        for name, module in network.named_modules():
            # A patched forward, and whatever else was put on the module itself.
            told[f"{part}.{name}"] = (module.training, sorted(vars(module)), len(module._forward_hooks))
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            digest = hashlib.sha256(tensor.detach().float().numpy().tobytes()).hexdigest()
            told[f"{part}.{name}"] = (tensor.dtype, tensor.device, tensor.requires_grad, tensor.grad is None, digest)
    return told


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


class Recorder(Progress):
    """Counts, and raises what it is given at an image or a step of that number."""

    def __init__(self, error: BaseException | None = None, at_image: int = -1, at_step: int = -1) -> None:
        self.error, self.at_image, self.at_step = error, at_image, at_step
        self.images = self.steps = 0

    def step(self, done: int, total: int) -> None:
        self.steps += 1
        if self.error and self.steps == self.at_step:
            raise self.error

    def image(self, result: sgool.Result, newest: Any) -> None:
        self.images += 1
        if self.error and self.images == self.at_image:
            raise self.error


@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pipeline_is_left_as_it_was(dtype: torch.dtype, memory: str) -> None:
    pipeline = load(dtype)
    pipeline.unet.train().requires_grad_(True)
    pipeline.vae.decoder.mid_block.train()
    pipeline.text_encoder.requires_grad_(False)
    before = state(pipeline)
    improved = sgool.improve(pipeline, PROMPT, seed=1, memory=memory, **FEW)
    assert improved.result.ending is Ending.DONE and improved.result.error is None
    assert state(pipeline) == before


def test_a_forward_of_the_callers_own_stays(pipeline: Any) -> None:
    block = pipeline.vae.decoder.up_blocks[0].resnets[0]
    plain, calls = block.forward, []

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return plain(*args, **kwargs)

    block.forward = watched
    try:
        sgool.improve(pipeline, PROMPT, memory="low", **FEW)
        assert block.forward is watched and calls
    finally:
        del block.forward


@pytest.mark.parametrize("at", [{"at_image": 2}, {"at_step": 1}, {"at_step": 9}])
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_after_an_exception_the_pipeline_is_as_it_was(pipeline: Any, memory: str, at: dict[str, int]) -> None:
    class Own(Exception):
        pass

    before = state(pipeline)
    with pytest.raises(Own):
        sgool.improve(pipeline, PROMPT, memory=memory, progress=Recorder(Own(), **at), **FEW)
    assert state(pipeline) == before


def test_a_failure_after_the_first_image_is_told_and_raises_nothing(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(pipeline)
    decode, calls = pipeline.vae.decode, []

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        decoded = decode(*args, **kwargs)
        return SimpleNamespace(sample=decoded.sample * torch.nan) if len(calls) == 2 else decoded

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.vae, "decode", broken)
        improved = sgool.improve(pipeline, PROMPT, **FEW)
    assert improved.result.ending is Ending.FAILED and "NaN" in str(improved.result.error)
    assert np.array_equal(pixels(improved.before), pixels(improved.image)) and len(improved.result.losses) == 1
    assert state(pipeline) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_a_callers_mode_does_not_reach_the_run(pipeline: Any, mode: Any, memory: str) -> None:
    before = state(pipeline)
    plain = sgool.improve(pipeline, PROMPT, seed=1, memory=memory, **FEW)
    with mode():
        improved = sgool.improve(pipeline, PROMPT, seed=1, memory=memory, **FEW)
        start = torch.rand(1, 3, 128, 128)
        from_image = sgool.improve(pipeline, PROMPT, image=start, memory=memory, **FEW)
        assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert improved.result.losses == plain.result.losses and len(improved.result.losses) == 3
    assert from_image.result.ending is Ending.DONE and len(from_image.result.losses) == 3
    assert not improved.latent.is_inference() and not improved.latent.requires_grad
    assert torch.is_grad_enabled() and state(pipeline) == before


def test_critics_loaded_under_a_callers_mode_serve_a_run_outside(pipeline: Any) -> None:
    with torch.inference_mode():
        improver = sgool.Improver(pipeline, **FEW)
    assert improver(PROMPT, seed=1).result.losses == sgool.improve(pipeline, PROMPT, seed=1, **FEW).result.losses


def test_the_result_holds_images_scores_and_a_latent(pipeline: Any) -> None:
    recorder = Recorder()
    improved = sgool.improve(pipeline, PROMPT, seed=1, progress=recorder, iterations=3, steps=6)
    assert isinstance(improved, sgool.Improved) and isinstance(improved.result, sgool.Result)
    for image in (improved.before, improved.image):
        assert isinstance(image, Image.Image) and image.mode == "RGB" and image.size == (128, 128)
    assert improved.score_before == improved.result.scores[0]
    assert improved.score_after == max(improved.result.scores)
    assert improved.saliency is not None and improved.saliency.shape == (128, 128) and improved.regions
    assert improved.seed == 1 and improved.settings.steps == 6 and improved.settings.guide == "embedded"
    assert recorder.images == 4 and recorder.steps == 1 + 5 * (4 + 3)  # a sixth of the way is not improved
    assert improved.latent.shape == (1, 4, 16, 16) and improved.latent.dtype == torch.float64
    with torch.no_grad():
        latent = improved.latent.float() / pipeline.vae.config.scaling_factor
        decoded = pipeline.image_processor.postprocess(pipeline.vae.decode(latent).sample, output_type="pil")[0]
    assert np.abs(pixels(decoded) - pixels(improved.image)).max() <= 1
    assert np.abs(pixels(improved.before) - pixels(improved.image)).mean() > 0.5


def test_the_first_image_is_that_of_the_command_line(pipeline: Any, backend, critics) -> None:
    from sgool.generate import Request, generate

    improved = sgool.improve(pipeline, PROMPT, seed=7, negative_prompt="a frog", **FEW)
    result = generate(backend, critics, Request(PROMPT, "a frog", 7), improved.settings)
    assert improved.result.losses == pytest.approx(result.losses, abs=1e-6)
    assert torch.allclose(improved.latent, result.best.latent, atol=1e-5)


def scene() -> Image.Image:
    """A picture of another shape."""
    picture = np.full((150, 300, 3), 90, np.uint8)
    picture[40:110, 60:130] = (220, 60, 30)
    return Image.fromarray(picture)


@pytest.mark.parametrize("kind", ["picture", "with transparency", "tensor"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_an_image_start_begins_with_the_image(pipeline: Any, kind: str, strength: float) -> None:
    picture = scene()
    tensor = torch.from_numpy(pixels(picture)).permute(2, 0, 1)[None] / 255
    image = {"picture": picture, "with transparency": picture.convert("RGBA"), "tensor": tensor}[kind]
    improved = sgool.improve(pipeline, PROMPT, image=image, strength=strength, steps=8, iterations=1, cutouts=2)
    assert improved.settings.start == "image" and improved.before.size == (256, 128)
    given = fit(tensor, (128, 128))
    with torch.no_grad():
        latent = pipeline.vae.encode(given * 2 - 1).latent_dist.mean
        seen = (pipeline.vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)
    expected = (seen[0].permute(1, 2, 0) * 255).round().int().numpy()
    assert np.abs(pixels(improved.before) - expected).max() <= 1
    assert np.abs(pixels(improved.before)[:, 200:] - 90).mean() < 40


@pytest.mark.parametrize("at", [{"at_image": 2}, {"at_step": 5 * 4}])
def test_stopping_ends_with_the_best_so_far(pipeline: Any, at: dict[str, int]) -> None:
    before = state(pipeline)
    recorder = Recorder(Stop(), **at)
    improved = sgool.improve(pipeline, PROMPT, seed=1, progress=recorder, **{**FEW, "iterations": 9})
    assert improved.result.ending is Ending.INTERRUPTED and not improved.result.failed
    assert 1 <= len(improved.result.scores) <= 3 and improved.score_after == max(improved.result.scores)
    assert state(pipeline) == before


def test_stopping_before_the_first_image_raises(pipeline: Any) -> None:
    before = state(pipeline)
    with pytest.raises(sgool.Stop):
        sgool.improve(pipeline, PROMPT, progress=Recorder(Stop(), at_step=1), **FEW)
    assert state(pipeline) == before


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"steps": 1}, "steps must be at least 2"),
        ({"stepz": 9}, "'stepz' is no setting"),
        ({"guide": "nobody"}, "no critic 'nobody'"),
        ({"guide": "clip:../x/y"}, "clip:MODEL/WEIGHTS"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least"),
        ({"start": "image"}, "go together"),
        ({"seed": -1}, "seed must lie"),
        ({"seed": 2**63}, "seed must lie"),
        ({"prompt": " , "}, "prompt is empty"),
        ({"negative_prompt": "\udce9"}, "not text"),
        ({"image": torch.zeros(3, 64, 64)}, r"\[1, 3, H, W\], not \[3, 64, 64\]"),
        ({"image": torch.zeros(2, 3, 64, 64)}, r"not \[2, 3, 64, 64\]"),
        ({"image": torch.zeros(1, 3, 0, 64)}, r"not \[1, 3, 0, 64\]"),
        ({"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "floating point numbers, not uint8"),
        ({"image": torch.full((1, 3, 64, 64), torch.nan)}, "NaN"),
        ({"image": torch.full((1, 3, 64, 64), 255.0)}, r"lies in \[0, 1\], and this one in \[255, 255\]"),
        ({"image": torch.full((1, 3, 64, 64), -1.0)}, r"lies in \[0, 1\]"),
        ({"image": "picture.png"}, "a PIL image or a tensor"),
        ({"image": np.zeros((64, 64, 3))}, "a PIL image or a tensor, not a ndarray"),
        ({"image": Image.new("RGB", (0, 9))}, "has no pixels"),
        ({"prompt": ["a car"]}, "prompt must be a text"),
        ({"negative_prompt": None}, "negative prompt must be a text"),
        ({"seed": True}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"progress": print}, "progress must be"),
        ({"progress": Recorder}, "progress must be"),
        ({"memory": "x"}, "memory must be one of fast, balanced, low"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be at least"),
    ],
)
def test_input_that_cannot_be_used_is_refused(pipeline: Any, given: dict[str, Any], sentence: str) -> None:
    before = state(pipeline)
    with pytest.raises(SgoolError, match=sentence):
        sgool.improve(pipeline, **{"prompt": PROMPT, **FEW, **given})
    assert state(pipeline) == before


def test_a_wrong_setting_is_refused_before_anything_is_loaded(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgool.door.load_critics", None)
    with pytest.raises(SettingError) as caught:
        sgool.Improver(pipeline, strength=2)
    assert caught.value.name == "strength"


def test_what_belongs_to_the_webui_is_refused(pipeline: Any) -> None:
    with pytest.raises(SettingError, match=r"^render belongs to the WebUI alone\.$"):
        sgool.Improver(pipeline, render="yours")


@pytest.mark.parametrize("wrong", [{"seed": 0.5}, {"image": 5}, {"prompt": ""}, {"progress": 1}], ids=str)
def test_wrong_input_is_refused_before_anything_is_loaded(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    monkeypatch.setattr("sgool.door.fetch", None)
    with pytest.raises(SgoolError):
        sgool.improve(pipeline, **{"prompt": PROMPT, **wrong})


def test_a_picture_whose_file_is_cut_short_is_refused(pipeline: Any, tmp_path) -> None:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(SgoolError, match="initial image cannot be read"):
        sgool.improve(pipeline, PROMPT, image=Image.open(path), **FEW)


def test_pipelines_of_other_models_are_refused(pipeline: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel

    config = dict(pipeline.unet.config)
    inpainting = load(unet=UNet2DConditionModel.from_config({**config, "in_channels": 9}))
    with pytest.raises(SgoolError, match="This StableDiffusionPipeline is not a Stable Diffusion"):
        sgool.improve(inpainting, PROMPT)
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    sdxl = UNet2DConditionModel.from_config({**config, **conditions, "projection_class_embeddings_input_dim": 48})
    with pytest.raises(SgoolError, match="not a Stable Diffusion"):
        sgool.improve(load(unet=sdxl), PROMPT)
    for other in (SimpleNamespace(transformer=None), None, pipeline.unet):
        with pytest.raises(SgoolError, match="not a Stable Diffusion"):
            sgool.improve(other, PROMPT)
    # Another pipeline of the same parts will do: only the parts are used.
    img2img = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    own = {name: value for name, value in resolve(FEW, model="tiny").as_dict().items() if ABOUT[name].cli}
    assert sgool.improve(img2img, PROMPT, **own).result.ending is Ending.DONE


@pytest.mark.parametrize("part", PARTS)
def test_networks_that_are_moved_away_are_refused(pipeline: Any, part: str) -> None:
    network = getattr(pipeline, part)
    network._hf_hook = object()  # as accelerate does
    try:
        with pytest.raises(SgoolError, match="offload"):
            sgool.improve(pipeline, PROMPT, **FEW)
    finally:
        del network._hf_hook


def test_an_improver_serves_several_images(pipeline: Any) -> None:
    improver = sgool.Improver(pipeline, **FEW)
    first, other, again = (improver(PROMPT, seed=seed) for seed in (1, 2, 1))
    assert first.result.losses == again.result.losses != other.result.losses
    assert torch.equal(first.latent, again.latent)
    from_image = improver("a frog", image=first.image)
    assert from_image.settings.start == "image" and improver.settings.start == "seed"
    assert np.abs(pixels(from_image.before) - pixels(first.image)).mean() < 25
    assert sgool.improve(pipeline, PROMPT, seed=2, **FEW).result.losses == other.result.losses


def test_low_memory_makes_the_image_of_fast(pipeline: Any) -> None:
    fast, low = (sgool.improve(pipeline, PROMPT, seed=1, memory=memory, **FEW) for memory in ("fast", "low"))
    assert torch.allclose(fast.result.first.image, low.result.first.image, atol=1e-3)
    assert torch.allclose(fast.result.best.image, low.result.best.image, atol=1e-2)
    assert fast.result.best.iteration == low.result.best.iteration


def test_other_folders_get_the_general_defaults(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fetch", "load_critics"):
        monkeypatch.setattr(f"sgool.door.{name}", lambda *_: None)
    own = sgool.Improver(pipeline).settings
    monkeypatch.setattr(type(pipeline), "name_or_path", "somebody/else", raising=False)
    other = sgool.Improver(pipeline).settings
    assert (own.steps, own.guide) == (10, "embedded") and other == sgool.Settings()


def test_weights_are_kept_where_the_environment_says(pipeline: Any, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    asked = []
    monkeypatch.setenv("SGOOL_MODELS", str(tmp_path))
    monkeypatch.setattr("sgool.door.fetch", lambda *given: asked.append(given))
    monkeypatch.setattr("sgool.door.load_critics", lambda *given: asked.append(given))
    wanted = needs(sgool.Improver(pipeline).settings)
    assert asked == [(wanted, tmp_path), (wanted, tmp_path, torch.device("cpu"), False)]


def test_zoom_paints_a_place_of_an_image_of_ones_own(pipeline: Any) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 200, 3), np.uint8))
    mask = Image.new("L", picture.size)
    mask.paste(255, (50, 40, 110, 100))
    before = state(pipeline)
    own = {"zoom": True, "zoom_by": "mask", "zoom_judge": False, "zoom_padding": 0.0, "iterations": 0, "steps": 4}
    improver = sgool.Improver(pipeline, **own)
    with torch.inference_mode():
        zoomed = improver(PROMPT, image=picture, mask=mask)
    assert state(pipeline) == before
    assert zoomed.zoomed is not None and zoomed.zoomed.kept == 1
    assert zoomed.before.size == zoomed.image.size == picture.size
    changed = (np.asarray(zoomed.image) != np.asarray(picture)).any(-1)
    assert changed[np.asarray(mask) > 0].mean() > 0.9 and not changed[np.asarray(mask) == 0].any()
    assert zoomed.score_after != zoomed.score_before == zoomed.result.best.score
    with pytest.raises(SgoolError, match="The mask has 100x100 pixels, but the image 200x150"):
        improver(PROMPT, image=picture, mask=mask.resize((100, 100)))
    with pytest.raises(SettingError, match="mask and a mask go together"):
        improver(PROMPT, image=picture)


def test_zoom_comes_after_the_whole_image(pipeline: Any) -> None:
    improved = sgool.improve(pipeline, PROMPT, seed=5, zoom=True, zoom_judge=False, zoom_largest=1.0, **FEW)
    assert improved.zoomed is not None and improved.zoomed.kept and improved.result.iterations == 2
    best = (improved.result.best.image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    assert (np.asarray(improved.image) != best).any()
    plain = sgool.improve(pipeline, PROMPT, seed=5, **FEW)
    assert plain.zoomed is None and plain.image.tobytes() == best.tobytes()
