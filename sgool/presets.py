"""Presets, and the defaults of methods and models: what is set where the user says nothing. Both front doors use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sgool.checks import check_kind, shown
from sgool.samplers import SAMPLERS
from sgool.settings import BOTH, DEFAULTS, SettingError, Settings, check_names

PRESETS: dict[str, dict[str, Any]] = {
    "Detail": {"iterations": 0, "zoom": True},
    "Quick": {"iterations": 3, "steps": 10, "cutouts": 4},
    "Balanced": {},
    "Thorough": {"iterations": 12},
    "Paper": {"sampler": "edict", "strength": 1.0, "steps": 50, "iterations": 50, "patience": 0, "way_back": "full"},
}
"""What a preset sets; a button of the WebUI sets the rest of `PRESET_FIELDS` to the defaults.

By cost, see `sgool.cost`: 1, 3, 7, 20 and 760 images of 20 steps.
"""

PRESET_FIELDS = tuple(dict.fromkeys(name for preset in PRESETS.values() for name in preset))

AIMS = {"the prompt": "clip", "people's taste": "hps-v2.1", "both": BOTH}
"""The guides that the WebUI offers at first sight, by what they improve an image for."""

METHODS: dict[str, dict[str, Any]] = {
    "sgool": {},
    "doodl": {
        **{"sampler": "edict", "strength": 1.0, "steps": 50, "iterations": 50},
        **{"guidance_scale": 7.5, "way_back": "full"},
    },
    "baseline": {"strength": 1.0, "iterations": 0},
    "none": {"strength": 1.0, "iterations": 0},
}
"""What a method sets; DOODL's values are the published ones."""

_REGIONS = ("saliency", "saliency_weight", "region_prompt", "region_match", "refresh")
_LOSS = (*_REGIONS, "cutouts")
_UPDATE = ("rule", "learning_rate", "warmup", "regularization")

IGNORED: dict[str, tuple[str, ...]] = {
    "sgool": ("guide_scale",),
    "doodl": (*_LOSS, *_UPDATE, "guide_scale"),  # it has a loss and an update of its own
    "baseline": ("iterations", *_REGIONS, *_UPDATE, "patience"),
    "none": ("iterations", *_LOSS, *_UPDATE, "patience", "way_back", "guide_scale"),
}
"""What changes no image of a method. (The other settings of regions still show in the picture of the saliency.)"""

_TINY: dict[str, Any] = {
    "steps": 10,
    "iterations": 12,  # its image takes a third of a second
    "guidance_scale": 4.0,
    "saliency": "spectral",
    "threshold": 0.25,
    "min_size": 0.45,
    "refresh": 1,  # the detector costs nothing here
    "guide": "embedded",
    "selector": "embedded",
    "memory": "fast",
    "zoom_good": 0.83,
    "guide_scale": 3.0,  # beyond 10 the images fall apart
}

MODELS: dict[str, dict[str, Any]] = {
    "tiny": _TINY,
    "tiny-lcm": {**_TINY, "sampler": "euler", "steps": 4, "guidance_scale": 1.0, "strength": 1.0},
}
"""What a model sets: `tiny` is the embedded model, `tiny-lcm` its sibling for few steps."""

MODELS |= {f"sgool-{name}": values for name, values in MODELS.items()}  # as checkpoints, see `sgool.tiny.export`


ZOOMS = tuple(name for name in DEFAULTS if name.startswith("zoom_"))
"""What does nothing without zoom."""

BESTS = ("best_shown", "best_save_all")
"""What does nothing without the best of the batch."""

ZOOM_USES = ("saliency", "threshold", "region_prompt")
"""What zoom uses of the other settings."""


def ignored(
    given: Iterable[str], method: str, start: str = "seed", zoom: bool = False, best: bool = False
) -> tuple[str, ...]:
    """Which of the given settings do nothing with this method, this start, and with zoom and best or without, in the
    order of `Settings`.
    """
    idle = {*IGNORED[method], *(("candidates",) if start == "image" else ()), *(() if best else BESTS)}
    idle = idle - set(ZOOM_USES) if zoom else idle | set(ZOOMS)
    names = set(given)
    return tuple(name for name in DEFAULTS if name in names and name in idle)


def unused(settings: Settings, model: str = "") -> tuple[str, ...]:
    """Which settings differ from what their method and model set, and do nothing with that method and start.

    Not those of zoom and of the best of the batch, whose switches say as much, and not the pull's, whose help does.
    """
    own = resolve({"method": settings.method}, model=model)
    changed = [
        name
        for name in DEFAULTS
        if name not in (*ZOOMS, *BESTS, "guide_scale") and getattr(settings, name) != getattr(own, name)
    ]
    return ignored(changed, settings.method, settings.start, settings.zoom)


def only_zooms(settings: Settings) -> bool:
    """Whether an image that is given stays as it is but for the places that are painted again."""
    return settings.zoom and settings.start == "image" and not settings.updates


def resolve(given: Mapping[str, Any], *, preset: str = "", model: str = "") -> Settings:
    """The settings of a run: what the user gave, over the preset, the method, the model and the general defaults.

    From an image, a model's own sampler gives way to "auto" where it has no inverse.
    model: a key of `MODELS`, or any other name for a model without defaults of its own. Raises SettingError for an
    unknown name and for a value that does not fit.
    """
    check_names(given)
    check_kind(model, str, "A model's name is a text")
    if not isinstance(preset, str) or preset not in ("", *PRESETS):
        raise SettingError("preset", f"must be one of {', '.join(PRESETS)}, not {shown(preset)}")
    method = given.get("method", DEFAULTS["method"])
    # Checked by itself first: the message is then about what the user wrote.
    own = METHODS[Settings(method=method).method]
    settings = Settings.of({**MODELS.get(model, {}), **own, **PRESETS.get(preset, {}), **given})
    if settings.start == "image" and "sampler" not in given and not invertible(settings):
        return settings.changed(sampler="auto", steps=max(2, settings.steps))
    return settings


def invertible(settings: Settings) -> bool:
    """Whether the sampler of the settings can carry an image back."""
    return settings.sampler == "auto" or SAMPLERS[settings.sampler].invertible
