from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sgool import generate, lab
from sgool.__main__ import main
from sgool.checks import SEEDS
from sgool.errors import SgoolError
from sgool.lab import world
from sgool.lab.compare import (
    METHODS,
    Plan,
    _of_places,
    compare,
    paired,
    read_captions,
    render_tables,
    rivals,
    trial,
    updates_within,
)
from sgool.lab.zooms import Painted


@pytest.mark.parametrize(
    ("budget", "run", "asked", "share", "candidates", "updates"),
    [
        (400, 20, 1, 1.0, 1, 6),
        (80, 20, 1, 1.0, 1, 1),
        (79, 20, 1, 1.0, 1, 0),
        (20, 20, 8, 1.0, 1, 0),
        (300, 12, 8, 2 / 3, 8, 8),
        (60, 12, 8, 2 / 3, 3, 1),
    ],
)
def test_updates_within_the_budget(budget, run, asked, share, candidates, updates):
    assert updates_within(budget, run, asked, share) == (candidates, updates)
    spent = candidates * run + updates * 3 * share * run
    assert spent <= budget < spent + 3 * share * run


def test_a_sampler_is_counted_by_its_evaluations_and_not_by_its_name(monkeypatch):
    """EDICT under the name "auto": two evaluations per step."""
    monkeypatch.setitem(generate.AUTO, "seed", "edict")
    assert trial("none", "a car on a red background", 0, 120, ()).equivalents == 20
    assert 60 < trial("sgool", "a car on a red background", 0, 120, ()).equivalents <= 120


def test_a_budget_beyond_what_the_settings_allow(monkeypatch):
    asked = []
    monkeypatch.setattr("sgool.lab.compare.generate", lambda *run: asked.append(run[-1]) or 1 / 0)
    for method in ("best-of-N", "sgool"):
        with pytest.raises(ZeroDivisionError):
            trial(method, "a car on a red background", 0, 10**9, ())
    assert asked[0].candidates == asked[1].iterations == 1000
    with pytest.raises(SgoolError, match="--seeds must be at most 1000"):
        Plan(seeds=10**9)


def test_paired_interval_has_the_coverage_it_states():
    """The 95 % interval covers the mean 0.3 in 90 to 99 % of 200 sets of 40 captions with 2 seeds each.

    The seeds share an effect of their caption.
    """
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 2)
    covered = 0
    for _ in range(200):
        interval = paired(0.3 + rng.normal(size=40)[groups] + 0.3 * rng.normal(size=80), groups, samples=400)["ci95"]
        covered += interval[0] <= 0.3 <= interval[1]
    assert 0.9 <= covered / 200 <= 0.99


def test_the_held_out_captions_are_held_out_and_stratified():
    held_out = {scene.caption: scene for scene in world.all_scenes() if scene.held_out}
    rows = read_captions(lab.CAPTIONS)
    assert len({row["caption"] for row in rows}) == len(rows) == 200
    assert all(held_out[row["caption"]].size == row["size"] for row in rows)
    assert {row["size"] for row in rows[:60]} == {"small", "mixed", "large"}
    hard = read_captions(lab.HARD)
    assert len({row["caption"] for row in hard}) == len(hard) == 60
    assert all(held_out[row["caption"]].size == row["size"] for row in hard)
    assert all(held_out[row["caption"]].busy == (row["background"] == "busy") for row in hard)


