"""The embedded model: a small latent diffusion model and three CLIPs, trained by this project. See README.md here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODEL = Path(__file__).parent / "model"
"""Diffusers folder of the generator, in Stable Diffusion 1.x's architecture."""

CLIPS = {name: Path(__file__).parent / "clips" / name for name in ("guide", "selector", "judge")}
"""Folders in open_clip's format. A run optimises against the guide and chooses by the selector; only benchmarks
load the judge."""

DEFAULTS: dict[str, Any] = {
    "steps": 10,
    "guidance_scale": 4.0,
    "saliency": "spectral",
    "threshold": 0.25,
    "min_size": 0.45,
    "refresh": 1,  # the detector costs nothing here
    "clip_model": "embedded",
    "selector_model": "embedded",
    "memory": "fast",
}
"""What the embedded model is run with where the general defaults (sgool.settings) are meant for larger ones."""

CAPTIONS = Path(__file__).parent / "captions.csv"
"""200 captions kept out of training: caption, size of the subjects (small, mixed, large), background (plain, busy)."""

HARD = Path(__file__).parent / "hard.csv"
"""The 60 captions kept out of training that plain DDIM draws right least often; ``training/hard.py`` chose them."""
