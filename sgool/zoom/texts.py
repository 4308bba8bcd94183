"""What each place should show: the part of the prompt that belongs to it."""

from __future__ import annotations

import re

from sgool.guidance.prompt import clean_prompt

_CLAUSE = re.compile(r"[,;.]\s+|[,;.]$")
_TAIL = re.compile(
    r"\s(?:on|in|at|under|over|near|beside|behind|before|against|inside|outside|among|by)\s.*$", re.IGNORECASE
)
_STARTS = re.compile(r"(?:on|in|at|under|over|near|by|with|of|from)\s", re.IGNORECASE)
_THING = re.compile(r"\b(?:an?|the|one|two|three|four|five|some|several|many|his|her|their|my)\s", re.IGNORECASE)
_QUALITY = re.compile(r"\b(?:quality|detailed|details|masterpiece|resolution|lighting|style)\b", re.IGNORECASE)
_COLORS = "black|white|gr[ae]y|red|orange|yellow|green|blue|purple|pink|brown|gold|silver"
_TWO_COLORS = re.compile(rf"\b({_COLORS})\s+and\s+({_COLORS})\b", re.IGNORECASE)
_HIDDEN = "\ue010"  # an "and" that splits nothing
_SIZES = re.compile(r"\b(?:very\s+)?(?:small|tiny|little|miniature|distant|far away|faraway)\b\s*", re.IGNORECASE)

LONGEST = 60
"""Letters of a place's name, at most."""


def subjects(prompt: str) -> list[str]:
    """The texts of a prompt's phrases, each to be shown by a picture of its own; each once.

    A phrase is what stands between commas, semicolons, periods and "and". Where the last phrase of a clause says where
    things are, that holds for the phrases before it. Sizes are left out, because a place fills its picture: "a small
    frog and a car on a hill" gives "a frog on a hill" and "a car on a hill". "Black and white" is no two phrases.
    """
    found: list[str] = []
    for clause in _CLAUSE.split(clean_prompt(prompt)):
        clause = _TWO_COLORS.sub(rf"\1{_HIDDEN}\2", clause.strip())
        parts = [part.replace(_HIDDEN, " and ") for part in re.split(r"\s+and\s+", clause, flags=re.IGNORECASE) if part]
        tail = _TAIL.search(parts[-1]) if parts else None
        for part in parts:
            whole = part + tail[0] if tail and not _TAIL.search(part) else part
            found.append(" ".join(_SIZES.sub("", whole).split()) or whole)
    return list(dict.fromkeys(found))


def things(prompt: str) -> list[str]:
    """Those of `subjects` that name things, told by their articles, and not style, light or quality ("at night", "oil
    painting"). A prompt without articles, such as one of tags, stays whole.
    """
    every = subjects(prompt)
    named = [text for text in every if _THING.search(text) and not _STARTS.match(text) and not _QUALITY.search(text)]
    return named or (every if len(every) == 1 else [clean_prompt(prompt)] if every else [])


def place_name(text: str) -> str:
    """What people call a place with this text: the text without where it is, "a frog on a hill" -> "a frog"."""
    name = _TAIL.sub("", text) or text
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3].rstrip()}..."


def painting_prompt(text: str, prompt: str) -> str:
    """What a place is painted with: its text, and the clauses of the prompt that name no thing (style, light)."""
    every = set(things(prompt))
    clauses = [clause.strip() for clause in _CLAUSE.split(clean_prompt(prompt))]
    others = [clause for clause in clauses if clause and not every.intersection(subjects(clause))]
    return text if text == clean_prompt(prompt) else ", ".join([text, *others])
