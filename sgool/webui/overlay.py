"""Attributes that are other than they were for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attributes(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Set attributes, and restore the previous ones afterwards."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


class Overlay:
    """Another object with some attributes replaced for reading. Setting an attribute sets it on the other object."""

    def __init__(self, other: Any, **values: Any) -> None:
        vars(self).update(values, _other=other)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_other"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_other"], name, value)
