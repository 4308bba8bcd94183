"""The one table of parameters, from which command-line flags and their checks are drawn."""

from __future__ import annotations

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
    """A parameter: its type is its default's. low and high are inclusive bounds; choices are all there are."""

    default: Any
    label: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> Any:
        """The value in the parameter's own type. Raises SgoolError, naming the parameter, when it does not fit."""
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise SgoolError(f"{name} must be {_KINDS[kind]}, not {value!r}.")
        if self.choices and value not in self.choices:
            raise SgoolError(f"{name} must be one of {', '.join(self.choices)}, not {value!r}.")
        # Written so that NaN fails too.
        if self.low is not None and not value >= self.low:
            raise SgoolError(f"{name} must be at least {self.low}, not {value}.")
        if self.high is not None and not value <= self.high:
            raise SgoolError(f"{name} must be at most {self.high}, not {value}.")
        return value


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}

SETTINGS: dict[str, Setting] = {
    "method": Setting(
        "sgool",
        "Method",
        "sgool: the whole image and its salient regions; doodl: DOODL's loss and update; none: only sample",
        choices=("sgool", "doodl", "none"),
    ),
    "sampler": Setting(
        "auto",
        "Sampler",
        "reversible sampler that carries the gradient; auto: bdia from noise, o-belm from an image; ddim: reference",
        choices=(*SAMPLERS, "auto"),
    ),
    "steps": Setting(20, "Steps", "steps of the reversible sampler", 2, 500),
    "iterations": Setting(12, "Iterations", "updates of the starting latent; 0 only samples", 0, 1000),
    "guidance_scale": Setting(7.5, "Guidance scale", "classifier-free guidance; 1 is none", 1.0, 30.0),
    "start": Setting(
        "noise",
        "Start from",
        "noise: the seed's noise; image: an image carried back exactly",
        choices=("noise", "image"),
    ),
    "strength": Setting(0.8, "Start strength", "how far back an image is carried, above 0, at most 1", high=1.0),
    "candidates": Setting(
        1, "Starting noises tried", "how many are rendered; the most promising one is optimised", 1, 1000
    ),
    "saliency": Setting("transalnet-res", "Saliency detector", "what says where people look", choices=tuple(DETECTORS)),
    "saliency_weight": Setting(0.5, "Saliency weight", "salient regions against the whole image, 0 to 1", 0.0, 1.0),
    "region_prompt": Setting(
        "", "Prompt of the regions", "[SEP] gives one per region; empty uses the prompt, as the next parameter says"
    ),
    "region_match": Setting(
        "phrases",
        "Regions are compared with",
        "phrases: the phrase of the prompt (between commas and 'and') that suits the region best; prompt: all of it",
        choices=("phrases", "prompt"),
    ),
    "max_regions": Setting(3, "Regions", "at most this many salient crops", 1, 16),
    "threshold": Setting(0.5, "Region threshold", "share of the saliency map's peak that makes a region", 0.01, 0.99),
    "min_size": Setting(0.2, "Smallest region", "share of the picture's shorter side", 0.05, 1.0),
    "padding": Setting(0.15, "Region padding", "added on each side, as a share of the region", 0.0, 1.0),
    "refresh": Setting(3, "Find regions every", "find the regions again every so many iterations", 1, 1000),
    "cutouts": Setting(8, "Cutouts", "random crops of the whole image that CLIP sees besides", 0, 128),
    "rule": Setting("momentum", "Update rule", "momentum or adam", choices=("momentum", "adam")),
    "learning_rate": Setting(0.1, "Learning rate", "how far the latent moves per update, in its own rms", 0.0, 10.0),
    "warmup": Setting(2, "Warm-up", "updates until the full learning rate", 0, 1000),
    "regularisation": Setting(1.0, "Regularisation", "how firmly the latent is kept on the Gaussian prior", 0.0, 1.0),
    "patience": Setting(8, "Patience", "stop after so many iterations without a better score; 0 never stops", 0, 1000),
    "clip_model": Setting(DEFAULT_MODEL, "CLIP model", "open_clip model that guides"),
    "clip_tag": Setting(DEFAULT_TAG, "CLIP weights", "open_clip's tag of its weights"),
    "selector_model": Setting("ViT-B-16", "Selector", "open_clip model, unseen by the loss, that picks the best image"),
    "selector_tag": Setting("laion2b_s34b_b88k", "Selector weights", "open_clip's tag of its weights"),
    "memory": Setting(
        "balanced",
        "Memory",
        "fast keeps all; balanced recomputes the decoder's blocks; low also the network's, and halves the guidance",
        choices=tuple(MEMORY),
    ),
}

PRESETS: dict[str, dict[str, Any]] = {
    "Quick": {"iterations": 5, "steps": 10, "cutouts": 4},
    "Balanced": {},
    "Paper": {"sampler": "edict", "steps": 50, "iterations": 50, "patience": 0},
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
    if not merged["strength"] > 0:
        raise SgoolError(f"strength must be above 0 and at most 1, not {merged['strength']}.")
    return merged
