"""The settings: what each accepts, what it refuses by name, and which of several sources wins."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from sgool.guidance import CRITICS
from sgool.presets import METHODS, MODELS, PRESET_FIELDS, PRESETS, resolve
from sgool.settings import ABOUT, DEFAULTS, SettingError, Settings

NUMBERS = [name for name, value in DEFAULTS.items() if type(value) in (int, float)]
FLOATS = [name for name, value in DEFAULTS.items() if type(value) is float]


BESIDE = {("steps", 1): {"sampler": "lcm"}}
"""What a bound needs beside it."""


def wrong_values() -> list[tuple[str, Any]]:
    """For every setting a value of each other kind, and the nearest values beyond its bounds."""
    kinds = {int: 3, float: 0.5, str: "text", bool: True, type(None): None, list: [1], dict: {}, bytes: b"sgool"}
    found: list[tuple[str, Any]] = []
    for name, about in ABOUT.items():
        kind = type(DEFAULTS[name])
        fits = (float, int) if kind is float else (kind,)
        found += [(name, value) for other, value in kinds.items() if other not in fits]
        if kind in (int, float):
            found += [(name, float("nan"))]
        for bound, way in ((about.low, -1), (about.high, 1)):
            if bound is not None:
                beyond = bound + way if kind is int else math.nextafter(bound, way * math.inf)
                found += [(name, beyond), (name, way * 10**9), (name, way * math.inf)]
        if about.above is not None:
            found += [(name, about.above), (name, -1.0)]
        if about.choices:
            found += [(name, ""), (name, about.choices[0].upper()), (name, f"{about.choices[0]} ")]
        if about.check:
            found += [(name, ""), (name, "nobody"), (name, ":"), (name, "clip/ViT-B-32")]
    return found


def shown(case: Any) -> str:
    return repr(case)[:40]


@pytest.mark.parametrize(("name", "value"), wrong_values(), ids=shown)
def test_a_wrong_value_is_refused_by_the_settings_name(name: str, value: Any) -> None:
    for make in (lambda: Settings(**{name: value}), lambda: Settings.of({name: value}), lambda: resolve({name: value})):
        with pytest.raises(SettingError) as caught:
            make()
        assert caught.value.name == name and str(caught.value) == f"{name} {caught.value.problem}."
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(SettingError):
        Settings().changed(**{name: value})


def test_every_number_is_bounded_and_every_text_free_listed_or_checked() -> None:
    for name, about in ABOUT.items():
        bounded = about.high is not None and (about.low is not None or about.above is not None)
        assert bounded == (name in NUMBERS)
        assert not (about.choices and about.check)
    free = {
        name for name, about in ABOUT.items() if type(DEFAULTS[name]) is str and not about.choices and not about.check
    }
    assert free == {"region_prompt"}


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_themselves_are_taken(name: str) -> None:
    about, kind = ABOUT[name], type(DEFAULTS[name])
    low = about.low if about.low is not None else math.nextafter(about.above, math.inf)
    for bound in (low, about.high):
        value = getattr(Settings(**{**BESIDE.get((name, bound), {}), name: kind(bound)}), name)
        assert value == bound and type(value) is kind


@pytest.mark.parametrize("sampler", ABOUT["sampler"].choices)
def test_a_sampler_says_how_few_and_how_many_steps_it_takes(sampler: str) -> None:
    """Before any model is loaded, and by the name of the setting."""
    fewest, most = (2, 250) if sampler in ("auto", "bdia", "o-belm", "edict", "ddim") else (1, 250)
    most = 50 if sampler in ("lcm", "tcd") else most
    assert Settings(sampler=sampler, steps=fewest).steps == fewest and Settings(sampler=sampler, steps=most)
    if fewest == 2:
        with pytest.raises(SettingError, match=f"^steps must be at least 2 with the sampler {sampler}, not 1.$"):
            Settings(sampler=sampler, steps=1)
    if most == 50:
        with pytest.raises(SettingError, match=f"^steps must be at most 50 with the sampler {sampler}, not 51.$"):
            Settings(sampler=sampler, steps=51)


@pytest.mark.parametrize("name", FLOATS)
def test_a_whole_number_is_taken_for_a_float(name: str) -> None:
    try:
        value = getattr(Settings(**{name: 1}), name)
    except SettingError as error:  # where 1 is out of bounds, that is what is told
        assert ABOUT[name].high < 1 and "at most" in error.problem
    else:
        assert value == 1.0 and type(value) is float


@pytest.mark.parametrize("name", [name for name, about in ABOUT.items() if about.choices or about.suggestions])
def test_every_choice_and_suggestion_is_taken(name: str) -> None:
    about = ABOUT[name]
    for choice in about.choices or about.suggestions:
        assert getattr(Settings(**{name: choice}), name) == choice
    assert DEFAULTS[name] in (about.choices or about.suggestions)


@pytest.mark.parametrize("name", [name for name, about in ABOUT.items() if about.slider])
def test_a_slider_moves_within_the_bounds_and_can_stand_on_the_default(name: str) -> None:
    low, high, step = ABOUT[name].slider
    for value in (low, high):
        Settings(**{**BESIDE.get((name, value), {}), name: type(DEFAULTS[name])(value)})
    count = (DEFAULTS[name] - low) / step
    assert low <= DEFAULTS[name] <= high and count == pytest.approx(round(count))


def test_the_defaults_are_settings_of_the_kinds_told() -> None:
    settings = Settings()
    assert settings.as_dict() == DEFAULTS == {name: getattr(settings, name) for name in ABOUT}
    assert list(settings.as_dict()) == [field.name for field in dataclasses.fields(Settings)]
    assert Settings.of({}) == settings == Settings.of(settings.as_dict())


def test_settings_cannot_be_changed_in_place_only_copied_with_changes() -> None:
    settings = Settings(steps=30)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.steps = 10  # type: ignore[misc]
    changed = settings.changed(iterations=3, strength=1)
    assert (changed.steps, changed.iterations, changed.strength) == (30, 3, 1.0)
    assert (settings.steps, settings.iterations) == (30, DEFAULTS["iterations"])


@pytest.mark.parametrize("name", ["stepz", "regularisation", "clip_model", "Steps", ""])
def test_an_unknown_name_is_refused_and_the_known_are_listed(name: str) -> None:
    for make in (lambda: Settings.of({name: 1}), lambda: Settings().changed(**{name: 1}), lambda: resolve({name: 1})):
        with pytest.raises(SettingError, match="is no setting") as caught:
            make()
        assert all(known in str(caught.value) for known in ABOUT)


@pytest.mark.parametrize("name", ["clip", "embedded", "clip:ViT-L-14/openai", "clip:RN50x64/cc12m", "clip:a.b-c_d/e.f"])
def test_guide_and_selector_take_the_name_of_any_critic_there_could_be(name: str) -> None:
    assert Settings(guide=name).guide == Settings(selector=name).selector == name


def test_guide_and_selector_say_what_they_take() -> None:
    with pytest.raises(SettingError, match="guide is not valid: there is no critic 'clap'; the critics are") as caught:
        Settings(guide="clap")
    assert all(name in str(caught.value) for name in CRITICS)
    with pytest.raises(SettingError, match="selector is not valid: a CLIP is named clip:MODEL/WEIGHTS"):
        Settings(selector="clip:ViT-L-14")


class TestOrder:
    """The user over the preset, the method, the model and the general defaults."""

    def test_without_anything_the_defaults(self) -> None:
        assert resolve({}) == Settings() == resolve({}, model="anything") == resolve({}, preset="Balanced")

    def test_the_model_over_the_defaults(self) -> None:
        settings = resolve({}, model="tiny")
        assert settings.as_dict() == {**DEFAULTS, **MODELS["tiny"]}
        assert settings.steps == 10 != DEFAULTS["steps"]

    def test_the_method_over_the_model(self) -> None:
        settings = resolve({"method": "doodl"}, model="tiny")
        assert (settings.steps, settings.guidance_scale) == (50, 7.5) != (10, 4.0)
        assert settings.saliency == "spectral"  # of which the method says nothing
        assert resolve({"method": "none"}).iterations == 0

    def test_the_preset_over_the_method_and_the_model(self) -> None:
        settings = resolve({"method": "doodl"}, preset="Quick", model="tiny")
        assert (settings.steps, settings.iterations, settings.cutouts) == (10, 3, 4)
        assert (settings.sampler, settings.strength) == ("edict", 1.0)  # the method's, of which the preset says nothing
        assert resolve({}, preset="Paper", model="tiny").steps == 50

    def test_from_an_image_a_models_sampler_without_an_inverse_gives_way(self, monkeypatch) -> None:
        monkeypatch.setitem(MODELS, "few", {"sampler": "lcm", "steps": 1})
        assert (resolve({}, model="few").sampler, resolve({}, model="few").steps) == ("lcm", 1)
        settings = resolve({"start": "image"}, model="few")
        assert (settings.sampler, settings.steps) == ("auto", 2)
        assert resolve({"start": "image", "sampler": "lcm"}, model="few").sampler == "lcm"  # a run will refuse it
        monkeypatch.setitem(MODELS, "few", {"sampler": "ddim-trailing", "steps": 1})
        assert resolve({"start": "image"}, model="few").steps == 1

    def test_the_user_over_all(self) -> None:
        settings = resolve({"method": "doodl", "steps": 33, "guidance_scale": 2}, preset="Quick", model="tiny")
        assert (settings.steps, settings.guidance_scale, settings.iterations) == (33, 2.0, 3)
        assert resolve({"method": "none", "iterations": 4}).iterations == 4
        same = {"steps": DEFAULTS["steps"], "guide": DEFAULTS["guide"]}  # given, though a default
        assert resolve(same, preset="Paper", model="tiny").as_dict().items() >= same.items()


def test_presets_methods_and_models_hold_settings() -> None:
    assert set(METHODS) == set(ABOUT["method"].choices)
    for preset in PRESETS:
        assert resolve({}, preset=preset).as_dict().items() >= PRESETS[preset].items()
    for method in METHODS:
        assert resolve({"method": method}).as_dict().items() >= METHODS[method].items()
    for values in (*PRESETS.values(), *METHODS.values(), *MODELS.values()):
        assert set(values) <= set(ABOUT) and "method" not in values
    assert set(PRESET_FIELDS) == set().union(*PRESETS.values())


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        SettingError, match="preset must be one of Detail, Quick, Balanced, Thorough, Paper, not 'Fast'"
    ) as caught:
        resolve({}, preset="Fast")
    assert caught.value.name == "preset"


def test_a_wrong_method_is_told_before_anything_else() -> None:
    with pytest.raises(SettingError) as caught:
        resolve({"steps": 1, "method": "magic"}, model="tiny")
    assert caught.value.name == "method"


DOCS = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")


def tables() -> dict[str, list[list[str]]]:
    """The rows of the tables of docs/settings.md, by heading; without the rows of their heads."""
    found: dict[str, list[list[str]]] = {}
    for section in DOCS.split("\n## ")[1:]:
        heading, *lines = section.splitlines()
        rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
        found[heading] = rows[1:]
    return found


def test_the_docs_show_every_setting_where_the_webui_does() -> None:
    """`sgool.webui.controls` folds some groups under More; Zoom and Expert have places of their own."""
    headings = {"": "At first sight", "Zoom": "Zoom", "Expert": "Expert"}
    for group in {about.group for about in ABOUT.values()}:
        shown = [(name, about) for name, about in ABOUT.items() if about.group == group and about.webui]
        rows = tables()[headings.get(group, f"More: {group}")]
        assert [row[1] for row in rows] == [f"`{name}`" for name, _ in shown]
        for (name, about), (label, _, default, values, meaning) in zip(shown, rows, strict=True):
            assert (label, meaning) == (about.label, about.help)
            assert default == (f"`{DEFAULTS[name]}`" if DEFAULTS[name] != "" else "empty")
            bounds = [bound for bound in (about.low, about.above, about.high) if bound is not None]
            assert all(f"{bound:g}" in values.split() for bound in bounds)
            assert all(f"`{choice}`" in values for choice in (*about.choices, *about.suggestions[:2]))


def test_the_docs_show_what_a_preset_sets() -> None:
    head = next(line for line in DOCS.splitlines() if line.startswith("| preset |"))
    labels = [cell.strip() for cell in head.strip("| ").split(" | ")][1:]
    assert labels == [
        ABOUT[name].label
        for name in ("iterations", "steps", "cutouts", "sampler", "strength", "patience", "way_back", "zoom")
    ]
    by_label = {about.label: name for name, about in ABOUT.items()}
    assert {by_label[label] for label in labels} == set(PRESET_FIELDS)
    assert tables()["Presets"] == [
        [preset, *(str(getattr(resolve({}, preset=preset), by_label[label])) for label in labels)] for preset in PRESETS
    ]
