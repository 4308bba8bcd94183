"""The one table of parameters, from which command-line flags and their checks are drawn."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgool.checkpointing import MEMORY
from sgool.errors import SgoolError
from sgool.guidance.clip import DEFAULT_MODEL, DEFAULT_TAG
from sgool.saliency import DETECTORS
from sgool.samplers import SAMPLERS


@dataclass(frozen=True)
class Setting:
    """A parameter: its type is its default's. low and high are inclusive bounds, above an exclusive one; choices are
    all there are. The help is a phrase that holds on the command line and in the WebUI.
    """

    default: Any
    label: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    above: float | None = None

    def check(self, name: str, value: Any) -> Any:
        """The value in the parameter's own type. Raises SgoolError, naming the parameter, when it does not fit."""
        kind = type(self.default)
        shown = reprlib.repr(value)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise SgoolError(f"{name} must be {_KINDS[kind]}, not {shown}.")
        if self.choices and value not in self.choices:
            raise SgoolError(f"{name} must be one of {', '.join(self.choices)}, not {shown}.")
        # Written so that NaN fails too.
        if self.low is not None and not value >= self.low:
            raise SgoolError(f"{name} must be at least {self.low}, not {shown}.")
        if self.above is not None and not value > self.above:
            raise SgoolError(f"{name} must be above {self.above}, not {shown}.")
        if self.high is not None and not value <= self.high:
            raise SgoolError(f"{name} must be at most {self.high}, not {shown}.")
        return kind(value)


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}

SETTINGS: dict[str, Setting] = {
    "method": Setting(
        "sgool",
        "Method",
        "sgool: the whole image and where people look; doodl: the whole image only, as DOODL does; none: no updates",
        choices=("sgool", "doodl", "none"),
    ),
    "sampler": Setting(
        "auto",
        "Sampler",
        "a sampler that runs backwards, too; auto: bdia from noise, o-belm from an image; ddim: takes more memory",
        choices=(*SAMPLERS, "auto"),
    ),
    # With more, the schedule's whole numbers of timesteps would no longer reach the noise.
    "steps": Setting(20, "Steps", "steps of SGOOL's own sampler", 2, 250),
    "iterations": Setting(12, "Iterations", "how often the starting noise is improved; 0: never", 0, 1000),
    "guidance_scale": Setting(7.5, "Guidance scale", "how closely the prompt is followed (CFG); 1: no CFG", 1.0, 30.0),
    "start": Setting(
        "noise",
        "Start from",
        "noise: the seed's noise; image: the image as it is, carried back to noise exactly",
        choices=("noise", "image"),
    ),
    "strength": Setting(
        0.8,
        "Start strength",
        "how much of the way from the noise to the image is improved; less keeps more of the first image",
        above=0.0,
        high=1.0,
    ),
    "candidates": Setting(
        1,
        "Starting noises tried",
        "how many starting noises are tried first; only the one that CLIP model and selector like best is improved",
        1,
        1000,
    ),
    "saliency": Setting(
        "transalnet-res",
        "Saliency detector",
        "what finds where people look; spectral downloads nothing",
        choices=tuple(DETECTORS),
    ),
    "saliency_weight": Setting(
        0.5, "Saliency weight", "0: only the whole image counts; 1: only the regions where people look", 0.0, 1.0
    ),
    "region_prompt": Setting(
        "",
        "Prompt of the regions",
        "what shall be seen where people look; [SEP] between several gives each region its own; empty: the main prompt",
    ),
    "region_match": Setting(
        "phrases",
        "Regions are compared with",
        "phrases: the part of the prompt, between commas and 'and', that suits each region best; prompt: all of it",
        choices=("phrases", "prompt"),
    ),
    "max_regions": Setting(3, "Regions", "at most so many places where people look", 1, 16),
    "threshold": Setting(
        0.5, "Region threshold", "how much a region must draw the eye, as a share of what draws it most", 0.01, 0.99
    ),
    "min_size": Setting(
        0.2, "Smallest region", "smaller regions are grown to this share of the picture's shorter side", 0.05, 1.0
    ),
    "padding": Setting(0.15, "Region padding", "margin on each side, as a share of the region", 0.0, 1.0),
    "refresh": Setting(3, "Find regions every", "look for the regions again after so many iterations", 1, 1000),
    "cutouts": Setting(8, "Cutouts", "random crops of the whole image that CLIP judges as well", 0, 128),
    "rule": Setting(
        "momentum",
        "Update rule",
        "momentum: keeps going the way of the last iterations; adam: also evens out large and small changes",
        choices=("momentum", "adam"),
    ),
    "learning_rate": Setting(
        0.05, "Learning rate", "how much an iteration changes the noise, as a share of its size", 0.0, 10.0
    ),
    "warmup": Setting(2, "Warm-up", "the learning rate is reached after so many iterations", 0, 1000),
    "regularisation": Setting(
        1.0, "Noise likeness", "how firmly the changed noise is kept like real noise; lower risks artefacts", 0.0, 1.0
    ),
    "patience": Setting(
        8, "Stop early after", "stop after so many iterations without a better score; 0: never", 0, 1000
    ),
    "clip_model": Setting(DEFAULT_MODEL, "CLIP model", "open_clip model that says how to improve the image"),
    "clip_tag": Setting(DEFAULT_TAG, "CLIP weights", "open_clip's name of that model's weights"),
    "selector_model": Setting(
        "ViT-B-16", "Selector", "another open_clip model, which only gives the score and picks the best image"
    ),
    "selector_tag": Setting("laion2b_s34b_b88k", "Selector weights", "open_clip's name of the selector's weights"),
    "memory": Setting(
        "balanced",
        "Memory",
        "fast: all is kept; balanced: the decoder is computed twice; low: the UNet too, one prompt after the other",
        choices=tuple(MEMORY),
    ),
}

PRESETS: dict[str, dict[str, Any]] = {
    "Quick": {"iterations": 5, "steps": 10, "cutouts": 4},
    "Balanced": {},
    "Paper": {"sampler": "edict", "strength": 1.0, "steps": 50, "iterations": 50, "patience": 0},
}
"""What a preset sets; all the rest of `PRESET_FIELDS` gets its default."""

PRESET_FIELDS = tuple(dict.fromkeys(name for preset in PRESETS.values() for name in preset))


def settings(values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All parameters: the defaults, and over them the given values, checked.

    Raises SgoolError, naming the parameter, for one that is unknown or out of bounds.
    """
    merged = {name: setting.default for name, setting in SETTINGS.items()}
    for name, value in (values or {}).items():
        if name not in SETTINGS:
            raise SgoolError(f"There is no parameter {name!r}; known are {', '.join(SETTINGS)}.")
        merged[name] = SETTINGS[name].check(name, value)
    return merged
