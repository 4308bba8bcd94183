"""The evaluation on the embedded model: what is made and kept, what it goes on with, and what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import signal
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("pandas", reason="needs the extra evaluate")
pytest.importorskip("matplotlib", reason="needs the extra evaluate")
pytest.importorskip("diffusers", reason="needs diffusers")

from sgool import lab
from sgool.__main__ import main
from sgool.errors import SgoolError
from sgool.generate import generate
from sgool.lab.evaluate import report, work
from sgool.lab.evaluate.methods import METHODS, settings_of
from sgool.lab.evaluate.metrics import find_metrics
from sgool.lab.evaluate.plan import Plan
from sgool.lab.evaluate.prompts import Prompt, read_prompts
from sgool.lab.evaluate.run import Where, evaluate
from sgool.lab.evaluate.store import Store
from sgool.presets import resolve
from sgool.settings import SettingError
from sgool.signals import Guard, Terminated

FEW = {"steps": 2, "iterations": 1, "cutouts": 1}
PROMPTS = (Prompt("small", "one", "a car on a red background"), Prompt("small", "two", "a small frog"))
WHERE = Where(Path("unused"), "cpu")


def plan(**changes):
    return Plan(
        **{
            "prompts": PROMPTS,
            "metrics": ("judge",),
            "given": FEW,
            "best_of": 2,
            "methods": ("sd", "best-of-n"),
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, backend, critics):
    """The models of all tests, because loading them takes longer than most of these runs."""
    monkeypatch.setattr(work, "load_backend", lambda model, **options: copy(backend))
    monkeypatch.setattr(work, "load_critics", lambda *wanted: critics)


@pytest.fixture(autouse=True)
def without_charts(monkeypatch):
    """Drawing takes longer than the rest, and `test_evaluate_statistics` looks at the charts."""
    for name in ("_effects", "_distributions", "_curves", "_contact"):
        monkeypatch.setattr(report, name, lambda *_: [])


@pytest.fixture
def made(monkeypatch):
    """The prompts and methods of what is really made, in turn; `made.fail` says what to raise for which prompt."""

    class Made(list):
        fail: ClassVar[dict[str, Exception]] = {}

    heard = Made()
    heard.fail = {}

    def counted(backend, critics, request, settings, *rest, **named):
        heard.append((request.prompt, settings.method, settings.candidates))
        if request.prompt in heard.fail:
            raise heard.fail[request.prompt]
        return generate(backend, critics, request, settings, *rest, **named)

    monkeypatch.setattr(work, "generate", counted)
    return heard


def rows(folder):
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def told(folder):
    """What does not depend on the machine's speed."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(folder)]


def test_all_methods_are_made_scored_and_told(tmp_path, made):
    about = evaluate(plan(methods=tuple(METHODS), metrics=(), prompts=PROMPTS[:1]), tmp_path, WHERE)
    found = rows(tmp_path)
    assert list(found[0]) == [
        *("set", "category", "prompt", "seed", "method", "image"),
        *("judge", "selector", "guide", "seconds", "evaluations", "failure"),
    ]
    assert [row["method"] for row in found] == list(METHODS) and {row["category"] for row in found} == {"one"}
    assert len(made) == 6 and all((tmp_path / row["image"]).is_file() for row in found)
    cost = {row["method"]: float(row["evaluations"]) for row in found}
    # Two steps of two halves, and the pull takes three of each. An update goes back through the prompt's half, for
    # twice its cost, and then makes an image; DOODL has no guidance here, and two evaluations a step.
    assert cost == {"sd": 4, "baseline": 12, "doodl": 16, "global": 12, "sgool": 12, "best-of-n": 8}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == about
    marks = {name: [row["marks"] for row in rows.values()] for name, rows in about["sets"]["small"].items()}
    chosen, optimized = ["chosen"], ["optimized"]
    assert marks["judge"] == [[]] * 6
    assert marks["selector"] == [[], [], chosen, chosen, chosen, chosen]
    assert marks["guide"] == [[], optimized, optimized, optimized, optimized, chosen]
    assert (tmp_path / "report.html").is_file() and about["failures"] == {}


def test_what_is_there_is_not_made_again_and_changed_settings_make_new_images(tmp_path, made):
    evaluate(plan(), tmp_path, WHERE)
    before = rows(tmp_path)
    made.clear()
    evaluate(plan(), tmp_path, WHERE)
    assert made == [] and rows(tmp_path) == before
    evaluate(plan(given={**FEW, "guidance_scale": 2.0}), tmp_path, WHERE)
    assert len(made) == 4 and not {row["image"] for row in rows(tmp_path)} & {row["image"] for row in before}
    made.clear()
    evaluate(plan(), tmp_path, WHERE)
    assert made == [] and rows(tmp_path) == before


