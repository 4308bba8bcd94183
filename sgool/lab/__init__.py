"""The laboratory: benchmarks, comparisons and how the embedded model was trained. The product never imports it."""

from __future__ import annotations

from pathlib import Path

CAPTIONS = Path(__file__).parent / "captions.csv"
"""200 captions kept out of training: caption, size of the subjects (small, mixed, large), background (plain, busy)."""

HARD = Path(__file__).parent / "hard.csv"
"""The 60 captions kept out of training that plain DDIM draws right least often; ``training/hard.py`` chose them."""
