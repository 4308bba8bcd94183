"""What a run shows besides the image: before, saliency and loss, where the settings ask for them; and the last run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from modules import images, shared
from PIL import Image

from sgool import pictures
from sgool.webui.isolation import attributes
from sgool.webui.records import LastRun, Outcome, Run

KEPT = 8
"""So many of the last run's images, the first, are kept for the page to show."""


def before(outcome: Outcome) -> Image.Image:
    return Image.fromarray(outcome.before)


def after(outcome: Outcome) -> Image.Image:
    return Image.fromarray(outcome.after)


def saliency(outcome: Outcome) -> Image.Image:
    return Image.fromarray(pictures.overlay(outcome.after, outcome.saliency, outcome.regions))


def loss(outcome: Outcome) -> Image.Image:
    return Image.fromarray(pictures.loss_curve(outcome.losses, outcome.scores, outcome.best))


def extras(outcome: Outcome) -> dict[str, Callable[[Outcome], Image.Image]]:
    """By the suffix of their files, -sgool-before and so on, and the names of their options."""
    curve = {"loss": loss} if outcome.losses else {}  # a run that was stopped before its first update has none
    return {"before": before, "saliency": saliency, **curve}


last: dict[str, LastRun] = {}
"""By tab."""
_numbers = itertools.count(time.time_ns() // 1_000_000)
"""The browser keeps pictures by their run's number: it must be another after the server has been started anew."""


def show(p: Any, processed: Any, run: Run, tab: str) -> None:
    """Append to the gallery and save what the settings ask for; remember the run for the page.

    Whatever the user has stopped since, these pictures are whole. A selected script (SD upscale) gets none of them: it
    takes every picture for a part of its own work.
    """
    if run.outcomes:
        last[tab] = LastRun(next(_numbers), [outcome for _, outcome in sorted(run.outcomes.items())][:KEPT])
    saved = shared.opts.samples_save and not p.do_not_save_samples
    selected = bool(p.script_args and p.script_args[0])
    for number, outcome in sorted(run.outcomes.items()):
        info = processed.infotext(p, number)
        for name, draw in extras(outcome).items():
            save = getattr(shared.opts, f"sgool_save_{name}", False) and saved
            give = getattr(shared.opts, f"sgool_return_{name}", False) and not selected
            if not save and not give:
                continue
            picture = draw(outcome)
            if save:
                # The pattern of the file's name may ask p which image of which batch it is.
                iteration, index = divmod(number, p.batch_size)
                with attributes(p, {"iteration": iteration, "batch_index": index}):
                    images.save_image(
                        picture,
                        p.outpath_samples,
                        "",
                        processed.all_seeds[number],
                        processed.all_prompts[number],
                        shared.opts.samples_format,
                        info=info,
                        p=p,
                        suffix=f"-sgool-{name}",
                    )
            if give:
                if shared.opts.enable_pnginfo:
                    picture.info["parameters"] = info
                processed.images.append(picture)
                processed.infotexts.append(info)
