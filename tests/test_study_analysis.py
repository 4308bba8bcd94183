"""What votes come to: against published figures, numbers worked out by hand, and votes of known strengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from study_folder import write_evaluation

from sgool.__main__ import main
from sgool.lab.study import QUESTIONS
from sgool.lab.study.analysis import analyse
from sgool.lab.study.answers import Answer, Answers
from sgool.lab.study.page import make
from sgool.lab.study.pairs import NOISE, Choice, Pair, Study
from sgool.lab.study.statistics import alpha, coincidences, strengths, wilson
from sgool.lab.study.tables import render

METHODS = ("sd", "doodl", "global", "sgool")


def alpha_of(*observers: str) -> float:
    """Of each observer's values, "." for none: a column is a unit."""
    units = list(zip(*observers, strict=True))
    values = sorted({value for unit in units for value in unit} - {"."})
    return float(alpha(coincidences(np.array([[unit.count(value) for value in values] for unit in units])).sum(0)))


def test_alpha_is_krippendorffs():
    """Examples A (two observers, binary) and C (four observers, values missing) of his paper of 2011, and of all C's
    values the same.
    """
    assert alpha_of("0100000010", "1110010000") == pytest.approx(0.095, abs=5e-4)
    observers = ("123321412...", "12332241 25.3".replace(" ", ""), ".3332342251.", "12332441251.")
    assert alpha_of(*observers) == pytest.approx(0.743, abs=5e-4)
    assert alpha_of("12345", "12345") == 1
    assert np.isnan(alpha_of("111", "111")) and np.isnan(alpha_of("123", "..."))


def test_a_share_has_wilsons_interval():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for found, of, interval in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611))):
        assert wilson(found / of, of) == pytest.approx(interval, abs=5e-5)
    assert wilson(1.0, 29) == pytest.approx((0.8830, 1), abs=5e-5)


BASEBALL = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ],
    float,
)
"""The American League of 1987 (Agresti, Categorical Data Analysis, section 10.6): Milwaukee, Detroit, Toronto, New
York, Boston, Cleveland, Baltimore."""


def test_strengths_are_those_of_the_textbook():
    found = strengths(BASEBALL, prior=0)
    assert found - found[-1] == pytest.approx([1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0], abs=1e-3)
    assert found.mean() == pytest.approx(0, abs=1e-12)


def likelihood(wins: np.ndarray, logs: np.ndarray) -> float:
    """Of log strengths [M], as a logarithm."""
    players = range(len(logs))
    return sum(
        wins[i, j] * np.log(np.exp(logs[i]) / (np.exp(logs[i]) + np.exp(logs[j])))
        for i in players
        for j in players
        if i != j
    )


def test_no_strengths_near_or_far_are_likelier():
    """Several matrices at once; in one of them somebody never lost, so the prior alone keeps the strengths finite."""
    never_lost = np.array([[0, 9, 4.5], [0, 0, 2], [0, 1, 0]])
    both = np.stack([BASEBALL[:3, :3], never_lost])
    rng = np.random.default_rng(0)
    for wins, found in zip(both, strengths(both), strict=True):
        best = likelihood(wins + 0.25, found)  # half a win, and half a loss, against two others
        for scale in (1e-3, 0.1, 2.0):
            for _ in range(100):
                step = rng.normal(0, scale, 3)
                assert likelihood(wins + 0.25, found + step - step.mean()) < best
    assert 2 < strengths(never_lost)[0] - strengths(never_lost)[1] < 5


def study_of(prompts: int, methods=METHODS, checks: int = 2) -> Study:
    rng = np.random.default_rng(5)
    pairs = []
    for prompt in range(prompts):
        for i, one in enumerate(methods):
            for other in methods[i + 1 :]:
                couple = (one, other) if rng.random() < 0.5 else (other, one)
                pairs.append(Pair(f"{len(pairs):016x}", "set", f"prompt {prompt}", "0", couple, ("a.png", "b.png")))
    noise = [
        Pair(f"c{number}", "set", "prompt 0", "0", (methods[0], NOISE), ("a.png", "n.png")) for number in range(checks)
    ]
    return Study("0" * 16, 30, tuple(methods), (*pairs, *noise), {"sd, sgool": 2})


