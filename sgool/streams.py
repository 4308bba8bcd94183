"""What a command prints: its result at the end and in one piece, its messages as they come.

A reader that leaves (`| head -1`, a closed terminal) ends neither. A result that cannot be written (a full disk) is an
error; a message that cannot be written is lost.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from sgool.errors import SgoolError

GONE = (errno.EPIPE, errno.EINVAL)
"""The reader has left: everywhere, and on Windows."""


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """What is printed to stdout within it is written when it ends, however it ends.

    Raises SgoolError where it cannot be written.
    """
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        _write(text.getvalue())


@contextlib.contextmanager
def tolerant_stderr() -> Iterator[None]:
    """Within it nothing that is written to stderr fails."""
    with contextlib.redirect_stderr(Tolerant(sys.stderr)):  # type: ignore[type-var]
        yield


class Tolerant:
    """A text stream that goes on when the one behind it can no longer be written to. stream: None stands for none."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            _silence(self.stream)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            _silence(self.stream)


def _write(text: str) -> None:
    stream = sys.stdout
    if stream is None or not text:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        _silence(stream)
        if error.errno not in GONE:
            raise SgoolError(f"The output could not be written: {error.strerror or error}.") from error


def _silence(stream: TextIO) -> None:
    """Send what is left in the stream nowhere, or the interpreter would fail on it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
