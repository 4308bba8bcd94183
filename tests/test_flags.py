"""What --help says, against what a run then takes."""

from __future__ import annotations

import argparse

import pytest

from sgool.cli import build_parser
from sgool.flags import flag
from sgool.lab import commands, compare
from sgool.presets import METHODS, resolve
from sgool.settings import ABOUT

FLAGS = {name: about for name, about in ABOUT.items() if about.cli}


def parser_of(command: str) -> argparse.ArgumentParser:
    (choices,) = (action.choices for action in build_parser(commands.add)._actions if action.dest == "command")
    return choices[command]


def action_of(command: str, name: str) -> argparse.Action:
    return next(action for action in parser_of(command)._actions if name in action.option_strings)


def shown(value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("name", [name for name in FLAGS if name != "region_prompt"])
def test_help_shows_the_defaults_that_are_used(name):
    embedded, general = (shown(getattr(resolve({}, model=model), name)) for model in ("tiny", ""))
    assert f"(default {embedded}" in action_of("demo", flag(name)).help
    both = f"(default {general}" if embedded == general else f"(default {general}; embedded model {embedded})"
    assert both in action_of("generate", flag(name)).help


def test_help_shows_what_a_method_sets():
    text = action_of("generate", "--method").help
    assert METHODS["doodl"]["steps"] == 50
    assert "doodl sets --sampler edict --strength 1 --steps 50 --iterations 50 --guidance-scale 7.5" in text
    assert "none sets --strength 1)" in text


@pytest.mark.parametrize(("name", "about"), FLAGS.items())
def test_help_shows_choices_and_bounds(name, about):
    action = action_of("generate", flag(name))
    assert all(choice in action.metavar for choice in about.choices + about.suggestions)
    bounds = [bound for bound in (about.low, about.above, about.high) if bound is not None]
    assert all(f"{bound:g}" in action.help.removeprefix(about.help) for bound in bounds)


def test_settings_stand_in_their_groups():
    groups = {
        group.title: [action.dest for action in group._group_actions] for group in parser_of("demo")._action_groups
    }
    for title, names in groups.items():
        if title.startswith("settings"):
            group = title.removeprefix("settings").removeprefix(": ")
            assert names == [name for name, about in FLAGS.items() if about.group.lower() == group]
    settings = [title for title in groups if title.startswith("settings")]
    assert settings[0] == "settings" and settings[-1] == "settings: expert" and len(settings) == 7


def test_every_help_is_printed_with_the_exit_codes():
    parser = build_parser(commands.add)
    (every,) = (action.choices for action in parser._actions if action.dest == "command")
    lab = {"bench", "bench-phrases", "compare", "evaluate", "study"}
    assert {"demo", "generate", "critics", "export-webui", *lab} == set(every)
    for each in (parser, *every.values()):
        told = " ".join(each.format_help().split())
        assert "0, done; 2, a wrong argument or a failure; 130, Ctrl-C; 143, SIGTERM." in told


def test_the_help_of_compare_names_its_methods_and_defaults():
    told = parser_of("compare").format_help()
    assert all(name in told for name in compare.METHODS)
    plan = compare.Plan()
    assert all(f"(default {getattr(plan, name)}" in told for name in ("limit", "seeds", "budget"))