def said(visitor: int, pair: str, quality: str, agreement: str | None = None, left: str = "first") -> Answer:
    return Answer(f"{visitor:032x}", pair, left, quality, agreement or quality)


def passed(*visitors: int) -> list[Answer]:
    return [said(visitor, "c0", "first") for visitor in visitors]


def test_preferences_by_hand():
    study = study_of(2, ("sd", "sgool"))
    one, two = (pair for pair in study.pairs if pair.right is None)
    worse = {pair.id: ("first", "second")[pair.methods.index("sd")] for pair in (one, two)}
    better = {pair.id: ("first", "second")[pair.methods.index("sgool")] for pair in (one, two)}
    answers = [
        *passed(1, 2, 3),
        *(said(visitor, one.id, better[one.id], "same") for visitor in (1, 2, 3)),
        said(1, two.id, better[two.id], worse[two.id]),
        said(2, two.id, worse[two.id]),
        said(3, two.id, "same", worse[two.id]),
    ]
    figures = analyse(study, answers)
    (quality,), (agreement,) = (figures["questions"][name]["preferences"] for name in QUESTIONS)
    assert (quality["method"], quality["over"], quality["votes"], quality["prompts"]) == ("sd", "sgool", 6, 2)
    assert (quality["better"], quality["same"], quality["worse"]) == (1, 1, 4)
    assert quality["share"] == pytest.approx(1.5 / 6)
    assert (agreement["better"], agreement["same"], agreement["worse"]) == (3, 3, 0)
    # Of pairs of people: 3 of 3 agree on the first pair, none on the second.
    found = figures["questions"]["quality"]["agreement"]
    assert found["pairs"] == 2 and found["share"] == 0.5
    values = [better[one.id]] * 3 + [better[two.id], worse[two.id], "same"]
    by_chance = sum(a != b for i, a in enumerate(values) for j, b in enumerate(values) if i != j) / 30
    assert found["alpha"] == pytest.approx(1 - 0.5 / by_chance)
    assert quality["ci95"][0] < quality["share"] < quality["ci95"][1]


def test_few_votes_that_agree_have_a_wide_interval():
    study = study_of(3, ("sd", "sgool"))
    answers = passed(1)
    for pair in study.pairs[:3]:
        answers.append(said(1, pair.id, ("first", "second")[pair.methods.index("sd")]))
    (found,) = analyse(study, answers)["questions"]["quality"]["preferences"]
    assert found["share"] == 1 and found["ci95"] == pytest.approx([*wilson(1, 3)]) and found["ci95"][0] < 0.5


def test_who_fails_a_check_or_sees_none_does_not_count():
    study = study_of(2, ("sd", "sgool"))
    pair = study.pairs[0]
    votes = [said(visitor, pair.id, "first") for visitor in range(6)]
    checks = [
        *passed(0, 1),
        said(1, "c1", "first"),  # passes both
        said(2, "c0", "second"),
        said(3, "c0", "first", "same"),  # one question right, one not
        said(4, "c0", "first"),
        said(4, "c1", "same"),  # one check right, one not
    ]
    figures = analyse(study, [*votes, *checks, said(9, "of another study", "first")])
    assert figures["visitors"] == {"counted": 2, "failed": 3, "unchecked": 1}
    assert figures["answers"] == 2
    assert [row["votes"] for row in figures["questions"]["quality"]["preferences"]] == [2]
    assert "2 people who passed every attention check (left out: 3 failed one, 1 saw none)" in render(figures)
    nobody = analyse(study, votes)
    assert nobody["answers"] == 0 and nobody["questions"] == {} and nobody["left"] is None
    assert "0 answers of 0 people" in render(nobody)


def simulated(study: Study, logs: dict[str, float], people: int, rng: np.random.Generator, whims: float = 0.0):
    """Votes after Bradley and Terry; whims: how far prompts change the strengths (standard deviation)."""
    moods = {(pair.prompt, name): rng.normal(0, whims) for pair in study.pairs for name in study.methods}
    answers = passed(*range(people))
    plain = [pair for pair in study.pairs if pair.right is None]
    for visitor in range(people):
        for place in rng.permutation(len(plain))[:40]:
            pair = plain[place]
            first, second = (logs[name] + moods[pair.prompt, name] for name in pair.methods)
            won = rng.random() < 1 / (1 + np.exp(second - first))
            left = ("first", "second")[rng.integers(2)]
            answers.append(said(visitor, pair.id, "first" if won else "second", left=left))
    return answers


