from __future__ import annotations

import pytest

from sgool.errors import SgoolError
from sgool.settings import PRESETS, SETTINGS, settings
from sgool.webui.arguments import WEBUI_SETTINGS, parse


@pytest.mark.parametrize("args", [(), (False,), (False, "rubbish"), ({"enabled": False, "steps": "rubbish"},)])
def test_off_is_none_whatever_else_is_said(args):
    assert parse(args) is None


def test_by_name_and_by_place_are_the_same():
    named = parse(({"iterations": 7, "rule": "adam", "learning_rate": 0.25},))
    placed = [named[name] for name in WEBUI_SETTINGS]
    assert parse((True, *placed)) == named
    assert named == settings({"iterations": 7, "rule": "adam", "learning_rate": 0.25})
    assert parse((True,)) == settings()


def test_numbers_come_as_sliders_send_them():
    values = parse(({"iterations": 7.0, "learning_rate": 1, "steps": None},))
    assert values["iterations"] == 7 and isinstance(values["iterations"], int)
    assert values["learning_rate"] == 1.0 and values["steps"] == SETTINGS["steps"].default


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
        ("clip_tag", "../../secret.pt"),
        ("clip_model", "hf-hub:owner/name"),
        ("selector_tag", "/etc/passwd"),
        ("selector_model", ""),
    ],
)
def test_errors_name_the_field(field, value):
    with pytest.raises(SgoolError, match=rf"\b{field}\b") as error:
        parse(({field: value},))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_presets_give_way_to_what_is_said_and_plots_to_nothing():
    values = parse(({"preset": "Quick", "iterations": 9},), {"steps": 33})
    assert values["cutouts"] == PRESETS["Quick"]["cutouts"]
    assert values["iterations"] == 9 and values["steps"] == 33
    assert parse((False,), {"enabled": True}) == settings()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset):
    assert parse(({"preset": preset},)) == settings(PRESETS[preset])
