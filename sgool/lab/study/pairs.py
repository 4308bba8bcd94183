"""What is asked: pairs of pictures of the same prompt and seed, of two methods, and pairs with a known answer."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from sgool.errors import SgoolError, brief
from sgool.lab.evaluate.store import RESULTS
from sgool.lab.study import FIRST, FOLDER, FORMAT, KEY, SECOND

NOISE = "noise"
"""Stands for a method where a picture is noise."""

PER_CHECK = 10
"""Pairs for each attention check."""

FEWEST, MOST = 3, 20
"""Attention checks of a study."""


@dataclass(frozen=True)
class Picture:
    """A row of an evaluation. file: where it is; name: of its copy, which tells nothing."""

    set: str
    prompt: str
    seed: str
    method: str
    file: Path
    name: str


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt and seed. methods, pictures: of the first and the second, in random order."""

    id: str
    set: str
    prompt: str
    seed: str
    methods: tuple[str, str]
    pictures: tuple[str, str]

    @property
    def right(self) -> str | None:
        """The answer to an attention check; None for any other pair."""
        if NOISE not in self.methods:
            return None
        return SECOND if self.methods[0] == NOISE else FIRST


@dataclass(frozen=True)
class Choice:
    """Which pairs are asked. methods: empty for all; against: only pairs with this method; pairs: at most so many, as
    even over the pairs of methods as can be; session: pairs until a visitor is thanked.
    """

    methods: tuple[str, ...] = ()
    against: str | None = None
    pairs: int | None = None
    session: int = 30


@dataclass(frozen=True)
class Study:
    """id: by which a browser tells studies apart. methods: in the evaluation's order. equal: how many pairs are not
    asked because their pictures are the same, by "one, other".
    """

    id: str
    session: int
    methods: tuple[str, ...]
    pairs: tuple[Pair, ...]
    equal: dict[str, int]

    def to_json(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def read_study(evaluation: Path) -> Study:
    """The study in an evaluation's folder. Raises SgoolError where there is none."""
    path = evaluation / FOLDER / KEY
    if not path.is_file():
        raise SgoolError(f"There is no study in {evaluation}: python -m sgool study {evaluation} --make")
    try:
        told = json.loads(path.read_bytes())
        version = told.pop("format")
        if version != FORMAT:
            raise SgoolError(f"The study {path} is of format {version}, and this sgool reads {FORMAT}.")
        pairs = tuple(
            Pair(**{**each, "methods": tuple(each["methods"]), "pictures": tuple(each["pictures"])})
            for each in told.pop("pairs")
        )
        return Study(**{**told, "methods": tuple(told["methods"]), "pairs": pairs})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SgoolError):
            raise
        raise SgoolError(f"The file {path} is not a study's: {brief(error)}.") from error