TRUE = {"sd": -0.9, "doodl": -0.3, "global": 0.2, "sgool": 1.0}


def test_known_strengths_are_found():
    study = study_of(60)
    found = analyse(study, simulated(study, TRUE, 60, np.random.default_rng(2)))
    for question in QUESTIONS:
        rows = found["questions"][question]["strengths"]
        assert list(rows) == list(METHODS)
        for name, row in rows.items():
            assert row["strength"] == pytest.approx(TRUE[name], abs=0.15)
            assert row["ci95"][0] < row["strength"] < row["ci95"][1] < row["ci95"][0] + 0.5
    for row in found["questions"]["quality"]["preferences"]:
        expected = 1 / (1 + np.exp(TRUE[row["over"]] - TRUE[row["method"]]))
        assert row["ci95"][0] < expected < row["ci95"][1]
    assert found["left"]["ci95"][0] < 0.5 < found["left"]["ci95"][1]


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    """Where prompts differ, which votes counted one by one would not see."""
    monkeypatch.setattr("sgool.lab.study.analysis.DRAWS", 200)
    inside = []
    for number in range(25):
        rng = np.random.default_rng(number)
        study = study_of(20, METHODS[:3])
        logs = dict.fromkeys(METHODS, 0.0)  # then a prompt's whims leave the mean share at a half
        figures = analyse(study, simulated(study, logs, 20, rng, whims=1.0))["questions"]["quality"]
        inside += [row["ci95"][0] <= 0.5 <= row["ci95"][1] for row in figures["preferences"]]
        inside += [row["ci95"][0] <= 0 <= row["ci95"][1] for row in figures["strengths"].values()]
    assert np.mean(inside) > 0.9


def test_votes_by_chance_have_no_agreement():
    study = study_of(10, ("sd", "sgool"))
    rng = np.random.default_rng(0)
    answers = simulated(study, dict.fromkeys(METHODS, 0.0), 30, rng)
    found = analyse(study, answers)["questions"]["quality"]["agreement"]
    assert found["ci95"][0] < 0.05 and abs(found["alpha"]) < 0.08
    pairs = {pair.id: pair for pair in study.pairs}
    agreed = [
        each
        if pairs[each.pair].right
        else said(int(each.visitor, 16), each.pair, ("first", "second")[int(each.pair, 16) % 2])
        for each in answers
    ]
    assert analyse(study, agreed)["questions"]["quality"]["agreement"]["alpha"] == 1


def test_the_command_prints_tables_and_writes_json(tmp_path: Path, capsys):
    folder = write_evaluation(tmp_path / "evaluation", ["a", "b"])
    study = make(folder, Choice())
    assert main(["study", str(folder), "--analyse"]) == 2
    assert "Nobody has answered" in capsys.readouterr().err
    answers = Answers(folder / "study" / "answers.sqlite")
    for pair in study.pairs:
        better = pair.right or (
            "first" if study.methods.index(pair.methods[0]) > study.methods.index(pair.methods[1]) else "second"
        )
        answers.keep(said(1, pair.id, better))
        answers.keep(said(2, pair.id, better, None if pair.right else "same", "second"))
    assert main(["study", str(folder), "--analyse"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "12 answers of 2 people who passed every attention check; 6 pairs.",
        "| sd | sgool | 4 | 2 | 0 | 0 | 4 | 0% [0%, 49%] |",
        "| sd | sgool | 4 | 2 | 0 | 2 | 2 | 25% [0%, 70%] |",
        "Krippendorff's alpha 1.00",
    ):
        assert line in printed
    written = json.loads((folder / "study" / "analysis.json").read_text())
    assert main(["study", str(folder), "--analyse", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    order = written["questions"]["quality"]["strengths"]
    assert order["sd"]["strength"] < order["doodl"]["strength"] < order["sgool"]["strength"]
