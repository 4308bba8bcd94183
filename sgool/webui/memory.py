"""Where memory runs out: once more, with the next lower setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sgool.checkpointing import MEMORY
from sgool.errors import out_of_memory
from sgool.settings import Settings

Made = TypeVar("Made")


def sparingly(attempt: Callable[[Settings], Made], settings: Settings, say: Callable[[str], None]) -> Made:
    """What the attempt comes to; on out-of-memory it is made once more with the next lower memory setting.

    say: hears the sentence about it.
    """
    try:
        return attempt(settings)
    except Exception as error:
        lower = list(MEMORY)[list(MEMORY).index(settings.memory) + 1 :]
        if not out_of_memory(error) or not lower:
            raise
    say(f"SGOOL ran out of memory and tries again with memory {lower[0]!r}.")
    return attempt(settings.changed(memory=lower[0]))
