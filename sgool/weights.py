"""Model files: fetched once, verified, kept in one folder.

A download goes to `<file>.part` and gets its name only when it is whole and loads, so a file that has its name is
good. Its SHA-256 is recorded beside it (`<file>.sha256`, as `sha256sum -c` reads it) because no checksum is published:
a file that differs later is refused. A file the user puts into the folder by hand is taken in the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgool.download import Report, download
from sgool.errors import SgoolError


@dataclass(frozen=True)
class Weight:
    """One model file, and what tells it from others: its number of tensors and the shape of one of them."""

    file: str
    url: str
    tensors: int
    key: str
    shape: tuple[int, ...]


def default_models_dir() -> Path:
    """The folder named by the environment variable SGOOL_MODELS, else ~/.cache/sgool."""
    return Path(os.environ.get("SGOOL_MODELS") or "~/.cache/sgool").expanduser()


def safe_name(name: str) -> str:
    """Return `name` if it is a plain file name; raise SgoolError if it could lead out of the models folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", name):
        raise SgoolError(f"{name!r} is not the plain name of a model file (letters, digits and . _ + - only).")
    return name


def ensure(weight: Weight, models_dir: str | Path | None = None, report: Report | None = None) -> Path:
    """Return the path of a model file, downloading it first if it is not there.

    `models_dir` None means `default_models_dir()`; `report` None, a bar on stderr. Raises SgoolError if the file cannot
    be had, is not what it should be, or has changed since its checksum was recorded; and what `report` raises.
    """
    folder = Path(models_dir) if models_dir is not None else default_models_dir()
    path = folder / safe_name(weight.file)
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{weight.file}.lock"):
                if not path.is_file():  # another process may have fetched it while this one waited
                    _fetch(weight, path, report)
        except OSError as error:
            raise SgoolError(f"Cannot write {path}: {error}.") from error
    _verify(path, weight)
    return path


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Load a checkpoint's tensors onto the CPU without running any code from it (.safetensors, or a torch file).

    Raises SgoolError naming the file if it is missing, truncated, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise SgoolError(f"There is no model file {path}.")
    try:
        if path.name.removesuffix(".part").endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file fails in whatever way its first wrong byte leads to
        raise SgoolError(f"The model file {path} is broken or incomplete; delete it to fetch it again.") from error
    # Some hosts replace torch.load by a checker that returns None for a file it rejects.
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SgoolError(f"The model file {path} is not a plain table of tensors.")
    return dict(state)


def _fetch(weight: Weight, path: Path, report: Report | None) -> None:
    part = path.with_name(f"{path.name}.part")
    download(weight.url, part, path, report)
    try:
        _check(part, weight)
    except SgoolError as error:
        part.unlink()  # whole but wrong: nothing to resume
        raise SgoolError(f"{weight.url} did not give a usable {path.name}; try again later.") from error
    os.replace(part, path)


def _check(path: Path, weight: Weight) -> None:
    state = load_state_dict(path)
    if len(state) != weight.tensors or weight.key not in state or tuple(state[weight.key].shape) != weight.shape:
        raise SgoolError(f"{path} does not hold the weights of {weight.file}; put the right file in its place.")


def _verify(path: Path, weight: Weight) -> None:
    """Compare a file with its recorded checksum; where there is none, check the file and record it."""
    record = path.with_name(f"{path.name}.sha256")
    if not record.is_file():
        _check(path, weight)
        with contextlib.suppress(OSError):  # a read-only folder keeps no record
            record.write_text(f"{_sha256(path)}  {path.name}\n", encoding="utf-8")
    elif [_sha256(path)] != record.read_text(encoding="utf-8").split()[:1]:
        raise SgoolError(
            f"{path} has changed since it was first used; delete it to fetch it again, or delete {record.name} "
            "if you replaced it on purpose."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which threads and processes both wait for and which dies with its process."""
    with open(path, "a+b") as file:
        try:
            import fcntl
        except ImportError:
            import msvcrt  # Windows; it gives up after ten seconds, so ask again
            import time

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
                    break
                except OSError:
                    time.sleep(1)
        else:
            with contextlib.suppress(OSError):  # some network folders know no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
