"""Checks of what comes from a caller's Python code: what does not fit is told in one sentence."""

from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgool.errors import SgoolError, brief

if TYPE_CHECKING:
    import torch

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The kinds of numbers that a network may compute in."""

SEEDS = 2**63
"""Seeds lie below this."""


def shown(value: object) -> str:
    """A value for a sentence: short, on one line."""
    try:
        return brief(reprlib.repr(value), 60)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number too long to write"


def check_kind(value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Raises SgoolError unless the value is of this class, or of one of them.

    what: names both, as in "The settings must be a Settings".
    """
    if not isinstance(value, kind):
        raise SgoolError(f"{what}, not {shown(value)}.")


def check_text(value: object, what: str) -> None:
    """Raises SgoolError unless the value is a text. what: "The prompt"."""
    check_kind(value, str, f"{what} must be a text")
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise SgoolError(f"{what} holds bytes that are not text (UTF-8).") from error


def check_seed(seed: object) -> None:
    """Raises SgoolError for a seed that is no whole number, or out of range."""
    if type(seed) is not int:
        raise SgoolError(f"The seed must be a whole number (int), not {shown(seed)}.")
    if not 0 <= seed < SEEDS:
        raise SgoolError(f"The seed must lie between 0 and {SEEDS - 1}, not {shown(seed)}.")


def check_tensor(value: object, channels: int, what: str) -> None:
    """Raises SgoolError unless the value is a tensor [1, channels, H, W] of finite floating point numbers.

    what: "An image tensor".
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise SgoolError(f"{what} must be a tensor, not a {type(value).__name__}.")
    if value.ndim != 4 or value.shape[:2] != (1, channels) or 0 in value.shape:
        raise SgoolError(f"{what} has the shape [1, {channels}, H, W], not {list(value.shape)}.")
    if not value.is_floating_point():
        raise SgoolError(f"{what} holds floating point numbers, not {_name(value.dtype)}.")
    if value.layout is not torch.strided or value.is_meta:
        raise SgoolError(f"{what} must hold its data, and is {'meta' if value.is_meta else _name(value.layout)}.")
    if not torch.isfinite(value.float()).all():
        raise SgoolError(f"{what} holds NaN or infinite values.")


def as_folder(value: object) -> Path:
    """A folder as a Path, the user's home resolved. Raises SgoolError for what can be no path."""
    named = isinstance(value, (str, os.PathLike)) and os.fspath(value)
    if not named or not isinstance(named, str) or "\0" in named:
        raise SgoolError(f"A folder is named by a text or a path, not {shown(value)}.")
    try:
        return Path(named).expanduser()
    except RuntimeError as error:  # of a user that there is not
        raise SgoolError(f"The folder {named} cannot be found: {brief(error)}") from error


def usable_device(device: object) -> torch.device:
    """The torch device of this name. Raises SgoolError for one that cannot be used here."""
    import torch

    if not isinstance(device, (str, torch.device)):
        raise SgoolError(f"A device is named by a text or a torch.device, not {shown(device)}.")
    try:
        place = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=place)
    except Exception as error:  # every kind of device has its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SgoolError(f"The device {shown(device)} cannot be used here: {reason.rstrip('.')}.") from error
    return place


def usable_dtype(dtype: Any) -> torch.dtype:
    """A torch dtype, or that of this name. Raises SgoolError unless it is one of `DTYPES`."""
    import torch

    name = _name(dtype) if isinstance(dtype, (str, torch.dtype)) else None
    if name not in DTYPES:
        raise SgoolError(f"The precision must be one of {', '.join(DTYPES)}, not {shown(dtype)}.")
    found: torch.dtype = getattr(torch, name)
    return found


def _name(kind: object) -> str:
    """torch.uint8 -> uint8."""
    return str(kind).removeprefix("torch.")
