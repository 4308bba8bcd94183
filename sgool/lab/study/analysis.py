"""What the answers come to: which method people prefer, how far they agree, and how strong each method is.

Visitors who failed an attention check count nowhere, nor do those who saw none. Intervals are for other prompts and
other people: both are resampled, a vote counting as often as its prompt times its visitor is drawn (the pigeonhole
bootstrap of Owen, arXiv 0712.1111).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from sgool.lab.study import CHOICES, FIRST, QUESTIONS, SAME, SECOND
from sgool.lab.study.answers import Answer
from sgool.lab.study.pairs import Pair, Study
from sgool.lab.study.statistics import alpha, coincidences, percentiles, resampled, strengths, wilson

DRAWS = 2000
"""Of the bootstrap."""

WORTH = {FIRST: 1.0, SAME: 0.5, SECOND: 0.0}
"""An answer as a win of the first picture."""


@dataclass(frozen=True)
class Votes:
    """Answers to one question, an entry for each: arrays [N]. methods: how many there are; unit: which pair.

    first, second: methods of the two pictures; choice: index into `CHOICES`.
    """

    methods: int
    visitor: np.ndarray
    prompt: np.ndarray
    unit: np.ndarray
    first: np.ndarray
    second: np.ndarray
    choice: np.ndarray

    @property
    def worth(self) -> np.ndarray:
        """Of each vote, for the first picture: 1, or 0.5 without a difference, or 0."""
        return np.array([WORTH[name] for name in CHOICES])[self.choice]

    def wins(self, weights: np.ndarray | float = 1.0) -> np.ndarray:
        """[M, M]: how often each method was preferred to each other; no difference counts half for both."""
        worth, size = self.worth, self.methods
        cells = np.concatenate([self.first * size + self.second, self.second * size + self.first])
        counted = np.concatenate([weights * worth, weights * (1 - worth)])
        return np.bincount(cells, counted, size * size).reshape(size, size)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How many chose what for each pair [U, 3], and the prompt of each pair [U]."""
        units, place = np.unique(self.unit, return_inverse=True)
        counts = np.zeros((len(units), len(CHOICES)))
        np.add.at(counts, (place, self.choice), 1)
        prompts = np.zeros(len(units), int)
        prompts[place] = self.prompt
        return counts, prompts


def analyse(study: Study, answers: Sequence[Answer]) -> dict[str, Any]:
    """The figures, for JSON. What cannot be told from the votes is None.

    "visitors": how many count, failed a check, and saw none. "left": how often the left picture was of better quality,
    of those times that one was. "questions": for each, "preferences" (see `_preference`), "agreement" (`_agreement`)
    and "strengths" (`_strengths`).
    """
    pairs = {pair.id: pair for pair in study.pairs}
    known = [each for each in answers if each.pair in pairs]
    passed, failed = _checked(known, pairs)
    kept = [each for each in known if each.visitor in passed and pairs[each.pair].right is None]
    sides = [each.quality == each.left for each in kept if each.quality != SAME]
    return {
        "study": study.id,
        "methods": list(study.methods),
        "pairs": sum(pair.right is None for pair in study.pairs),
        "equal": study.equal,
        "visitors": {
            "counted": len(passed),
            "failed": len(failed),
            "unchecked": len({each.visitor for each in known} - passed - failed),
        },
        "answers": len(kept),
        "left": {"share": float(np.mean(sides)), "ci95": wilson(float(np.mean(sides)), len(sides))} if sides else None,
        "questions": {name: _question(_votes(kept, name, study), study.methods) for name in QUESTIONS} if kept else {},
    }


def _checked(answers: Sequence[Answer], pairs: dict[str, Pair]) -> tuple[set[str], set[str]]:
    """The visitors who passed all attention checks that they saw, and those who failed one."""
    seen, failed = set(), set()
    for each in answers:
        right = pairs[each.pair].right
        if right is not None:
            seen.add(each.visitor)
            if any(getattr(each, name) != right for name in QUESTIONS):
                failed.add(each.visitor)
    return seen - failed, failed


