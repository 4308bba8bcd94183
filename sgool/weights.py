"""Model files: fetched once, verified, kept in one folder.

A download goes to `<file>.part` and gets its name only when it is whole and right, so a file that has its name is good.
Its SHA-256 must be the published one. Where none is published, that of its first use counts, and a file that differs
later is refused: it is recorded beside the file (`<file>.sha256`, as `sha256sum -c` reads it). A file the user puts
into the folder by hand is taken in the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sgool.checks import as_folder
from sgool.download import Bar, DownloadError, Report, Transfer, download, pause
from sgool.errors import SgoolError


@dataclass(frozen=True)
class Weight:
    """One model file.

    file: its name in the models folder. url: where it comes from. tensors, key, shape: what tells it from others, its
    number of tensors and the shape of one of them; 0 where any will do. sha256: its published sum, or the first digits
    of that; "" where none is known. hub: its repository and name on the Hugging Face hub, whose cache may hold it.
    instead: a file that serves as well, and is fetched where this one is not published.
    """

    file: str
    url: str
    tensors: int = 0
    key: str = ""
    shape: tuple[int, ...] = ()
    sha256: str = ""
    hub: tuple[str, str] | None = None
    instead: Weight | None = None

    @property
    def pinned(self) -> bool:
        """Whether nothing but the published file can be taken for it."""
        return len(self.sha256) == 64

    def pins(self, path: Path) -> bool:
        """Whether a path that `ensure` has returned is a pinned file."""
        if path.name == self.file:
            return self.pinned
        return self.instead is not None and self.instead.pins(path)


def default_models_dir() -> Path:
    """The folder named by the environment variable SGOOL_MODELS, else ~/.cache/sgool."""
    return as_folder(os.environ.get("SGOOL_MODELS") or "~/.cache/sgool")


def safe_name(name: str) -> str:
    """Return `name` if it is a plain file name; raise SgoolError if it could lead out of the models folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", name):
        raise SgoolError(f"{name!r} is not the plain name of a model file (letters, digits and . _ + - only).")
    return name


