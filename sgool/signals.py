"""Ctrl-C and SIGTERM: they end a command at once while it has nothing to lose, and wait while it has."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, which acts like Ctrl-C."""


class Guard:
    """Takes the signals while it is entered: ``with Guard() as guard: ...``.

    They raise KeyboardInterrupt or Terminated. After `hold` they only leave their number, and what runs sees to it when
    it can. number: of the first that was held, or 0. last: whether the process ends afterwards; Ctrl-C then does
    nothing any more, because the interpreter would only tell of it.

    A signal that is ignored stays ignored. In another thread than the main one nothing changes.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.last = last
        self.number = 0
        self._holding = False
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        """From here on signals wait."""
        self._holding = True

    def interrupt(self) -> NoReturn:
        """Raise what the signal that was held would have raised."""
        raise _error(self.number)

    def __enter__(self) -> Guard:
        for number in (signal.SIGINT, signal.SIGTERM) if _main_thread() else ():
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None: one that Python has not set, and could not put back
                self._before[number] = handler
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.last and number == signal.SIGINT else handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._holding:
            raise _error(number)
        self.number = self.number or number


def _error(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
