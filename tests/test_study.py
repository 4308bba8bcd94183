"""The study: which pairs are asked, what the page tells and what not, and the commands."""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from study_folder import HOSTILE, METHODS, PROMPTS, write_evaluation, write_results

from sgool.__main__ import main
from sgool.errors import SgoolError
from sgool.lab.study.answers import Answer, Answers
from sgool.lab.study.page import make
from sgool.lab.study.pairs import NOISE, Choice, read_study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "evaluation")


def asked(page: str) -> dict:
    """What the page knows."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def couples(study) -> list[tuple[str, ...]]:
    """(prompt, method, method) of the pairs that are no checks."""
    return [(pair.prompt, *sorted(pair.methods)) for pair in study.pairs if pair.right is None]


def rows(folder: Path) -> list[list[str]]:
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_every_two_methods_are_a_pair_for_each_prompt_and_seed(tmp_path):
    study = make(write_evaluation(tmp_path / "evaluation", seeds=2), Choice())
    two = [("doodl", "sd"), ("sd", "sgool"), ("doodl", "sgool")]
    assert sorted(couples(study)) == sorted((prompt, *each) for prompt in PROMPTS for each in two for _ in range(2))
    assert study.methods == METHODS and study.equal == {}
    assert read_study(tmp_path / "evaluation") == study


def test_the_pictures_of_a_pair_are_those_of_its_methods(folder):
    study = make(folder, Choice())
    images = {(row[2], row[4]): cv2.imread(str(folder / row[5])) for row in rows(folder)}
    for pair in study.pairs:
        for method, name in zip(pair.methods, pair.pictures, strict=True):
            shown = cv2.imread(str(folder / "study" / "page" / "pictures" / name))
            if method == NOISE:
                assert len(np.unique(shown)) > 100 and shown.shape == (96, 96, 3)
            else:
                assert np.array_equal(shown, images[pair.prompt, method])


def test_an_attention_check_is_a_picture_against_noise(folder):
    checks = [pair for pair in make(folder, Choice()).pairs if pair.right is not None]
    assert len(checks) == 3
    for pair in checks:
        assert pair.methods[("first", "second").index(pair.right)] in METHODS
        assert pair.methods.count(NOISE) == 1


def test_order_and_sides_are_random(tmp_path):
    folder = write_evaluation(tmp_path / "evaluation", [f"prompt {i}" for i in range(30)], size=16)
    study = make(folder, Choice(("sd", "sgool")))
    plain = [pair for pair in study.pairs if pair.right is None]
    assert 3 <= sum(pair.methods == ("sd", "sgool") for pair in plain) <= 27
    assert [pair.prompt for pair in plain] != [f"prompt {i}" for i in range(30)]
    known = asked((folder / "study" / "page" / "index.html").read_text(encoding="utf-8"))
    assert [each["id"] for each in known["pairs"]] == [pair.id for pair in plain]


def test_nothing_that_visitors_get_tells_a_method(folder):
    study = make(folder, Choice())
    page = folder / "study" / "page"
    text = (page / "index.html").read_text(encoding="utf-8")
    script = (Path(make.__code__.co_filename).parent / "page.js").read_text(encoding="utf-8")
    for word in (*METHODS, "noise", "prompt set", "seed", "0000", str(folder)):
        assert not re.search(rf"\b{word}\b", text.replace(script, ""), re.IGNORECASE)
    assert set(asked(text)) == {"study", "session", "every", "pairs", "checks"}
    assert all(set(each) == {"id", "text", "pictures"} for each in asked(text)["pairs"])
    files = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    assert files == {"index.html"} | {f"pictures/{name}" for pair in study.pairs for name in pair.pictures}
    assert all(re.fullmatch(r"pictures/[0-9a-f]{16}\.png", name) for name in files - {"index.html"})


def test_what_a_file_says_of_itself_stays_behind(folder):
    """A WebUI's pictures hold their settings as text."""
    path = folder / rows(folder)[0][5]
    content = path.read_bytes()
    chunk = b"tEXtparameters\0sgool"
    told = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:33] + told + content[33:])
    assert cv2.imread(str(path)) is not None
    make(folder, Choice())
    assert not [each for each in (folder / "study" / "page").rglob("*.png") if b"sgool" in each.read_bytes()]


def test_prompts_are_data(folder):
    make(folder, Choice())
    text = (folder / "study" / "page" / "index.html").read_text(encoding="utf-8")
    assert HOSTILE in {each["text"] for each in asked(text)["pairs"]}
    assert text.count("<script") == 2 and "<!--" not in text


