"""What the user's Interrupt and Skip do: they stop SGOOL, and never cost an image."""

from __future__ import annotations

from typing import Any

from modules import shared

from sgool.result import Stop


def stopped() -> bool:
    """Whether the user has pressed Interrupt or Skip."""
    return shared.state.interrupted or shared.state.skipped


def check() -> None:
    """Raises Stop where the user has pressed either."""
    if stopped():
        raise Stop


def settle(p: Any) -> None:
    """What the user has stopped is SGOOL alone: the images are whole, and the WebUI saves only whole ones.

    Before a hires pass Interrupt stands, and the WebUI leaves that pass out.
    """
    state = shared.state
    state.skipped = False
    if state.interrupted and not getattr(p, "enable_hr", False):
        state.stopping_generation, state.interrupted = True, False


def resume(p: Any) -> None:
    """Once its images are saved, a selected script must see the Interrupt: Loopback would use an image it lacks."""
    if p.script_args and p.script_args[0]:
        shared.state.interrupted = True
