"""The prompts: sets by name, and files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgool import lab
from sgool.errors import SgoolError, brief
from sgool.generate import check_prompts

SETS = {
    "csp": "the test sentences of Leivada et al., arXiv 2210.12889",
    "drawbench": "DrawBench of Saharia et al., arXiv 2205.11487",
    "dailydalle": "the prompts of DailyDall-E",
    "hard": "the captions of this repository that the embedded model finds hard",
}
"""The sets by name, and where they come from. Only `hard` is shipped: no licence was found for the others."""

MOST = 10_000
"""Prompts of a set."""

TEXT = ("prompt", "caption")
CATEGORY = ("category", "size")
"""The columns that are read: the first of each that there is."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of a set. category: "" where the set has none."""

    set: str
    category: str
    text: str


def default_prompts_dir() -> Path:
    """The folder named by the environment variable SGOOL_PROMPTS, else ./prompts."""
    return Path(os.environ.get("SGOOL_PROMPTS") or "prompts").expanduser()


def read_prompts(names: Sequence[str], folder: Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of each set.

    names: of `SETS`, or files. folder: where the sets that are not shipped are.

    A CSV has a column prompt (or caption), and if it likes a column category. Any other file has a prompt on each line.
    A prompt that a set has twice counts once. Raises SgoolError for a set that there is not, and for a file that cannot
    be read or holds no prompts.
    """
    found: list[Prompt] = []
    files: dict[str, Path] = {}
    for name in names:
        path = _path(name, folder)
        own = name if name in SETS else path.stem
        if own in files:
            raise SgoolError(f"There are two prompt sets named {own}: {files[own]} and {path}.")
        files[own] = path
        rows: dict[str, str] = {}
        for text, category in _rows(path):
            rows.setdefault(text, category)
        prompts = [Prompt(own, category, text) for text, category in rows.items()]
        if not prompts:
            raise SgoolError(f"The prompts {path} hold no prompt.")
        if len(prompts) > MOST:
            raise SgoolError(f"The prompts {path} are {len(prompts)}, and a set has at most {MOST}.")
        found += prompts[:limit]
    return found


def _path(name: str, folder: Path) -> Path:
    if name == "hard":
        return lab.HARD
    if name in SETS:
        path = folder / f"{name}.csv"
        if path.is_file():
            return path
        raise SgoolError(
            f"The prompt set {name} ({SETS[name]}) is not shipped, because no licence for it was found: put it into "
            f"{folder} as {name}.csv, with columns prompt and category, or name that folder with --prompts-dir."
        )
    path = Path(name).expanduser()
    if not path.is_file():
        raise SgoolError(f"There is no prompt set {name!r}: give one of {', '.join(SETS)}, or a CSV or text file.")
    return path


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """(prompt, category) of each line."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(_of_csv(path, csv.reader(file)) if path.suffix.lower() == ".csv" else _of_text(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SgoolError(f"The prompts {path} cannot be read: {brief(error)}.") from error
    for number, text, category in lines:
        try:
            check_prompts(text, category)
        except SgoolError as error:
            raise SgoolError(f"Line {number} of the prompts {path} has no prompt that can be read: {error}") from error
        yield text, category


def _of_text(lines: Iterator[str]) -> Iterator[tuple[int, str, str]]:
    return ((number, line.strip(), "") for number, line in enumerate(lines, 1) if line.strip())


def _of_csv(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, str, str]]:
    head = [cell.strip().lower() for cell in next(reader, [])]
    texts, categories = ([head.index(name) for name in names if name in head] for names in (TEXT, CATEGORY))
    if not texts:
        raise SgoolError(f"The prompts {path} need a header with a column 'prompt'.")
    for number, row in enumerate(reader, 2):
        if any(cell.strip() for cell in row):
            cells = row + [""] * (len(head) - len(row))
            yield number, cells[texts[0]].strip(), cells[categories[0]].strip() if categories else ""
