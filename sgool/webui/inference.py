"""Inference mode, in which the WebUI's forks run all of a generation. What is made in it can never have a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def normal_mode() -> Iterator[None]:
    """Out of inference mode, where that is on; gradients stay off."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