def _votes(answers: Sequence[Answer], question: str, study: Study) -> Votes:
    pairs = {pair.id: pair for pair in study.pairs}
    asked = [pairs[each.pair] for each in answers]

    def numbered(names: Sequence[Any]) -> np.ndarray:
        places = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([places[name] for name in names], int)

    return Votes(
        len(study.methods),
        numbered([each.visitor for each in answers]),
        numbered([(pair.set, pair.prompt) for pair in asked]),
        numbered([pair.id for pair in asked]),
        np.array([study.methods.index(pair.methods[0]) for pair in asked]),
        np.array([study.methods.index(pair.methods[1]) for pair in asked]),
        np.array([CHOICES.index(getattr(each, question)) for each in answers]),
    )


def _question(votes: Votes, methods: Sequence[str]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    prompts = resampled(votes.prompt.max() + 1, DRAWS, rng)
    visitors = resampled(votes.visitor.max() + 1, DRAWS, rng)
    drawn = np.stack(
        [
            votes.wins(prompt[votes.prompt] * visitor[votes.visitor])
            for prompt, visitor in zip(prompts, visitors, strict=True)
        ]
    )
    wins = votes.wins()
    there = [(i, j) for i, j in combinations(range(len(methods)), 2) if wins[i, j] + wins[j, i] > 0]
    return {
        "preferences": [
            {"method": methods[i], "over": methods[j], **_preference(votes, i, j, drawn)} for i, j in there
        ],
        "agreement": _agreement(votes, prompts),
        "strengths": _strengths(wins, drawn, methods),
    }


def _preference(votes: Votes, one: int, other: int, drawn: np.ndarray) -> dict[str, Any]:
    """How one method fares against another: "share" of votes for it, no difference counting half, and "ci95".

    The interval is the bootstrap's, and nowhere narrower than Wilson's, because few votes that agree would leave the
    bootstrap without any width.
    """
    ahead = (votes.first == one) & (votes.second == other)
    behind = (votes.first == other) & (votes.second == one)
    better = int((votes.worth[ahead] == 1).sum() + (votes.worth[behind] == 0).sum())
    same = int((votes.worth[ahead | behind] == 0.5).sum())
    count = int((ahead | behind).sum())
    share = (better + same / 2) / count
    with np.errstate(invalid="ignore"):
        low, high = percentiles(drawn[:, one, other] / (drawn[:, one, other] + drawn[:, other, one]))
    least, most = wilson(share, count)
    return {
        "votes": count,
        "prompts": len(np.unique(votes.prompt[ahead | behind])),
        "better": better,
        "same": same,
        "worse": count - better - same,
        "share": share,
        "ci95": [min(low, least), max(high, most)],
    }


def _agreement(votes: Votes, prompts: np.ndarray) -> dict[str, Any]:
    """Between people who answered the same pair: Krippendorff's "alpha" with its "ci95", "pairs" that several people
    answered, and the "share" of two people's answers that are the same.

    prompts: how often each is in each draw.
    """
    counts, of_prompt = votes.counts()
    each = coincidences(counts)
    whole = each.sum(0)
    value = float(alpha(whole))
    draws = alpha(np.tensordot(prompts[:, of_prompt], each, 1))
    votes_of = counts.sum(1)
    together = (votes_of * (votes_of - 1)).sum()
    told = np.isfinite(value)
    return {
        "pairs": int((votes_of > 1).sum()),
        "share": float((counts * (counts - 1)).sum() / together) if together else None,
        "alpha": value if told else None,
        "ci95": list(percentiles(draws)) if told else None,
    }


def _strengths(wins: np.ndarray, drawn: np.ndarray, methods: Sequence[str]) -> dict[str, Any]:
    """Bradley-Terry log strengths of the methods that have votes, with mean 0: "strength" and "ci95"."""
    voted = np.flatnonzero((wins + wins.T).sum(1))
    if len(voted) < 2:
        return {}
    found = strengths(wins[np.ix_(voted, voted)])
    draws = strengths(drawn[:, voted][:, :, voted])
    return {
        methods[int(place)]: {"strength": float(found[number]), "ci95": list(percentiles(draws[:, number]))}
        for number, place in enumerate(voted)
    }