def test_broken_off_at_any_image_it_goes_on(tmp_path, made, capsys):
    """By a signal after the first image, then within the second."""
    whole = tmp_path / "whole"
    evaluate(plan(), whole, WHERE)
    expected, images = told(whole), list(made)
    made.clear()
    for after in (2, 1):
        guard = Guard()

        def told_to_stop(*arguments, guard=guard, after=after, **named):
            made.append(arguments[2].prompt)
            guard.number = signal.SIGTERM if len(made) == after else guard.number
            return generate(*arguments, **named)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Terminated):
            made.clear()
            patch.setattr(work, "generate", told_to_stop)
            evaluate(plan(), tmp_path / "broken", WHERE, guard)
        assert "the same command goes on" in capsys.readouterr().err
        assert not (tmp_path / "broken" / "results.csv").exists()
    made.clear()
    evaluate(plan(), tmp_path / "broken", WHERE)
    assert made == images[1:] and told(tmp_path / "broken") == expected


def test_what_is_torn_is_made_again(tmp_path, made):
    evaluate(plan(methods=("sd",)), tmp_path, WHERE)
    before = told(tmp_path)
    image, other = (tmp_path / row["image"] for row in before)
    record = image.with_suffix(".json")
    tears = (
        lambda: image.write_bytes(image.read_bytes()[:-100]),
        lambda: record.write_bytes(record.read_bytes()[:50]),
        lambda: record.write_bytes(other.with_suffix(".json").read_bytes()),
    )
    for tear in tears:
        tear()
        (tmp_path / "images" / ".sgool-left").write_bytes(b"part of an image")
        made.clear()
        evaluate(plan(methods=("sd",)), tmp_path, WHERE)
        assert made == [(PROMPTS[0].text, "none", 1)] and told(tmp_path) == before
        assert not list((tmp_path / "images").glob(".*"))


def test_failures_are_counted_by_kind_and_in_no_mean(tmp_path, made, capsys):
    whole = evaluate(plan(), tmp_path / "whole", WHERE)
    made.fail = {PROMPTS[1].text: SgoolError("The decoder returned NaN or infinite values; use a higher precision.")}
    about = evaluate(plan(), tmp_path, WHERE)
    assert about["failures"] == {"sd": {"not a number": 1}, "best-of-n": {"not a number": 1}}
    failed = [row for row in rows(tmp_path) if row["failure"]]
    assert {row["prompt"] for row in failed} == {PROMPTS[1].text}
    assert {(row["image"], row["judge"], row["seconds"]) for row in failed} == {("", "", "")}
    row, first = about["sets"]["small"]["judge"]["sd"], rows(tmp_path / "whole")[0]
    assert row["images"] == 1 and row["mean"] == pytest.approx(float(first["judge"]))
    assert about["sets"]["small"]["judge"]["best-of-n"]["gain_over"]["sd"]["pairs"] == 1
    assert "2 of 4 images failed" in (tmp_path / "report.html").read_text()
    assert "2 failed (not a number)" in capsys.readouterr().err
    assert work.failure(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))["failure"] == "out of memory"
    made.fail = {}
    assert evaluate(plan(), tmp_path, WHERE)["sets"] == whole["sets"] and rows(tmp_path)[-1]["failure"] == ""


def test_where_no_image_can_be_made_that_is_told(tmp_path, made):
    made.fail = {each.text: SgoolError("It is broken.") for each in PROMPTS}
    with pytest.raises(SgoolError, match="No image could be made: It is broken"):
        evaluate(plan(), tmp_path, WHERE)


def test_best_of_n_takes_as_long_as_sgool(tmp_path, made):
    """It is timed once, for the folder; then the number of images stands."""
    methods = ("sgool", "best-of-n")
    about = evaluate(plan(best_of=None, methods=methods, prompts=PROMPTS[:1]), tmp_path, WHERE)
    known = about["timed"]
    assert known["best_of"] == max(1, round(known["seconds_sgool"] / known["seconds_plain"]))
    assert about["methods"]["best-of-n"]["candidates"] == known["best_of"]
    made.clear()
    again = evaluate(plan(best_of=None, methods=methods), tmp_path, WHERE)
    assert again["timed"] == known and {prompt for prompt, *_ in made} == {PROMPTS[1].text}


def test_an_interrupted_calibration_is_no_result(tmp_path, made):
    guard = Guard()
    guard.number = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        evaluate(plan(best_of=None), tmp_path, WHERE, guard)
    assert "timed" not in Store(tmp_path).about


def test_a_size_of_its_own(tmp_path):
    import cv2

    evaluate(plan(size=64, methods=("sd",), prompts=PROMPTS[:1]), tmp_path, WHERE)
    assert cv2.imread(str(tmp_path / rows(tmp_path)[0]["image"])).shape == (64, 64, 3)


