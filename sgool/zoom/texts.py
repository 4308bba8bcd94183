"""What each place should show: the part of the prompt that belongs to it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sgool.guidance.prompt import clean_prompt

_CLAUSE = re.compile(r"[,;.]\s+|[,;.]$")
_TAIL = re.compile(
    r"\s(?:on|in|at|under|over|near|beside|behind|before|against|inside|outside|among|by)\s.*$", re.IGNORECASE
)
_STARTS = re.compile(r"(?:on|in|at|under|over|near|by|with|of|from)\s", re.IGNORECASE)
_THING = re.compile(r"\b(?:an?|the|one|two|three|four|five|some|several|many|his|her|their|my)\s", re.IGNORECASE)
_SIZES = re.compile(r"\b(?:very\s+)?(?:small|tiny|little|miniature|distant|far away|faraway)\b\s*", re.IGNORECASE)


def subjects(prompt: str) -> list[str]:
    """The texts of a prompt's phrases, each to be shown by a picture of its own; each once.

    A phrase is what stands between commas, semicolons, periods and "and". Where the last phrase of a clause says where
    things are, that holds for the phrases before it. Sizes are left out, because a place fills its picture: "a small
    frog and a car on a hill" gives "a frog on a hill" and "a car on a hill".
    """
    found: list[str] = []
    for clause in _CLAUSE.split(clean_prompt(prompt)):
        parts = [part for part in re.split(r"\s+and\s+", clause.strip(), flags=re.IGNORECASE) if part]
        tail = _TAIL.search(parts[-1]) if parts else None
        for part in parts:
            whole = part + tail[0] if tail and not _TAIL.search(part) else part
            found.append(" ".join(_SIZES.sub("", whole).split()) or whole)
    return list(dict.fromkeys(found))


def things(prompt: str) -> list[str]:
    """Those of `subjects` that name things, told by their articles, and not style, light or quality ("at night", "oil
    painting"). All of them where none has an article, as in a prompt of tags.
    """
    every = subjects(prompt)
    named = [text for text in every if _THING.search(text) and not _STARTS.match(text)]
    return named or every


def place_name(text: str) -> str:
    """What people call a place with this text: the text without where it is, "a frog on a hill" -> "a frog"."""
    return _TAIL.sub("", text) or text


def painting_prompt(text: str, prompt: str, taken: Sequence[str]) -> str:
    """What a place is painted with: its text, and the clauses of the prompt that belong to no place (style, light).

    taken: the texts of all places.
    """
    others = []
    for clause in _CLAUSE.split(clean_prompt(prompt)):
        own = subjects(clause)
        if own and not any(each in taken for each in own):
            others.append(clause.strip())
    return ", ".join([text, *others])
