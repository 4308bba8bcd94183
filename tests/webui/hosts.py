"""The programs that SGOOL_WEBUI may name, and what differs between them for the tests."""

from __future__ import annotations

import functools
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import random_checkpoint

from sgool.tiny.export import export


@dataclass(frozen=True)
class Host:
    """cpu: the flags that make it compute on the CPU in float32. flags: others; {folder} stands for its own folder.
    options: what its config.json must say. hires: what its API wants to hear of hires fix. zoom: what gives the model's
    images places to paint again. outputs, embeddings: the folders of its pictures and of textual inversions. size: of
    the tests' images, in pixels; the random model is slow.
    keeps_switches: whether a default can be set for the box beside an accordion's name.
    """

    name: str
    cpu: tuple[str, ...]
    flags: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    hires: dict[str, Any] = field(default_factory=dict)
    zoom: dict[str, Any] = field(default_factory=lambda: {"zoom_by": "phrases"})  # noise draws attention everywhere
    outputs: str = "outputs"
    embeddings: str = "embeddings"
    checkpoint: str = random_checkpoint.NAME
    size: int = 64
    keeps_switches: bool = True

    def provide(self, models: Path) -> None:
        """Put the checkpoint into the folder of the program's models, and where ControlNet is part of the program one
        of those.
        """
        if self.checkpoint != random_checkpoint.NAME:
            export(models / "Stable-diffusion")
            return
        for kind, path in zip(("Stable-diffusion", "ControlNet"), _random(), strict=True):
            (models / kind).mkdir(exist_ok=True)
            (models / kind / path.name).symlink_to(path)


AUTOMATIC1111 = Host(
    "AUTOMATIC1111",
    cpu=("--no-half", "--use-cpu", "all"),
    flags=("--no-download-sd-model", "--do-not-download-clip"),
    zoom={},
    checkpoint="sgool-tiny.safetensors",
    size=128,
)
_BEGINS_WITH = {"step": 20, "cfg": 7.0, "sampler": "DPM++ 2M", "scheduler": "Automatic"}
_AS_OTHERS = {f"sd_{tab}_{name}": value for tab in ("t2i", "i2i") for name, value in _BEGINS_WITH.items()}
"""What the page begins with, as in the others."""
_SAME_MODULES: dict[str, Any] = {"hr_additional_modules": ["Use same choices"]}  # without it the API makes no hires fix
_OWN_SCRIPTS = ("--gradio-allowed-path", "{folder}")  # with --data-dir they would refuse their own JavaScript

FORGE = Host(
    "Forge",
    cpu=("--always-cpu", "--all-in-fp32"),
    flags=("--no-download-sd-model", *_OWN_SCRIPTS),
    options=_AS_OTHERS,
    hires=_SAME_MODULES,
    keeps_switches=False,  # it compares their type with a function
)
REFORGE = Host(
    "reForge",
    cpu=("--always-cpu", "--all-in-fp32"),
    flags=("--no-download-sd-model", "--do-not-download-clip"),
)
NEO = Host(
    "Forge Neo",
    cpu=("--cpu", "--force-fp32"),
    flags=_OWN_SCRIPTS,
    options={
        "VERSION_UID": "PY313",  # otherwise it waits for a key
        **_AS_OTHERS,
    },
    hires={**_SAME_MODULES, "hr_upscaler": "None"},  # it upscales no latents, and else only with ESRGAN's files
    outputs="output",
    embeddings="models/embeddings",
)


def running_in(folder: Path) -> Host:
    """Which program the folder holds."""
    if not (folder / "modules_forge").exists():
        return AUTOMATIC1111
    if not (folder / "backend").exists():
        return REFORGE
    version = folder / "modules_forge" / "forge_version.py"
    return NEO if '"neo"' in version.read_text() else FORGE


HOST = running_in(Path(os.environ["SGOOL_WEBUI"])) if os.environ.get("SGOOL_WEBUI") else AUTOMATIC1111


def only_in(host: Host, reason: str) -> pytest.MarkDecorator:
    """Skips a test in all other programs. reason: why it cannot be there."""
    return pytest.mark.skipif(HOST is not host, reason=f"{HOST.name}: {reason}")


def not_in(host: Host, reason: str) -> pytest.MarkDecorator:
    """Skips a test in this program."""
    return pytest.mark.skipif(HOST is host, reason=f"{HOST.name}: {reason}")


@functools.cache
def _random() -> tuple[Path, Path]:
    """The random checkpoint and ControlNet, made once for all servers."""
    folder = Path(_kept().name)
    return random_checkpoint.write(folder), random_checkpoint.write_controlnet(folder)


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sgool-random-")