def test_a_score_is_the_critics_for_the_file_as_it_lies_there(tmp_path, critics):
    import cv2

    from sgool import pictures

    evaluate(plan(methods=("sd",), metrics=("selector", "guide")), tmp_path, WHERE)
    for row in rows(tmp_path):
        image = pictures.to_tensor(cv2.cvtColor(cv2.imread(str(tmp_path / row["image"])), cv2.COLOR_BGR2RGB))
        for name in ("selector", "guide"):
            expected = float(getattr(critics, name).score(image, row["prompt"]))
            assert float(row[name]) == pytest.approx(expected, abs=1e-5)


class TestNames:
    """An image's name says all that it depends on, and nothing else."""

    def keys(self, **changes):
        return [trial.key for trial in plan(**changes).trials(2)]

    def test_what_an_image_depends_on_changes_its_name(self):
        own = self.keys()
        assert len(set(own)) == 4 and own == self.keys()
        for changes in (
            {"first_seed": 1},
            {"size": 64},
            {"dtype": "float16"},
            {"model": "tiny-lcm"},
            {"given": {**FEW, "guidance_scale": 3.0}},
            {"prompts": (Prompt("small", "", "a whale"), Prompt("small", "", "a boat"))},
        ):
            assert not set(own) & set(self.keys(**changes))
        assert self.keys(best_of=3)[0] == own[0] != own[1] != self.keys(best_of=3)[1]

    def test_what_it_does_not_depend_on_does_not(self):
        own = self.keys(methods=("sd", "baseline", "sgool"))
        other = plan(methods=("sd", "baseline", "sgool"), metrics=("judge",), given={**FEW, "memory": "low"}, seeds=1)
        assert [trial.key for trial in other.trials(7)] == own
        moved = tuple(replace(each, set="other", category="") for each in PROMPTS)
        assert self.keys(methods=("sd", "baseline", "sgool"), prompts=moved) == own
        guided = self.keys(methods=("sd", "baseline", "sgool"), given={**FEW, "guide": "clip"})
        assert [a == b for a, b in zip(own, guided, strict=True)] == [True, False, False] * 2

    def test_another_model_in_the_same_folder_has_another_name(self, tmp_path):
        (tmp_path / "weights.safetensors").write_bytes(b"one")
        own = self.keys(model=str(tmp_path))
        (tmp_path / "weights.safetensors").write_bytes(b"two")
        assert not set(own) & set(self.keys(model=str(tmp_path)))


class TestMethods:
    def test_what_the_user_gives_counts_where_the_method_uses_it(self):
        given = {"iterations": 3, "steps": 7, "saliency_weight": 0.9, "cutouts": 2}
        settings = {method: settings_of(method, "some/model", given, 5) for method in METHODS}
        assert {each.steps for each in settings.values()} == {7}
        assert [each.updates for each in settings.values()] == [0, 0, 3, 3, 3, 0]
        assert [settings[each].saliency_weight for each in ("sgool", "global")] == [0.9, 0.0]
        assert [each.candidates for each in settings.values()] == [1, 1, 1, 1, 1, 5]

    def test_without_a_word_it_is_the_papers(self):
        sgool, doodl = (settings_of(method, "some/model", {}) for method in ("sgool", "doodl"))
        assert sgool == resolve({}, preset="Paper")
        assert (doodl.method, doodl.steps, doodl.iterations, doodl.patience) == ("doodl", 50, 50, 0)

    def test_a_metric_of_the_guides_own_network_is_marked(self):
        own = settings_of("sgool", "some/model", {"guide": "clip:ViT-B-32/openai"})
        (score,) = find_metrics(["clip-score"], own, "some/model")
        assert score.marks("sgool", own) == ["optimized"] and score.marks("sd", own) == [] and score.scale == 100
        (score,) = find_metrics(["clip-score"], settings_of("sgool", "some/model", {}), "some/model")
        assert score.marks("sgool", own.changed(guide="clip")) == []
        both = own.changed(guide="clip 1, hps-v2.1 5")
        assert [each.name for each in find_metrics(["guide"], both, "x")] == ["guide clip", "guide hps-v2.1"]
        (hps,) = find_metrics(["hps-v2.1"], both, "x")
        assert hps.marks("baseline", both) == ["optimized"]


