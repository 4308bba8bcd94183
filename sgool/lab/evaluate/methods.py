"""The methods that are compared, and what each sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgool.lab.compare import OPTIMIZERS, PLAIN
from sgool.presets import IGNORED, PRESETS, ZOOMS, resolve
from sgool.settings import ABOUT, Settings

METHODS = {
    "sd": "one plain image: DDIM",
    "baseline": "CLIP guidance: the guide pulls at every sampling step",
    "doodl": "DOODL's loss, update and sampler",
    "global": "SGOOL without saliency: only the whole image counts",
    "sgool": "SGOOL: the whole image, and where people look",
    "best-of-n": "the best of as many plain images as take SGOOL's time, by guide and selector",
}

PULLED = ("baseline", "doodl", "global", "sgool")
"""The methods that follow the guide's gradient."""

CHOOSING = ("doodl", "global", "sgool", "best-of-n")
"""The methods of whose images the selector takes the best."""

_SD: dict[str, dict[str, Any]] = {
    "sd": {"method": "none", "sampler": "ddim", "steps": 50},
    "baseline": {"method": "baseline", "sampler": "ddim", "steps": 50, "way_back": "full"},
    "doodl": {"method": "doodl", "patience": 0},
    "global": {**PRESETS["Paper"], "saliency_weight": 0.0},
    "sgool": PRESETS["Paper"],
}
"""As the papers have it: 50 steps, 50 updates."""

_SMALL: dict[str, dict[str, dict[str, Any]]] = {
    model: {
        "sd": PLAIN[model],
        "baseline": {**PLAIN[model], "method": "baseline", "way_back": "full"},
        "doodl": {**own["doodl"], "iterations": 12},
        "global": own["global-one"],
        "sgool": own["sgool-one"],
    }
    for model, own in OPTIMIZERS.items()
}
"""Of the embedded models, of which an image takes a third of a second."""

OWN = ("method", "start", "candidates", "region_prompt", "zoom", *ZOOMS)
"""What a user cannot set, because it belongs to the method or to a single prompt."""

GIVEN = tuple(name for name, about in ABOUT.items() if about.cli and name not in OWN)


def settings_of(method: str, model: str, given: Mapping[str, Any], best_of: int = 1) -> Settings:
    """What a method sets for a model. given: the user's values, which count wherever the method uses them.

    best_of: how many images best-of-n chooses from. Raises SettingError for a value that does not fit.
    """
    own = _SMALL.get(model, _SD)["sd" if method == "best-of-n" else method]
    idle = IGNORED[own.get("method", "sgool")]
    values = {**own, **{name: value for name, value in given.items() if name not in idle}}
    if method == "global":
        values["saliency_weight"] = 0.0
    if method == "best-of-n":
        values["candidates"] = best_of
    return resolve(values, model=model)
