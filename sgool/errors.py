"""What is shown to users as a sentence instead of a traceback."""

from __future__ import annotations


class SgoolError(ValueError):
    """Something the user can understand and fix; its message is one full sentence."""


class NotRepeatable(SgoolError):
    """The network gave another prediction on the way back than on the way there, so the way back is not the same."""


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
    """Whether there was no memory left: torch has an exception of its own for it on a GPU, but not on the CPU."""
    import torch

    text = str(error).lower()
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
