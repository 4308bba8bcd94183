"""Things made in groups, as large as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sgool.errors import SgoolError, out_of_memory

Made = TypeVar("Made")


def in_groups(make: Callable[[Sequence[int]], Sequence[Made]], count: int, most: int) -> Iterator[Made | SgoolError]:
    """What `make` makes of each number below `count`, in order; it gets at most `most` of them at a time.

    Out of memory halves `most` for all that follow, and is raised only for a number alone. A group that fails with an
    SgoolError (NaN) is made again in halves, because one number must not spoil the others; the error of a number that
    fails alone comes in its place.
    """
    left: list[Sequence[int]] = [range(count)]
    while left:
        group = left.pop()
        if len(group) > most:
            left += [group[most:], group[:most]]
            continue
        try:
            made: Sequence[Made | SgoolError] = make(group)
        except SgoolError as error:
            if len(group) > 1:
                half = len(group) // 2
                left += [group[half:], group[:half]]
                continue
            made = [error.with_traceback(None)]  # its frames would keep the group's tensors
        except (RuntimeError, MemoryError) as error:
            if len(group) == 1 or not out_of_memory(error):
                raise
            most = len(group) // 2
            left.append(group)
            continue
        yield from made
