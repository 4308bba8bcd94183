"""The answers: what counts as one, and the SQLite file that keeps them."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from sgool.errors import SgoolError, brief
from sgool.lab.study import CHOICES, FIRST, SECOND
from sgool.lab.study.pairs import Study

LONGEST = 1024
"""Bytes of an answer."""

MOST = 100 * 2**20
"""Bytes of the file, which are about a million answers."""

TABLE = """CREATE TABLE IF NOT EXISTS answers (
    visitor TEXT NOT NULL, pair TEXT NOT NULL, left TEXT NOT NULL, quality TEXT NOT NULL, agreement TEXT NOT NULL,
    PRIMARY KEY (visitor, pair)
) WITHOUT ROWID"""

KEEP = """INSERT INTO answers VALUES (?, ?, ?, ?, ?) ON CONFLICT (visitor, pair) DO UPDATE
    SET left = excluded.left, quality = excluded.quality, agreement = excluded.agreement"""


class Wrong(SgoolError):
    """What is no answer."""


class Full(SgoolError):
    """There are as many answers as are kept."""


@dataclass(frozen=True)
class Answer:
    """What somebody says of a pair. visitor: a random number of the browser's. left: which picture was on the left.

    quality, agreement: of `CHOICES`.
    """

    visitor: str
    pair: str
    left: str
    quality: str
    agreement: str


def read_answer(content: bytes, pairs: Collection[str]) -> Answer:
    """An answer as a browser sends it. pairs: the ids that there are. Raises Wrong for anything else."""
    if len(content) > LONGEST:
        raise Wrong("An answer is shorter.")
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Wrong("An answer is JSON.") from error
    return check_answer(told, pairs)


def check_answer(told: object, pairs: Collection[str]) -> Answer:
    """See `read_answer`."""
    names = tuple(Answer.__dataclass_fields__)
    if not isinstance(told, dict) or set(told) != set(names) or not all(isinstance(told[name], str) for name in names):
        raise Wrong(f"An answer has the texts {', '.join(names)}.")
    answer = Answer(**told)
    if not re.fullmatch(r"[0-9a-f]{32}", answer.visitor):
        raise Wrong("A visitor is 32 hexadecimal digits.")
    if answer.pair not in pairs:
        raise Wrong("There is no such pair.")
    if answer.left not in (FIRST, SECOND) or answer.quality not in CHOICES or answer.agreement not in CHOICES:
        raise Wrong("There is no such choice.")
    return answer


class Answers:
    """A file of answers; several threads and processes may use it. A visitor's later answer to a pair replaces the
    earlier one. Raises SgoolError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as database:
            database.execute(TABLE)

    def keep(self, answer: Answer) -> None:
        """Raises Full where there is no room."""
        with self._open() as database:
            database.execute(KEEP, astuple(answer))

    def every(self) -> list[Answer]:
        with self._open() as database:
            return [Answer(*row) for row in database.execute("SELECT * FROM answers")]

    def count(self) -> int:
        with self._open() as database:
            return int(database.execute("SELECT count(*) FROM answers").fetchone()[0])

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file, for one transaction."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as database, database:
                size = database.execute("PRAGMA page_size").fetchone()[0]
                database.execute(f"PRAGMA max_page_count = {MOST // size}")
                yield database
        except sqlite3.Error as error:
            if "full" in str(error):
                raise Full(f"There is no room for another answer in {self.path}.") from error
            raise SgoolError(f"The answers {self.path} cannot be used: {brief(error)}.") from error


def add_file(path: Path, study: Study, answers: Answers) -> int:
    """Take the answers of a file that a visitor has saved from the page; returns how many there are.

    Raises SgoolError, and takes none, where it holds anything else.
    """
    try:
        told = json.loads(path.read_bytes())
        if told["study"] != study.id:
            raise SgoolError(f"The answers {path} belong to another study.")
        pairs = {pair.id for pair in study.pairs}
        found = [check_answer(each, pairs) for each in told["answers"]]
    except Wrong as error:
        raise SgoolError(f"The file {path} holds something that is no answer. {error}") from error
    except OSError as error:
        raise SgoolError(f"The answers {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, SgoolError):
            raise
        raise SgoolError(f"The file {path} holds no answers.") from error
    for answer in found:
        answers.keep(answer)
    return len(found)