def read_pictures(evaluation: Path) -> list[Picture]:
    """The pictures of an evaluation, those that failed left out. Raises SgoolError where there is none."""
    path = evaluation / RESULTS
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["image"]]
        return [
            Picture(row["set"], row["prompt"], row["seed"], row["method"], _within(evaluation, row["image"]), _name())
            for row in rows
        ]
    except FileNotFoundError as error:
        raise SgoolError(f"There is no evaluation in {evaluation}: the file {RESULTS} is missing.") from error
    except KeyError as error:
        raise SgoolError(f"The file {path} has no column {error}.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SgoolError(f"The file {path} cannot be read: {brief(error)}.") from error


def choose(pictures: Sequence[Picture], choice: Choice) -> tuple[Study, list[Picture]]:
    """The pairs and attention checks of a study, and the pictures they show.

    Raises SgoolError where a method is missing, or no pair is left.
    """
    every = tuple(dict.fromkeys(each.method for each in pictures))
    wanted = choice.methods or every
    for name in (*wanted, *([choice.against] if choice.against else [])):
        if name not in every:
            raise SgoolError(f"The evaluation has no pictures of {name!r}; it has {', '.join(every) or 'none at all'}.")
    methods = tuple(name for name in every if name in wanted or name == choice.against)
    rng = random.SystemRandom()
    couples, equal = _couples([each for each in pictures if each.method in methods], choice.against)
    if not couples:
        raise SgoolError("There is no pair of different pictures for the same prompt and seed, so nothing to ask.")
    couples = _evenly(couples, choice.pairs or len(couples), rng)
    checks = _checks([each for couple in couples for each in couple], len(couples), rng)
    pairs = [_pair(rng.sample(couple, 2)) for couple in couples + checks]
    rng.shuffle(pairs)  # their order tells nothing
    shown = {each.name: each for couple in couples + checks for each in couple}
    return Study(secrets.token_hex(8), choice.session, methods, tuple(pairs), equal), list(shown.values())


def pixels(picture: Picture) -> np.ndarray:
    """A picture, uint8 [H, W, 3] BGR. Raises SgoolError where the file is none."""
    image = cv2.imdecode(np.fromfile(picture.file, np.uint8), cv2.IMREAD_COLOR) if picture.file.is_file() else None
    if image is None:
        raise SgoolError(f"The picture {picture.file} is missing or torn: the evaluation makes it again.")
    return _noise(image.shape[0], image.shape[1]) if picture.method == NOISE else image


def _noise(height: int, width: int) -> np.ndarray:
    """Colors without any sense, in cells large enough to be a small file."""
    cells = np.random.default_rng().integers(0, 256, (48, 48, 3), np.uint8)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)


def _couples(pictures: Iterable[Picture], against: str | None) -> tuple[list[tuple[Picture, Picture]], dict[str, int]]:
    """Every two pictures of a prompt and seed, and how often two are the same."""
    groups: dict[tuple[str, str, str], list[Picture]] = defaultdict(list)
    for each in pictures:
        groups[each.set, each.prompt, each.seed].append(each)
    known = {each.name: _digest(each) for group in tqdm(groups.values(), "prompts", disable=None) for each in group}
    found: list[tuple[Picture, Picture]] = []
    equal: Counter[str] = Counter()
    for group in groups.values():
        for one, other in combinations(group, 2):
            if against is not None and against not in (one.method, other.method):
                continue
            if known[one.name] == known[other.name]:
                equal[f"{one.method}, {other.method}"] += 1
            else:
                found.append((one, other))
    return found, dict(equal)


def _digest(picture: Picture) -> str:
    image = pixels(picture)
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()


def _evenly(couples: Sequence[tuple[Picture, Picture]], most: int, rng: random.Random) -> list[tuple[Picture, Picture]]:
    """At most so many, in turn of every pair of methods."""
    turns: Counter[tuple[str, str]] = Counter()
    ranked = []
    for one, other in rng.sample(couples, len(couples)):
        turns[one.method, other.method] += 1
        ranked.append((turns[one.method, other.method], (one, other)))
    return [couple for _, couple in sorted(ranked, key=lambda each: each[0])[:most]]


def _checks(pictures: Sequence[Picture], pairs: int, rng: random.Random) -> list[tuple[Picture, Picture]]:
    different = list({each.name: each for each in pictures}.values())
    count = min(MOST, max(FEWEST, -(-pairs // PER_CHECK)))
    picked = rng.sample(different, min(count, len(different)))
    return [(each, replace(each, method=NOISE, name=_name())) for each in picked]


def _pair(couple: Sequence[Picture]) -> Pair:
    one, other = couple
    return Pair(
        _name(), one.set, one.prompt, one.seed, (one.method, other.method), (f"{one.name}.png", f"{other.name}.png")
    )


def _within(folder: Path, image: str) -> Path:
    path = folder / image
    if not path.resolve().is_relative_to(folder.resolve()):
        raise SgoolError(f"The picture {image} does not lie in {folder}.")
    return path


def _name() -> str:
    return secrets.token_hex(8)
