"""Errors that users see as one sentence instead of a traceback."""

from __future__ import annotations


class SgoolError(ValueError):
    """An error that the user can understand and fix. Its message is one full sentence."""


class NotRepeatable(SgoolError):
    """The network predicted something else in the backward pass than in the forward pass, so the gradient is wrong."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch has its own exception for this on a GPU, but not on the CPU."""
    import torch

    text = str(error).lower()
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
