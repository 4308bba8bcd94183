"""The requests of the tests to the WebUI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from hosts import HOST
from PIL import Image, ImageDraw
from webui_server import Pictures, WebUI, encode

SIZE = HOST.size
"""Width and height of the images."""

MODEL = HOST.checkpoint.removesuffix(".safetensors")

PROMPT = "a car and a small frog on a busy red background"

BASE: dict[str, Any] = {
    "prompt": PROMPT,
    "seed": 8,
    "steps": 5,
    "cfg_scale": 4.0,
    "width": SIZE,
    "height": SIZE,
    "sampler_name": "DDIM",
    "scheduler": "Automatic",
}

# A few cheap iterations, but everything runs: updates are rendered and regions are found. Only embedded weights.
SGOOL: dict[str, Any] = {
    "enabled": True,
    "iterations": 2,
    "steps": 4,
    "cutouts": 2,
    "learning_rate": 0.3,
    "warmup": 0,
    "saliency": "spectral",
    "guide": "embedded",
    "selector": "embedded",
}


def picture() -> Image.Image:
    """An image of the model's world to start img2img from."""
    image = Image.new("RGB", (128, 128), (200, 40, 40))
    draw = ImageDraw.Draw(image)
    draw.ellipse((16, 40, 64, 88), fill=(40, 160, 60))
    draw.rectangle((76, 60, 116, 92), fill=(60, 90, 200))
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def mask() -> Image.Image:
    """The right half is white and is painted again."""
    image = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(image).rectangle((SIZE // 2, 0, SIZE, SIZE), fill=255)
    return image


IMG2IMG = {**BASE, "init_images": [encode(picture())], "denoising_strength": 0.6}
INPAINT = {**IMG2IMG, "mask": encode(mask()), "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
HIRES: dict[str, Any] = {
    **BASE,
    "enable_hr": True,
    "hr_scale": 1.5,
    "denoising_strength": 0.5,
    "hr_second_pass_steps": 3,
    "hr_upscaler": "Latent",
    **HOST.hires,
}

UNTICKED: dict[str, dict[str, Any]] = {
    "txt2img": BASE,
    "ancestral batch": {**BASE, "sampler_name": "Euler a", "batch_size": 2},
    "hires latent": HIRES,
    "img2img": IMG2IMG,
    "inpainting": INPAINT,
}


def make(server: WebUI, payload: dict[str, Any], sgool: dict[str, Any] | list[Any] | None = None) -> Pictures:
    """Run txt2img, or img2img if there are initial images, with SGOOL's arguments if they are given."""
    way = "img2img" if "init_images" in payload else "txt2img"
    if sgool is not None:
        arguments = sgool if isinstance(sgool, list) else [sgool]
        payload = {**payload, "alwayson_scripts": {**payload.get("alwayson_scripts", {}), "SGOOL": {"args": arguments}}}
    return Pictures(server.post(f"/sdapi/v1/{way}", payload))


def make_anew(server: WebUI, payload: dict[str, Any], sgool: dict[str, Any] | None = None) -> Pictures:
    """As `make`, but from the same random numbers every time. What encodes an initial image draws from those that the
    image before it has left, also without the extension.
    """
    if "init_images" in payload:
        make(server, BASE)
    return make(server, payload, sgool)


def plot(server: WebUI, x: tuple[str, Any], y: tuple[str, Any] = ("Nothing", "")) -> dict[str, Any]:
    """The payload of an X/Y/Z plot. x, y: an axis and its values, as a text or, for an axis with choices, a list."""
    name = "x/y/z plot"
    (script,) = (
        each for each in server.get("/sdapi/v1/script-info") if each["name"] == name and not each["is_img2img"]
    )
    labels = script["args"][0]["choices"]
    arguments: list[Any] = []
    for label, values in (x, y, ("Nothing", "")):
        arguments += [labels.index(label), *(("", values) if isinstance(values, list) else (values, []))]
    # Forks have more of these, and the last one is always whether the values are text.
    asked = {"Draw legend": False, "Include Sub Images": True}
    arguments += [asked.get(each["label"], each["value"]) for each in script["args"][len(arguments) :]]
    return {**BASE, "script_name": name, "script_args": arguments}


def difference(one: Image.Image, other: Image.Image) -> np.ndarray:
    """The largest difference of a channel for each pixel of two images: [H, W], 0 to 255."""
    return np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max(-1)


def differ(one: Pictures, other: Pictures) -> bool:
    """Whether a pixel of the first images differs. Infotexts may differ anyway."""
    return bool(difference(one.image(), other.image()).any())


@dataclass(frozen=True)
class Outcome:
    """What the infotext of an image says about its run with SGOOL. Without a run: scores 0 and iterations -1."""

    before: float
    after: float
    regions: int
    iterations: int
    version: str
    note: str

    @property
    def better(self) -> bool:
        return self.after > self.before


def outcome(pictures: Pictures, index: int = 0) -> Outcome:
    text = pictures.texts[index]

    def read(key: str, missing: str) -> str:
        found = re.search(rf'SGOOL {key}: ("(?:[^"\\\\]|\\\\.)*"|[^,]*)', text)
        return found[1].strip('"') if found else missing

    return Outcome(
        float(read("score before", "0")),
        float(read("score after", "0")),
        int(read("regions found", "0")),
        int(read("iterations done", "-1")),
        read("version", ""),
        read("note", ""),
    )
