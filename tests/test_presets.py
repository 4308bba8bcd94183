"""The defaults of methods and models, and which settings a method makes no use of."""

from __future__ import annotations

import pytest
import torch

from sgool.errors import SgoolError
from sgool.generate import Request, generate
from sgool.presets import IGNORED, METHODS, ignored, resolve, unused
from sgool.settings import ABOUT, Settings

PROMPT = "a small penguin and a pizza on a green background"

OTHER = {
    "iterations": 3,
    "saliency": "transalnet-dense",
    "saliency_weight": 0.9,
    "region_prompt": "a whale",
    "region_match": "prompt",
    "refresh": 7,
    "cutouts": 1,
    "rule": "adam",
    "learning_rate": 0.5,
    "warmup": 0,
    "regularization": 0.0,
    "patience": 1,
    "way_back": "prompt",
    "guide_scale": 50.0,
}
"""Values unlike the defaults."""


@pytest.mark.parametrize("method", ["doodl", "baseline", "none"])
def test_what_a_method_ignores_changes_no_image_of_it(method, backend, critics):
    few = {"method": method, "steps": 3, "candidates": 2}
    few |= {"iterations": 2} if method == "doodl" else {}
    own, other = ({**few, **more} for more in ({}, {name: OTHER[name] for name in IGNORED[method]}))
    first, second = (generate(backend, critics, Request(PROMPT), resolve(each, model="tiny")) for each in (own, other))
    assert torch.equal(first.best.image, second.best.image) and first.scores == second.scores
    assert torch.equal(first.first.image, second.first.image)


def test_ignored_keeps_the_order_of_the_settings_and_what_was_not_given_out():
    assert set(IGNORED) == set(METHODS)
    assert ignored(["cutouts", "saliency_weight", "steps"], "doodl") == ("saliency_weight", "cutouts")
    assert ignored(ABOUT, "sgool", zoom=True, best=True) == ("guide_scale",)
    assert ignored(ABOUT, "baseline", zoom=True, best=True)[:2] == ("iterations", "saliency_weight")
    zooms = tuple(name for name in ABOUT if name.startswith("zoom_"))
    assert ignored(ABOUT, "sgool", best=True) == (*zooms, "guide_scale")
    assert ignored(ABOUT, "sgool", zoom=True) == ("best_shown", "best_save_all", "guide_scale")
    assert ignored(["saliency", "zoom_by", "rule"], "none", zoom=True) == ("rule",)
    assert ignored(["candidates", "rule"], "sgool", "image") == ("candidates",)
    assert ignored(["iterations", "steps"], "none") == ("iterations",)


def test_unknown_names_are_refused():
    with pytest.raises(SgoolError, match="method must be one of"):
        resolve({"method": "magic"})


def test_the_zooms_settings_are_no_news_while_it_is_off():
    """The accordion always sends them, at the general defaults, which the embedded model's own differ from."""
    assert unused(Settings(), "sgool-tiny") == unused(Settings(zoom_places=5, best_shown=3)) == ()
