"""What is shown to users as a sentence instead of a traceback."""

from __future__ import annotations


class SgoolError(ValueError):
    """Something the user can understand and fix; its message is one full sentence."""


class NotRepeatable(SgoolError):
    """The network gave another prediction on the way back than on the way there, so the way back is not the same."""


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left: torch has an exception of its own for it on a GPU, but not on the CPU."""
    import torch

    text = str(error).lower()
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
