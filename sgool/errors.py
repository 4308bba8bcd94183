"""Errors that users see as one sentence instead of a traceback."""

from __future__ import annotations


class SgoolError(ValueError):
    """An error that the user can understand and fix. Its message is one full sentence."""


class NotRepeatable(SgoolError):
    """The network predicted something else in the backward pass than in the forward pass, so the gradient is wrong."""


def brief(error: object, limit: int = 300) -> str:
    """What an error says, on one line: cut after a word where it is longer, its kind where it says nothing.

    Torch advises to load a refused file without its safeguard. That is not passed on.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if "weights_only" in text or "Weights only load failed" in text:
        return "it holds more than plain tensors, so it is not loaded"
    if len(text) <= limit:
        return text
    return f"{text[: limit - 2].rpartition(' ')[0] or text[: limit - 3]}..."


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch has its own exception for this on a GPU, but not on the CPU."""
    import torch

    text = str(error).lower()
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