class TestPrompts:
    def read(self, tmp_path, text, name="set.csv", **options):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_prompts([str(tmp_path / name)], tmp_path, **options)

    def test_of_a_csv_with_categories(self, tmp_path):
        text = '\ufeffPrompt, Category,note\n"a car, red",Colors,x\n\na frog\na frog,later\n'
        assert self.read(tmp_path, text) == [Prompt("set", "Colors", "a car, red"), Prompt("set", "", "a frog")]
        assert len(self.read(tmp_path, text, limit=1)) == 1

    def test_of_a_text_file(self, tmp_path):
        found = self.read(tmp_path, "a car, red\n\n  a frog \n", "my.txt")
        assert found == [Prompt("my", "", "a car, red"), Prompt("my", "", "a frog")]

    def test_of_the_sets_by_name(self, tmp_path):
        hard = read_prompts(["hard"], tmp_path)
        assert len(hard) == 60 and {each.set for each in hard} == {"hard"} and lab.HARD.is_file()
        (tmp_path / "drawbench.csv").write_text("prompt,category\nA red colored car.,Colors\n")
        assert read_prompts(["drawbench"], tmp_path) == [Prompt("drawbench", "Colors", "A red colored car.")]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "need a header with a column 'prompt'"),
            (b"prompt\n", "hold no prompt"),
            (b"text\na car\n", "need a header with a column 'prompt'"),
            (b"prompt\n\xff\xfe\n", "cannot be read"),
            (b"prompt,category\n,Colors\n", "Line 2 of the prompts .* no prompt that can be read: The prompt is empty"),
            (b"prompt\n<lora:x:1>\n", "Line 2"),
        ],
    )
    def test_what_is_no_set_is_told(self, tmp_path, content, message):
        (tmp_path / "set.csv").write_bytes(content)
        with pytest.raises(SgoolError, match=message):
            read_prompts([str(tmp_path / "set.csv")], tmp_path)

    def test_two_sets_of_one_name_are_refused(self, tmp_path):
        (tmp_path / "hard.txt").write_text("a car\n")
        with pytest.raises(SgoolError, match="two prompt sets named hard"):
            read_prompts(["hard", str(tmp_path / "hard.txt")], tmp_path)


def other_version(folder: Path) -> None:
    (folder / "evaluation.json").write_text('{"format": 1, "version": "0.0.1"}')


def no_evaluation(folder: Path) -> None:
    (folder / "evaluation.json").write_text('{"format": ')


def a_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("a file")


@pytest.mark.parametrize(
    ("arguments", "prepare", "message"),
    [
        (["--prompts", "nothing"], None, "There is no prompt set 'nothing'"),
        (["--prompts", "drawbench"], None, "drawbench .* is not shipped, because no licence for it was found"),
        (["--methods", "magic"], None, "There is no method 'magic' to evaluate; there are sd, baseline"),
        (["--metrics", "beauty"], None, "There is no metric 'beauty'; there are clip-score, guide"),
        (["--metrics", "judge", "judge"], None, "The metric judge is named twice"),
        (["--metrics", "clip:../x"], None, "A CLIP is named clip:MODEL/WEIGHTS"),
        (["--limit", "0"], None, "--limit must be at least 1"),
        (["--seeds", "0"], None, "--seeds must be at least 1"),
        (["--size", "100"], None, "--size must be a multiple of 8"),
        (["--best-of", "0"], None, "--best-of must be at least 1"),
        (["--workers", "2"], None, "--workers must be at least 1, and belongs to --ray"),
        (["--model", "no-such-model"], None, "There is no model 'no-such-model'"),
        (["--steps", "1"], None, "--steps must be at least 2"),
        (["--method", "sgool"], None, "unrecognized arguments: --method"),
        ([], other_version, "holds an evaluation of sgool 0.0.1 .*take another folder"),
        ([], no_evaluation, "is not an evaluation's: take another folder"),
        ([], a_file, "The output folder .* is a file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch, arguments, prepare, message):
    out = tmp_path / "out"
    out.mkdir()
    if prepare:
        prepare(out)
    monkeypatch.setenv("SGOOL_PROMPTS", str(tmp_path / "prompts"))
    before = sorted(tmp_path.rglob("*"))
    try:
        code = main(["evaluate", "--out", str(out), "--device", "cpu", *arguments])
    except SystemExit as error:
        code = error.code
    told = capsys.readouterr().err
    assert code == 2 and told.startswith("sgool: ") and told.count("\n") == 1
    assert re.search(message, told)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was begun


def test_missing_libraries_are_told_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pandas" else find(name, *more)
    )
    assert main(["evaluate", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == 'sgool: evaluate needs pandas: python -m pip install -e ".[evaluate]"\n'
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_it_wrote(tmp_path, capsys):
    (tmp_path / "my.txt").write_text("a car\n")
    few = ["--steps", "2", "--methods", "sd", "--metrics", "judge", "--device", "cpu", "--json"]
    assert main(["evaluate", "--prompts", str(tmp_path / "my.txt"), "--out", str(tmp_path / "out"), *few]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["prompts"] == {"my": 1} and list(about["methods"]) == ["sd"]


def test_a_wrong_setting_is_told_by_its_name():
    with pytest.raises(SettingError, match="guidance_scale must be at most 30"):
        plan(given={"guidance_scale": 99.0})
