"""The embedded model: a small latent diffusion model and three CLIPs, trained by this project. See README.md here."""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""Diffusers folder of the generator, in Stable Diffusion 1.x's architecture."""

NAMES = ("tiny", "tiny-lcm")
"""What the embedded model and its few-step sibling are called."""

CLIPS = {name: Path(__file__).parent / "clips" / name for name in ("guide", "selector", "judge")}
"""Folders in open_clip's format. A run optimizes against the guide and chooses by the selector; only benchmarks
load the judge."""
