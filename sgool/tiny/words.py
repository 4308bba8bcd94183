"""The words that the embedded model and its CLIPs have learned. They know no others."""

from __future__ import annotations

import re

SUBJECTS = ("panda", "pizza", "frog", "strawberry", "penguin", "sunflower", "car", "whale")
COLORS = ("red", "yellow", "green", "blue", "purple", "white")
OTHERS = ("small", "busy", "a", "on", "and", "background")

KNOWN = frozenset((*SUBJECTS, *COLORS, *OTHERS))


def unknown_words(text: str) -> list[str]:
    """The words of a plain text, and its signs beyond ASCII, that the embedded model has never seen, each once."""
    words = re.findall(r"\w+|[^\s\x00-\x7f]", text.lower())
    return [word for word in dict.fromkeys(words) if word not in KNOWN]
