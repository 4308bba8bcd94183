"""The page: one HTML file and its pictures. It may lie on any web server, and works without one from disk, too."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from sgool.errors import SgoolError
from sgool.lab.study import ANSWERS, FOLDER, KEY, PAGE
from sgool.lab.study.answers import Answers
from sgool.lab.study.pairs import PER_CHECK, Choice, Pair, Picture, Study, choose, pixels, read_pictures
from sgool.outputs import PREFIX

HERE = Path(__file__).parent

INDEX, PICTURES = "index.html", "pictures"


def make(evaluation: Path, choice: Choice) -> Study:
    """Write a study of an evaluation's pictures into its folder, whole or not at all.

    Raises SgoolError where there is nothing to ask, and where a study is there that people have answered.
    """
    target = evaluation / FOLDER
    if (target / ANSWERS).exists() and (count := Answers(target / ANSWERS).count()):
        raise SgoolError(
            f"The study in {target} has answers already ({count}): move that folder away to make a new one."
        )
    study, pictures = choose(read_pictures(evaluation), choice)
    try:
        with _replacing(target) as folder:
            (folder / PAGE / PICTURES).mkdir(parents=True)
            _copy(pictures, folder / PAGE / PICTURES)
            (folder / PAGE / INDEX).write_bytes(rendered(study).encode())
            (folder / KEY).write_bytes(study.to_json())
    except OSError as error:
        raise SgoolError(f"The study could not be written to {target}: {error.strerror or error}.") from error
    return study


def rendered(study: Study) -> str:
    """The page. Nothing in it tells a method; only its own script and style may run, and prompts are data."""
    parts = {name: (HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    page = (HERE / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        page = page.replace(f"$hash_{name}", f"'sha256-{digest}'").replace(f"${name}", text)
    # In HTML, a script's text ends at "</", and "<!--" changes how it is read.
    data = json.dumps(_asked(study), separators=(",", ":")).replace("<", "\\u003c")
    before, after = page.split("$data")
    return f"{before}{data}{after}"


def _asked(study: Study) -> dict[str, Any]:
    """What the page knows: no sets, seeds or methods."""

    def shown(pairs: Iterator[Pair]) -> list[dict[str, Any]]:
        return [{"id": pair.id, "text": pair.prompt, "pictures": pair.pictures} for pair in pairs]

    return {
        "study": study.id,
        "session": study.session,
        "every": PER_CHECK,
        "pairs": shown(pair for pair in study.pairs if pair.right is None),
        "checks": shown(pair for pair in study.pairs if pair.right is not None),
    }


def _copy(pictures: Sequence[Picture], folder: Path) -> None:
    """Copy them in random order; what a file holds besides its pixels stays behind."""
    order = random.SystemRandom().sample(pictures, len(pictures))
    for picture in tqdm(order, "pictures", disable=None):
        content = cv2.imencode(".png", pixels(picture))[1].tobytes()
        (folder / f"{picture.name}.png").write_bytes(content)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder to write to, which takes the target's place at the end."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=target.parent) as made:
        new, old = Path(made, "new"), Path(made, "old")
        new.mkdir()
        yield new
        if target.exists():
            os.replace(target, old)
        shutil.move(new, target)
