"""The human test: people choose between pictures of two methods, in a browser, without knowing which is which.

What is asked (`pairs`), the page that asks it (`page`), where answers are kept (`answers`), who takes them (`server`),
and what they come to (`statistics`, `analysis`, `tables`).
"""

from __future__ import annotations

FORMAT = 1
"""Of the folder."""

FOLDER, PAGE, KEY, ANSWERS, ANALYSIS = "study", "page", "key.json", "answers.sqlite", "analysis.json"
"""The study's folder in that of an evaluation, and what lies in it. Only the page is for visitors."""

QUESTIONS = ("quality", "agreement")

FIRST, SECOND, SAME = CHOICES = ("first", "second", "same")
"""What a visitor answers: one of the pair's two pictures, or that there is no difference."""
