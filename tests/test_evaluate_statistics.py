"""Tables from images: against numbers worked out by hand, and a page in which nothing from outside is code."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("pandas", reason="needs the extra evaluate")
pytest.importorskip("matplotlib", reason="needs the extra evaluate")
pytest.importorskip("diffusers", reason="needs diffusers")

import numpy as np
import pandas as pd

from sgool import pictures
from sgool.lab.evaluate import cells
from sgool.lab.evaluate.charts import COLORS, INK
from sgool.lab.evaluate.methods import METHODS
from sgool.lab.evaluate.plan import Plan
from sgool.lab.evaluate.prompts import Prompt
from sgool.lab.evaluate.report import write
from sgool.lab.evaluate.statistics import gain, results, tables
from sgool.lab.evaluate.store import Store

HOSTILE = '<script>alert("1")</script> & $x_1$ \'">'


def series(values):
    """Scores by (prompt, seed)."""
    index = pd.MultiIndex.from_tuples(list(values), names=["prompt", "seed"])
    return pd.Series(list(values.values()), index, dtype=float)


def test_a_gain_is_over_the_pairs_that_both_have():
    ours = series({("a", 0): 3.0, ("a", 1): 2.0, ("b", 0): 1.0, ("c", 0): 9.0})
    theirs = series({("a", 0): 1.0, ("a", 1): 2.0, ("b", 0): 2.0, ("d", 0): 0.0})
    found = gain(ours, theirs)
    assert found["pairs"] == 3 and found["mean"] == pytest.approx((2 + 0 - 1) / 3)
    assert found["wins"] == pytest.approx((1 + 0.5 + 0) / 3)
    back = gain(theirs, ours)
    assert back["mean"] == -found["mean"] and back["wins"] == pytest.approx(1 - found["wins"])


def test_whole_prompts_are_resampled():
    """Two images of a prompt that go together are no two observations."""
    rng = np.random.default_rng(1)
    by_prompt = {prompt: rng.normal() for prompt in range(40)}
    many = series({(prompt, seed): each for prompt, each in by_prompt.items() for seed in range(9)})
    once = series({(prompt, 0): each for prompt, each in by_prompt.items()})
    wide, same = (gain(each, each * 0) for each in (many, once))
    assert wide["ci95"] == pytest.approx(same["ci95"], abs=1e-9)
    spread = np.std(list(by_prompt.values()), ddof=1) / 40**0.5
    assert wide["ci95"][1] - wide["ci95"][0] == pytest.approx(2 * 1.96 * spread, rel=0.15)


SETS = {"one": ("x", "y"), HOSTILE: (HOSTILE, "z")}


def filled(folder: Path, methods=("sd", "sgool"), missing=()):
    """An evaluation whose scores are known: those of sgool are 0.1 higher, and 0.3 in the second category."""
    prompts = tuple(
        Prompt(name, category, f"{text} {number} {len(name)} {HOSTILE}")
        for name, categories in SETS.items()
        for number, category in enumerate(categories)
        for text in ("a car", "a frog")
    )
    plan = Plan(prompts, methods=methods, metrics=("judge",), best_of=2)
    metrics, store = plan.measured(), Store(folder)
    trials = plan.trials(2)
    image = pictures.png(np.full((16, 16, 3), 90, np.uint8))
    for number, trial in enumerate(trials):
        better = 0.0 if trial.method == "sd" else 0.3 if trial.prompt.category in ("y", "z") else 0.1
        record = {"seconds": 1.0 + 9 * (trial.method != "sd"), "evaluations": 20}
        record["curve"] = {"seconds": [1.0, 2.0], "losses": [0.5, 0.4], "scores": [0.1, 0.2]}
        store.save(trial.key, image, record)
        score = 0.5 + better + number // len(methods) / 100
        store.save_scores(trial.key, {metrics[0].key: float("nan") if number in missing else score})
    return plan, trials, metrics, store


def test_tables_by_set_and_category(tmp_path):
    plan, trials, metrics, store = filled(tmp_path)
    found = tables(results(trials, metrics, store), plan, metrics)
    ours = found["sets"]["one"]["judge"]["sgool"]
    assert ours["images"] == 4 and ours["mean"] == pytest.approx(0.5 + 0.2 + 0.015)
    assert ours["gain_over"]["sd"]["mean"] == pytest.approx(0.2) and ours["gain_over"]["sd"]["wins"] == 1
    by_category = {name: rows["judge"]["sgool"]["gain_over"]["sd"] for name, rows in found["categories"]["one"].items()}
    assert {name: round(each["mean"], 9) for name, each in by_category.items()} == {"x": 0.1, "y": 0.3}
    assert found["cost"]["sgool"] == {"seconds": 10.0, "evaluations": 20.0, "plain_images": 10.0}
    assert found["failures"] == {}


def test_a_score_that_is_no_number_is_a_failure(tmp_path):
    plan, trials, metrics, store = filled(tmp_path, missing=(1,))
    found = tables(results(trials, metrics, store), plan, metrics)
    assert found["failures"] == {"sgool": {"no score (judge)": 1}}
    assert found["sets"]["one"]["judge"]["sgool"]["images"] == 3
    assert found["sets"]["one"]["judge"]["sgool"]["gain_over"]["sd"]["pairs"] == 3


class Page(HTMLParser):
    """The tags, the links and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_one_file_in_which_nothing_from_outside_is_code(tmp_path):
    write(*filled(tmp_path, methods=tuple(METHODS)))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    outside = [each for each in page.links if not each.startswith(("data:image/jpeg;base64,", "images/", "#"))]
    assert outside == [] and all((tmp_path / each).is_file() for each in page.links if each.startswith("images/"))
    assert not re.search(r"url\(\s*[\"']?(?!#)", text) and "default-src 'none'" in text
    assert f"a car 0 3 {HOSTILE}" in page.text and "<script" not in text
    assert INK not in text and "currentColor" in text
    shown = [each for each in page.links if each.startswith("data:")]
    assert len(shown) == 8 * 6 and base64.b64decode(shown[0].partition(",")[2])[:2] == b"\xff\xd8"
    charts = sorted(path.name for path in (tmp_path / "images").glob("chart-*.png"))
    assert (
        len(charts) == 2 * (1 + 2 + 2 + 1)
        and page.tags.count("figure") == 2 * (1 + 2 + 2)
        and "chart-01-effect-one-judge.png" in charts
    )
    write(*filled(tmp_path, methods=("sd",)))
    assert len(list((tmp_path / "images").glob("chart-*.png"))) < len(charts)  # no old one stays


def test_the_best_of_the_fair_is_shown():
    def row(mean, marks=()):
        return {"mean": mean, "marks": list(marks)}

    compared = {"sd": row(0.5), "sgool": row(0.9, ["optimized"]), "doodl": row(0.7), "global": row(None)}
    assert cells.ranked(compared) == {"doodl": "best", "sd": "second"}
    assert cells.mean(compared["sgool"], "") == {"text": "0.9000†", "rank": "", "marked": True}
    assert cells.mean(compared["global"], "")["text"] == "none"
    assert [cells.digits(each) for each in (0.28, -3.05, 26.1)] == [4, 3, 2]


def test_every_method_has_its_color():
    assert set(COLORS) == set(METHODS) and len(set(COLORS.values())) == len(COLORS)
