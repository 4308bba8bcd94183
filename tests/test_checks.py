"""Values of a caller's Python code that fit nowhere: SgoolError with one sentence, and no other exception."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sgool
from sgool import tiny
from sgool.backends.diffusers import DiffusersBackend, check_pipeline, find_model, load_backend
from sgool.checks import as_folder, shown, usable_device, usable_dtype
from sgool.errors import SgoolError
from sgool.generate import Request, generate, load_critics
from sgool.needs import fetch, needs
from sgool.presets import resolve
from sgool.settings import Settings

CPU = torch.device("cpu")


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ODD: list[Any] = [None, 2.5, True, b"x", [], {}, Odd(), torch.ones(2), math.nan, 10**5000, object(), Odd]
"""What is no text, no whole number, no path, no tensor [1, C, H, W] and no object of ours."""

SMALL = resolve({"steps": 2, "iterations": 0, "cutouts": 1}, model="tiny")


def refused(call: Any, names: str = "") -> None:
    with pytest.raises(SgoolError) as caught:
        call()
    told = str(caught.value)
    assert told.endswith(".") and "\n" not in told and len(told) < 400 and names in told


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_what_fits_nowhere_is_refused_everywhere(value: Any, backend: Any, critics: Any) -> None:
    wanted = needs(SMALL)
    image = SMALL.changed(start="image")
    refused(lambda: generate(backend, critics, Request(value), SMALL), "prompt")
    refused(lambda: generate(backend, critics, Request("a car", value), SMALL), "negative prompt")
    refused(lambda: generate(backend, critics, Request("a car", seed=value), SMALL), "seed")
    if value is not None:
        refused(lambda: generate(backend, critics, Request("a car", init_latent=value), image), "latent")
        refused(lambda: generate(backend, critics, Request("a car"), SMALL, value), "progress")
    refused(lambda: generate(backend, critics, Request("a car"), value), "settings")
    refused(lambda: generate(backend, critics, value, SMALL), "request")
    refused(lambda: generate(backend, value, Request("a car"), SMALL), "critics")
    refused(lambda: generate(value, critics, Request("a car"), SMALL), "backend")
    refused(lambda: load_critics(wanted, value), "folder")
    refused(lambda: fetch(wanted, value), "folder")
    refused(lambda: load_critics(wanted, "unused", value), "device")
    refused(lambda: load_backend(device=value), "device")
    refused(lambda: load_backend(dtype=value), "precision")
    refused(lambda: load_backend(memory=value), "memory")
    refused(lambda: find_model(value), "model")
    refused(lambda: DiffusersBackend(value), "Stable Diffusion")
    refused(lambda: backend.network(value), "prompt")
    refused(lambda: backend.network("a car", value), "negative prompt")
    refused(lambda: backend.noise(value), "seed")
    refused(lambda: backend.encode(value), "image")
    refused(lambda: backend.decode(value), "latent")
    refused(lambda: resolve({}, preset=value), "preset")
    if value != {}:
        refused(lambda: resolve(value), "settings")
        refused(lambda: Settings.of(value), "settings")


@pytest.mark.parametrize("scale", [math.nan, math.inf, "7", None, True])
def test_a_guidance_scale_is_a_finite_number(scale: Any, backend: Any) -> None:
    refused(lambda: backend.network("a car", "", scale), "guidance scale")


@pytest.mark.parametrize("seed", [True, 1.0, "1", -1, 2**63, 10**5000, None], ids=shown)
def test_a_seed_is_a_whole_number_in_range(seed: Any, backend: Any, critics: Any) -> None:
    refused(lambda: generate(backend, critics, Request("a car", seed=seed), SMALL), "seed")


@pytest.mark.parametrize(
    ("latent", "told"),
    [
        (torch.zeros(4, 16, 16), "not [4, 16, 16]"),
        (torch.zeros(2, 4, 16, 16), "not [2, 4, 16, 16]"),
        (torch.zeros(1, 3, 16, 16), "not [1, 3, 16, 16]"),
        (torch.zeros(1, 4, 0, 16), "not [1, 4, 0, 16]"),
        (torch.zeros(1, 4, 16, 4), "at least 8"),
        (torch.zeros(1, 4, 16, 16, dtype=torch.int64), "int64"),
        (torch.zeros(1, 4, 16, 16, device="meta"), "meta"),
        (torch.zeros(1, 4, 16, 16).to_sparse(), "sparse"),
        (torch.full((1, 4, 16, 16), math.nan), "NaN"),
        (torch.full((1, 4, 16, 16), math.inf), "infinite"),
    ],
)
def test_an_initial_latent_is_one_image_of_finite_numbers(latent: Any, told: str, backend: Any, critics: Any) -> None:
    settings = SMALL.changed(start="image")
    refused(lambda: generate(backend, critics, Request("a car", init_latent=latent), settings), told)


def test_an_initial_latent_of_another_precision_will_do(backend: Any, critics: Any) -> None:
    latent = backend.noise(1).half()
    result = generate(backend, critics, Request("a car", init_latent=latent), SMALL.changed(start="image"))
    assert torch.allclose(result.first.latent, latent.double(), atol=1e-2)


class Named:
    """A path of another library."""

    def __fspath__(self) -> str:
        return "weights"


def test_a_folder_is_named_by_a_text_or_any_path() -> None:
    assert as_folder("weights") == as_folder(Path("weights")) == as_folder(Named()) == Path("weights")
    assert as_folder("~") == Path.home()
    for wrong in ("", "a\0b", "~nobody-has-this-name/x"):
        refused(lambda wrong=wrong: as_folder(wrong), "folder")
    assert load_critics(needs(SMALL), Named()).guide is not None


def test_devices_and_precisions_go_by_name_too() -> None:
    assert usable_device("cpu") == usable_device(CPU) == CPU
    assert usable_dtype("float16") is usable_dtype(torch.float16) is torch.float16
    for wrong in (torch.int32, torch.complex64, "int8", "half"):
        refused(lambda wrong=wrong: usable_dtype(wrong), "one of float16, bfloat16, float32, float64")
    refused(lambda: usable_device("abacus"), "'abacus'")


def test_a_value_is_shown_short_and_on_one_line() -> None:
    assert shown("a") == "'a'" and "\n" not in shown(torch.zeros(9, 9)) and len(shown("x" * 999)) <= 60
    assert "\n" not in shown(Odd()) and shown(10**5000)


def test_a_model_may_be_a_path() -> None:
    assert find_model(Path(tiny.MODEL)) == Path(tiny.MODEL)


def parts(**changes: Any) -> Any:
    """What `check_pipeline` looks at of a pipeline that it takes, but for these."""
    usual = {
        "unet": SimpleNamespace(config=SimpleNamespace(in_channels=4)),
        "vae": object(),
        "text_encoder": SimpleNamespace(config=SimpleNamespace(vocab_size=4)),
        "tokenizer": "abcd",
        "scheduler": SimpleNamespace(alphas_cumprod=torch.ones(1)),
    }
    return SimpleNamespace(**{**usual, **changes})


def test_a_pipeline_has_all_its_parts_and_a_noise_schedule() -> None:
    check_pipeline(parts(), "It")
    for part in vars(parts()):
        refused(lambda part=part: check_pipeline(parts(**{part: None}), "It"), "It is not a Stable Diffusion")
    refused(lambda: check_pipeline(parts(scheduler=object()), "It"), "It has a object")
    refused(lambda: check_pipeline(parts(tokenizer="a"), "It"), "1 of the 4 words")


def test_networks_are_on_one_device_in_a_known_precision(backend: Any) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny.MODEL, safety_checker=None, local_files_only=True)
    pipeline.unet.to(torch.float8_e4m3fn)
    refused(lambda: sgool.improve(pipeline, "a car"), "float8")
    pipeline.unet.to("meta", torch.float32)
    refused(lambda: sgool.improve(pipeline, "a car"), "one device")
    pipeline.vae.to("meta")
    pipeline.text_encoder.to("meta")
    refused(lambda: sgool.improve(pipeline, "a car"), "meta holds no data")