def test_equal_pictures_are_not_asked(folder):
    """Also where the files differ."""
    first, _, third = rows(folder)[:3]
    image = cv2.imread(str(folder / first[5]))
    (folder / third[5]).write_bytes(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes())
    study = make(folder, Choice())
    assert study.equal == {"sd, sgool": 1}
    assert (PROMPTS[0], "sd", "sgool") not in couples(study) and len(couples(study)) == 8


def test_failed_images_are_not_asked(folder):
    every = rows(folder)
    every[1][5], every[1][7] = "", "out of memory"
    write_results(folder, every)
    assert len(couples(make(folder, Choice()))) == 7


def test_a_study_can_be_of_some_pairs(tmp_path):
    folder = write_evaluation(tmp_path / "evaluation", [f"prompt {i}" for i in range(8)])
    assert {each[1:] for each in couples(make(folder, Choice(against="sgool")))} == {
        ("sd", "sgool"),
        ("doodl", "sgool"),
    }
    assert {each[1:] for each in couples(make(folder, Choice(("doodl", "sd"))))} == {("doodl", "sd")}
    some = couples(make(folder, Choice(pairs=7)))
    assert len(some) == 7 and sorted(Counter(each[1:] for each in some).values()) == [2, 2, 3]


def test_answers_are_never_lost_to_a_new_study(folder):
    old = make(folder, Choice())
    new = make(folder, Choice())
    assert old.id != new.id and read_study(folder) == new
    Answers(folder / "study" / "answers.sqlite").keep(Answer("0" * 32, new.pairs[0].id, "first", "first", "same"))
    with pytest.raises(SgoolError, match="has answers already"):
        make(folder, Choice())
    assert read_study(folder) == new and (folder / "study" / "page" / "index.html").is_file()


def spoiled(folder: Path, how: str) -> None:
    every = rows(folder)
    if how == "no results":
        (folder / "results.csv").unlink()
    elif how == "another table":
        (folder / "results.csv").write_text("a,b\n1,2\n")
    elif how == "outside":
        (folder.parent / "secret.png").write_bytes((folder / every[0][5]).read_bytes())
        every[0][5] = "../secret.png"
        write_results(folder, every)
    elif how == "torn":
        (folder / every[0][5]).write_bytes(b"\x89PNG")
    elif how == "empty":
        write_results(folder, [])
    elif how == "one method":
        write_results(folder, [row for row in every if row[4] == "sd"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no results", "There is no evaluation in"),
        ("another table", "has no column 'image'"),
        ("outside", "does not lie in"),
        ("torn", "is missing or torn"),
        ("empty", "nothing to ask"),
        ("one method", "nothing to ask"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_one_line(folder, capsys, how, said):
    spoiled(folder, how)
    assert main(["study", str(folder), "--make"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1] and told[-1].startswith("sgool: ")
    assert sorted(path.name for path in folder.iterdir() if path.name != "results.csv") == ["images"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study", "FOLDER", "--make", "--methods", "sd", "other"], "no pictures of 'other'"),
        (["study", "FOLDER", "--make", "--pairs", "0"], "--pairs must be at least 1"),
        (["study", "FOLDER", "--make", "--session", "0"], "--session must be at least 1"),
        (["study", "FOLDER", "--port", "70000"], "--port must be"),
        (["study", "FOLDER", "--analyse"], "There is no study in"),
        (["study", "FOLDER", "--analyse", "--pairs", "3"], "--pairs belongs to making"),
        (["study", "FOLDER", "--json"], "--json belongs to --analyse"),
        (["study", "FOLDER", "--add", "file.json"], "There is no study in"),
        (["study", "FOLDER", "--make", "--analyse"], "not allowed with"),
        (["evaluate", "--study", "FOLDER", "--limit", "3"], "--limit does not go with --study"),
        (["evaluate", "--guide", "embedded", "--study", "FOLDER"], "--guide does not go with --study"),
    ],
)
def test_wrong_arguments_get_one_line(folder, capsys, arguments, said):
    try:
        code = main([each.replace("FOLDER", str(folder)) for each in arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2 and said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (folder / "study").exists()


@pytest.mark.parametrize("arguments", [["evaluate", "--study", "FOLDER"], ["study", "FOLDER", "--make"]])
def test_the_commands_make_a_study(folder, capsys, arguments):
    assert main([each.replace("FOLDER", str(folder)) for each in arguments]) == 0
    assert "A study of 9 pairs" in capsys.readouterr().out
    assert len(read_study(folder).pairs) == 12


def test_a_study_of_another_format_is_refused(folder):
    make(folder, Choice())
    key = folder / "study" / "key.json"
    key.write_text(key.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(SgoolError, match="of format 2"):
        read_study(folder)
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "pairs": [{"id": 3}]}'):
        key.write_text(text)
        with pytest.raises(SgoolError, match="is not a study's"):
            read_study(folder)
