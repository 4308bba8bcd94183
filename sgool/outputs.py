"""The files of a run: put in place together or not at all, in a folder that no other run writes to meanwhile."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from sgool.errors import SgoolError

PREFIX = ".sgool-"
"""Of the name of whatever is in the folder for a moment only."""


@contextlib.contextmanager
def claimed(folder: Path, names: Collection[str]) -> Iterator[None]:
    """Make the folder and keep other runs out of it. The claim ends with its process, whatever ends that.

    names: of the files that will be written. Raises SgoolError where another run has the folder, or where it, or one of
    the files, could not be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise SgoolError(f"The output folder {folder} is a file.")
        folder.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        taken = [name for name in names if (folder / name).is_dir() and not (folder / name).is_symlink()]
    except OSError as error:
        raise SgoolError(f"The output folder {folder} cannot be written to: {error.strerror or error}.") from error
    if taken:
        raise SgoolError(f"The output folder {folder} has a folder named {taken[0]}, where a file should go.")
    with _locked(folder):
        yield


def replace(folder: Path, files: Mapping[str, bytes], names: Collection[str]) -> None:
    """Put the files into the folder, in place of all that an earlier run has left there.

    names: of all files that a run may leave. The last of `files` goes first and comes last: where it is, the files are
    of one run. A file that is a link is replaced, and what it leads to stays. Raises SgoolError where that is not
    possible; where a file cannot be written in full (no space), the earlier ones stay as they are.
    """
    *first, last = files
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as made:
            for name, content in files.items():
                _write(Path(made, name), content)
            (folder / last).unlink(missing_ok=True)
            for name in first:
                os.replace(Path(made, name), folder / name)
            for name in set(names) - set(files):
                (folder / name).unlink(missing_ok=True)
            os.replace(Path(made, last), folder / last)
    except OSError as error:
        raise SgoolError(f"The result could not be written into {folder}: {error.strerror or error}.") from error


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # some file systems tell only then that they are full


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        with _locked_on_windows(folder):
            yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(folder) from error
        except OSError:
            pass  # some network folders know no locks
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked_on_windows(folder: Path) -> Iterator[None]:
    """By a file, because a folder cannot be locked there."""
    import msvcrt

    path = folder / f"{PREFIX}lock"
    with open(path, "a+b") as file:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError as error:
            raise _taken(folder) from error
        yield
    with contextlib.suppress(OSError):
        path.unlink()


def _taken(folder: Path) -> SgoolError:
    return SgoolError(f"Another run is writing into the output folder {folder}; wait for it, or take another folder.")
