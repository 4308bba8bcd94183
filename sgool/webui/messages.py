"""What users are told when something does not go as asked: one sentence, wherever they may look."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from sgool.errors import SgoolError, brief, out_of_memory
from sgool.webui import models
from sgool.webui.records import Run


def tell(p: Any, run: Run, numbers: Sequence[int], sentence: str) -> None:
    """In the console, in the box below the gallery, and in the infotext of the images with these numbers."""
    p.comment(sentence)
    print(sentence, file=sys.stderr)
    for number in numbers:
        run.notes[number] = without_folder(sentence)


def failure(error: Exception, memory: str) -> str:
    """Why an image is as it was. memory: the setting of the attempt that failed."""
    if out_of_memory(error):
        less = "memory 'low' or " if memory == "fast" else ""  # the next lower one has been tried already
        return f"SGOOL ran out of memory, so this is the image without it; choose {less}a smaller picture."
    if isinstance(error, SgoolError):
        return f"SGOOL left the image as it was: {error}"
    return f"SGOOL failed, so this is the image without it: {type(error).__name__}: {brief(error, 200)}"


def without_folder(sentence: str) -> str:
    """Pictures are given away, and the path of the models' folder often names a person."""
    folder = str(models.models_dir())
    for written in (folder, repr(folder)[1:-1]):  # the system's own errors double Windows' backslashes
        sentence = sentence.replace(written, "models/sgool")
    return sentence
