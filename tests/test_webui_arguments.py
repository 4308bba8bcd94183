from __future__ import annotations

import pytest

from sgool.errors import SgoolError
from sgool.presets import METHODS, MODELS, PRESETS
from sgool.settings import DEFAULTS, Settings
from sgool.webui.arguments import WEBUI, parse


@pytest.mark.parametrize("args", [(), (False,), (False, "rubbish"), ({"enabled": False, "steps": "rubbish"},)])
def test_off_is_none_whatever_else_is_said(args):
    assert parse(args) is None


def test_by_name_and_by_place_are_the_same():
    named = parse(({"iterations": 7, "rule": "adam", "learning_rate": 0.25},))
    placed = [getattr(named, name) for name in WEBUI]
    assert parse((True, *placed)) == named
    assert named == Settings(iterations=7, rule="adam", learning_rate=0.25)
    assert parse((True,)) == Settings()


def test_numbers_come_as_sliders_send_them():
    settings = parse(({"iterations": 7.0, "learning_rate": 1, "steps": None},))
    assert settings.iterations == 7 and isinstance(settings.iterations, int)
    assert settings.learning_rate == 1.0 and settings.steps == DEFAULTS["steps"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", "many"),
        ("iterations", 2.5),
        ("iterations", True),
        ("steps", 1),
        ("threshold", float("nan")),
        ("saliency", "a detector"),
        ("enabled", 1),
        ("preset", "Slow"),
        ("preset", ["Quick"]),
        ("preset", {}),
        ("learning_rate", 10**400),
        ("strength", -(10**400)),
        ("guidance_scale", 7.0),
        ("no_such", 1),
        ("strength", 0.0),
        ("guide", "clip:ViT-B-32/../../secret.pt"),
        ("guide", "hf-hub:owner/name"),
        ("selector", "clip:/etc/passwd"),
        ("selector", ""),
    ],
)
def test_errors_name_the_field(field, value):
    with pytest.raises(SgoolError, match=rf"\b{field}\b") as error:
        parse(({field: value},))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_presets_give_way_to_what_is_said_and_plots_to_nothing():
    settings = parse(({"preset": "Quick", "iterations": 9},), {"steps": 33})
    assert settings.cutouts == PRESETS["Quick"]["cutouts"]
    assert settings.iterations == 9 and settings.steps == 33
    assert parse((False,), {"enabled": True}) == Settings()


def test_a_method_and_a_model_bring_their_own_defaults_by_name_and_a_position_overrides_them():
    assert parse(({"method": "doodl"},)) == Settings(method="doodl", **METHODS["doodl"])
    own = parse(({"method": "doodl", "steps": 9},), model="tiny")
    assert own == Settings(**{**MODELS["tiny"], **METHODS["doodl"], "method": "doodl", "steps": 9})
    placed = [DEFAULTS[name] for name in WEBUI]
    assert parse((True, *placed), model="tiny") == Settings(guidance_scale=MODELS["tiny"]["guidance_scale"])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset):
    assert parse(({"preset": preset},)) == Settings(**PRESETS[preset])