def is_here(weight: Weight, models_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether a model file need not be downloaded. Reads no file and asks nobody; see `ensure`."""
    return _found(weight, _folder(models_dir)) is not None


def ensure(weight: Weight, models_dir: str | os.PathLike[str] | None = None, report: Report | None = None) -> Path:
    """Return the path of a model file, downloading it first if it is not there.

    `models_dir` None means `default_models_dir()`; `report` None, a bar on stderr. Raises DownloadError if the file
    cannot be had, SgoolError if it is not what it should be or has changed since its first use, and what `report`
    raises.
    """
    folder = _folder(models_dir)

    def wait() -> None:
        if report is not None:
            report(Transfer(weight.file, waiting="it is already being downloaded"))
        time.sleep(0.5)

    found = _found(weight, folder)
    if found is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{weight.file}.lock", wait):
                found = _found(weight, folder)  # another process may have fetched it while this one waited
                if found is None:
                    return _fetch(weight, folder, report)
        except OSError as error:
            raise SgoolError(f"Cannot write {folder / weight.file}: {error}.") from error
    _verify(*found, folder)
    return found[1]


def load_state_dict(path: str | Path, *, program: bool = False) -> dict[str, Tensor]:
    """Load a checkpoint's tensors onto the CPU without running any code from it (.safetensors, or a torch file).

    program: open a TorchScript archive too, which is a program; only for a file whose SHA-256 is pinned. Raises
    SgoolError naming the file if it is missing, truncated, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise SgoolError(f"There is no model file {path}.")
    try:
        return _read(path, program)
    except _Unfit as error:
        raise SgoolError(f"The model file {path} {error}{error.advice}.") from error


class _Unfit(Exception):
    """What is wrong with a file, as what would follow "it"."""

    advice = ", so it is not loaded"


class _Broken(_Unfit):
    advice = "; delete it to fetch it again"


def _read(path: Path, program: bool = False) -> dict[str, Tensor]:
    state: Any
    try:
        if path.name.removesuffix(".part").endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(path)
        elif _is_program(path):
            if not program:
                raise _Unfit("holds a program")
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _Unfit:
        raise
    except Exception as error:  # a broken file fails in whatever way its first wrong byte leads to
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise _Unfit("holds more than plain tensors") from error
        raise _Broken("is broken or incomplete") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # what else a training run keeps is of no use here
    # Some hosts replace torch.load by a checker that returns None for a file it rejects.
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _Unfit("is not a plain table of tensors")
    return dict(state)


def _is_program(path: Path) -> bool:
    """Whether it is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _is_pickle(path: Path) -> bool:
    """Whether a pickle can be read in it, so that it is not simply broken."""
    with open(path, "rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == pickle.PROTO


def _folder(models_dir: str | os.PathLike[str] | None) -> Path:
    return as_folder(models_dir) if models_dir is not None else default_models_dir()


def _found(weight: Weight, folder: Path) -> tuple[Weight, Path] | None:
    """The file, or one that serves as well: in the folder, or where huggingface_hub keeps what it downloads."""
    each: Weight | None = weight
    while each is not None:
        path = folder / safe_name(each.file)
        if path.is_file():
            return each, path
        if cached := _cached(each, folder):
            return each, cached
        each = each.instead
    return None


def _cached(weight: Weight, folder: Path) -> Path | None:
    if weight.hub is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    for cache in (folder, None):  # None: the user's own
        path = try_to_load_from_cache(*weight.hub, cache_dir=cache)
        if isinstance(path, str):
            return Path(path)
    return None


def _fetch(weight: Weight, folder: Path, report: Report | None) -> Path:
    with contextlib.ExitStack() as stack:
        if report is None:
            report = stack.enter_context(Bar())
        try:
            return _fetch_one(weight, folder / weight.file, report)
        except DownloadError as error:
            if error.status != 404 or weight.instead is None:
                raise
        return _fetch(weight.instead, folder, report)


def _fetch_one(weight: Weight, path: Path, report: Report) -> Path:
    part = path.with_name(f"{path.name}.part")
    for seconds in (1, 2, 0):
        received = download(weight.url, part, path, report)
        digest = _sha256(part)
        fault = _fault(part, weight, digest, weight.sha256 or received.sha256)
        if not fault:
            os.replace(part, path)
            _record(path, digest)
            return path
        part.unlink()  # whole but wrong: nothing to resume
        if received.sized:
            break
        fault = f"{fault}; the connection may have closed early"
        pause(seconds, report, Transfer(path.name, waiting=f"{fault}; trying again"))
    raise DownloadError(
        f"{weight.url} did not give a usable {path.name} ({fault}); try again later, or download it by hand and put it "
        f"into {path.parent} as {path.name}.",
        fault,
    )


def _fault(path: Path, weight: Weight, digest: str, published: str) -> str:
    """What is wrong with a download; "" if nothing. digest: its SHA-256; published: that which it must have, if any."""
    if published:
        return "" if digest.startswith(published) else "its SHA-256 is not the published one"
    try:
        _check(path, weight)
    except _Unfit as error:
        return f"it {error}"
    return ""


def _check(path: Path, weight: Weight) -> None:
    """Raises _Unfit unless a file holds the tensors that it must."""
    state = _read(path, weight.pinned)
    shape = tuple(state[weight.key].shape) if weight.key in state else None
    if weight.tensors and (len(state), shape) != (weight.tensors, weight.shape):
        raise _Unfit(f"does not hold the weights of {weight.file}")


def _verify(weight: Weight, path: Path, folder: Path) -> None:
    """Compare a file with its published sum, else the recorded one; where there is neither, check and record it."""
    record = _record_file(path)
    recorded = record.read_text(encoding="utf-8").split()[:1] if record.is_file() else []
    if path.parent != folder and not weight.pinned:
        return  # huggingface_hub has compared it
    digest = _sha256(path)
    if not digest.startswith(weight.sha256):
        raise SgoolError(f"{path} is not the published file: its SHA-256 differs; delete it to fetch it again.")
    if not weight.pinned and recorded and recorded != [digest]:
        raise SgoolError(
            f"{path} has changed since it was first used; delete it to fetch it again, or delete {record.name} "
            "if you replaced it on purpose."
        )
    if path.parent == folder and not recorded:
        if not weight.sha256:
            try:
                _check(path, weight)
            except _Unfit as error:
                raise SgoolError(f"{path} {error}; put the right file in its place, or delete it.") from error
        _record(path, digest)


def _record_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _record(path: Path, digest: str) -> None:
    with contextlib.suppress(OSError):  # a read-only folder keeps no record
        _record_file(path).write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold a file lock, which threads and processes both wait for and which dies with its process. wait: a moment."""
    with open(path, "a+b") as file:
        while not _lock(file):
            wait()
        yield


def _lock(file: BinaryIO) -> bool:
    """False where another holds it."""
    try:
        import fcntl
    except ImportError:
        import msvcrt  # Windows

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network folders know no locks
        pass
    return True
