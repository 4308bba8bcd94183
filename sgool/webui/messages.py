"""What users are told when something does not go as asked: one sentence, wherever they may look."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from sgool.errors import SgoolError, brief, out_of_memory
from sgool.result import TRIED
from sgool.settings import SettingError
from sgool.webui import models
from sgool.webui.arguments import WEBUI
from sgool.webui.records import Outcome, Run
from sgool.zoom import Repaint

LABELS = {name: about.label for name, about in WEBUI.items()} | {"guidance_scale": "CFG Scale"}
"""What the page calls a setting."""


def tell(p: Any, run: Run, numbers: Sequence[int], sentence: str, *, note: bool = True) -> None:
    """In the console, in the box below the gallery and, as a note, in the infotext of the images with these numbers.

    In a batch, what is told of a single image says which.
    """
    shown = sentence
    if len(numbers) == 1 and len(p.all_seeds) > 1:
        shown = f"Image {numbers[0] + 1} of {len(p.all_seeds)}: {sentence}"
    p.comment(shown)
    print(shown, file=sys.stderr)
    for number in numbers if note else ():
        told = [*filter(None, [run.notes.get(number)]), without_folder(sentence)]
        run.notes[number] = " ".join(dict.fromkeys(told))


def story(outcome: Outcome) -> str:
    """How the score went: the user's image, that image sampled again by SGOOL, and what the updates added."""
    parts = [f"your image {outcome.score_before:.3f}"]
    if outcome.score_resampled is not None:
        parts.append(f"sampled again {outcome.score_resampled:.3f}")
    best = outcome.best_iteration
    if best is None:
        parts.append(f"no better image in {outcome.result.iterations} iterations")
    elif best == TRIED:
        parts.append(f"another candidate seed {outcome.result.best_score:.3f}")
    elif best > 0 or outcome.score_resampled is None:
        parts.append(f"after iteration {best} {outcome.result.best_score:.3f}")
    else:
        parts.append(f"no better one in {outcome.result.iterations} iterations")
    if outcome.rendered is not None:
        parts.append(f"by your sampler {outcome.rendered:.3f}" + (", which is kept" if outcome.by_yours else ""))
    sampled = f"; sampled with {outcome.sampled}" if outcome.sampled else ""
    return f"{', '.join(parts)} ({outcome.critic}{sampled})"


def sentence(error: SgoolError) -> str:
    """The error's message, in which a setting goes by its label; its field stands beside it where that is another."""
    if not isinstance(error, SettingError) or error.name not in LABELS:
        return str(error)
    label = LABELS[error.name]
    named = label if label.lower() == error.name else f"{label} ({error.name})"
    return f"{named} {error.problem}."


def failure(error: Exception, memory: str = "") -> str:
    """Why an image is as it was. memory: the setting of the attempt that failed."""
    if out_of_memory(error):
        less = "memory 'low' or " if memory == "fast" else ""  # the next lower one has been tried already
        return f"SGOOL ran out of memory, so this is the image without it; choose {less}a smaller picture."
    if isinstance(error, SgoolError):
        return f"SGOOL left the image as it was: {sentence(error)}"
    return f"SGOOL failed, so this is the image without it: {type(error).__name__}: {brief(error, 200)}"


def no_zoom(error: Exception) -> str:
    """Why an image was not zoomed into."""
    if out_of_memory(error):
        return "SGOOL's zoom ran out of memory, so this is the image without it."
    if isinstance(error, SgoolError):
        return f"SGOOL does not zoom into the image: {error}"
    return f"SGOOL's zoom failed, so this is the image without it: {type(error).__name__}: {brief(error, 200)}"


def not_scored(error: Exception) -> str:
    """Why the images stay in their order."""
    if out_of_memory(error):
        return "SGOOL ran out of memory while it scored the images, so they stay in their order."
    if isinstance(error, SgoolError):
        return f"SGOOL leaves the images in their order: {error}"
    return f"SGOOL could not score the images, so they stay in their order: {type(error).__name__}: {brief(error, 200)}"


def not_painted(repaint: Repaint, memory: str) -> str:
    """Why a place is as it was. memory: the setting."""
    error, name = repaint.error, brief(repaint.place.name, 60)
    assert error is not None
    if out_of_memory(error):
        less = ", memory 'low'" if memory != "low" else ""
        return f"SGOOL ran out of memory at the place {name!r}, which is left as it was; choose fewer updates{less}."
    if isinstance(error, SgoolError):
        return f"SGOOL left the place {name!r} as it was: {error}"
    return f"SGOOL's zoom failed at the place {name!r}: {type(error).__name__}: {brief(error, 200)}"


def without_folder(sentence: str) -> str:
    """Pictures are given away, and the path of the models' folder often names a person."""
    folder = str(models.models_dir())
    for written in (folder, repr(folder)[1:-1]):  # the system's own errors double Windows' backslashes
        sentence = sentence.replace(written, "models/sgool")
    return sentence