def test_compare_runs_all_methods_within_the_budget(capsys):
    assert main(["compare", "--limit", "2", "--budget", "60", "--jobs", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["methods"]) == list(METHODS) and figures["captions"] == 2 and figures["budget"] == 60
    for row in figures["methods"].values():
        assert 0 < row["forward_equivalents_per_image"] <= 60
    ours, plain = figures["methods"]["sgool"], figures["methods"]["none"]
    for gains, mean in (("gain_over", "score_mean"), ("accuracy_gain_over", "accuracy_mean")):
        assert all(set(row[gains]) == set(METHODS) - {name} for name, row in figures["methods"].items())
        assert ours[gains]["none"]["mean"] == pytest.approx(ours[mean] - plain[mean])
    trials = [trial for trial in figures["trials"] if trial["method"] == "sgool"]
    assert [trial["caption"] for trial in trials] == [row["caption"] for row in read_captions(lab.CAPTIONS)[:2]]
    assert np.mean([trial["score"] for trial in trials]) == pytest.approx(ours["score_mean"])


def test_compare_runs_the_methods_asked_for(capsys):
    asked = ["compare", "--limit", "1", "--budget", "20", "--jobs", "1", "--json", "--methods"]
    assert main([*asked, "none", "best-of-N"]) == 0
    assert list(json.loads(capsys.readouterr().out)["methods"]) == ["none", "best-of-N"]
    assert main([*asked, "best"]) == 2
    assert "no method 'best'" in capsys.readouterr().err


def test_ctrl_c_ends_a_comparison_at_once(monkeypatch):
    made, stop = [], threading.Event()

    def slow(*task):
        made.append(task)
        stop.wait(1)
        raise KeyboardInterrupt

    monkeypatch.setattr("sgool.lab.compare.trial", slow)
    monkeypatch.setattr("sgool.lab.compare.ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    with pytest.raises(KeyboardInterrupt):
        compare(None, Plan(limit=9, methods=("none",), jobs=2), progress=False)
    assert len(made) <= 4


def test_captions_as_a_spreadsheet_writes_them(tmp_path):
    (tmp_path / "captions.csv").write_text("caption,size\na car,large\n", encoding="utf-8-sig")
    assert read_captions(tmp_path / "captions.csv") == [{"caption": "a car", "size": "large"}]
    (tmp_path / "captions.csv").write_text("caption,size\na car,large\n   ,small\n")
    with pytest.raises(SgoolError, match="a caption in each line"):
        read_captions(tmp_path / "captions.csv")


def test_rivals_are_the_other_captions_and_the_near_misses():
    caption = "a small panda and a pizza on a busy blue background"
    found = rivals(caption, ["a car on a red background", caption])
    for wanted in (
        "a car on a red background",
        "a small frog and a pizza on a busy blue background",
        "a panda and a pizza on a busy blue background",
        "a pizza and a small panda on a busy blue background",
        "a pizza on a busy blue background",
        "a small panda and a pizza on a busy green background",
        "a small panda and a pizza on a blue background",
    ):
        assert wanted in found
    assert caption not in found and len(found) == len(set(found)) == 1 + 12 + 2 + 1 + 2 + 5 + 1
    assert rivals("a cat on a mat", ["a cat on a mat", "a dog"]) == ("a dog",)


def test_every_caption_of_the_world_is_parsed():
    for scene in world.all_scenes():
        assert world.parse(scene.caption) == scene
    for other in ("", "a cat on a red background", "a panda on a busy background", "a panda on a red background, art"):
        assert world.parse(other) is None


def test_zoom_is_compared_at_its_cost(capsys):
    """A budget of 40: one image of 20 evaluations, and at most two places of four steps, or one more image."""
    plan = Plan(limit=2, budget=40, methods=("none", "best-of-N", "resampled", "zoom"), jobs=1)
    figures = compare(lab.HARD, plan, progress=False)
    json.dumps(figures, allow_nan=False)
    by_method = {method: [each for each in figures["trials"] if each["method"] == method] for method in plan.methods}
    assert {each["equivalents"] for each in by_method["none"]} == {20}
    assert {each["equivalents"] for each in by_method["resampled"]} == {36}
    for plain, zoomed in zip(by_method["none"], by_method["zoom"], strict=True):
        assert zoomed["equivalents"] == 20 + 8 * len(zoomed["places"])
        gains = [place["gain"] for place in zoomed["places"] if place["kept"]]
        assert zoomed["score"] == pytest.approx(plain["score"] + sum(gains), abs=1e-5)
    assert "zoom's gain" in render_tables(figures) and "\nresampled: 2.00 places painted" in render_tables(figures)


def test_the_few_step_model_is_compared_at_its_cost():
    """Four steps without guidance: 4 evaluations an image, 12 an update."""
    plan = Plan(limit=1, budget=44, methods=("none", "best-of-N", "sgool", "sgool-one"), jobs=1, model="tiny-lcm")
    figures = compare(lab.HARD, plan, progress=False)
    assert [each["equivalents"] for each in figures["trials"]] == [4, 44, 16 + 24, 4 + 36]


def test_more_seeds_go_on_where_the_first_ended():
    asked = {"limit": 1, "methods": ("none",), "jobs": 1}
    both = compare(lab.HARD, Plan(seeds=2, **asked | {"jobs": 2}), progress=False)["trials"]  # in two processes
    second = compare(lab.HARD, Plan(first_seed=1, **asked), progress=False)["trials"]
    assert [each["seed"] for each in both] == [0, 1]
    assert {**second[0], "seconds": 0} == {**both[1], "seconds": 0} != {**both[0], "seconds": 0}
    for wrong in ({"first_seed": -1}, {"first_seed": SEEDS}, {"model": "sd15"}):
        with pytest.raises(SgoolError, match=r"--first-seed|--model"):
            Plan(**wrong)


def test_what_the_selector_did_is_held_against_the_judge():
    places = [
        *(Painted(True, gain, 0.3) for gain in (0.1, -0.1, 0.2)),
        *(Painted(False, gain, -0.2) for gain in (0.1, -0.3)),
    ]
    assert _of_places(places, 4) == {
        "painted_per_image": 1.25,
        "kept_per_image": 0.75,
        "kept_rightly": pytest.approx(2 / 3),
        "refused_rightly": 0.5,
        "kept_gain": pytest.approx(0.2 / 3),
        "refused_gain": pytest.approx(-0.1),
        "kept_crop_gain": pytest.approx(0.3),
        "refused_crop_gain": pytest.approx(-0.2),
    }
    assert _of_places([Painted(False, 0.1, 0.0)], 1)["kept_rightly"] is None
    assert _of_places([], 3) == {}
