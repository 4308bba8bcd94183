"""What a run shows besides the image: before, saliency and loss, where the settings ask for them; and the last run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import images, shared
from PIL import Image

from sgool import report
from sgool.webui.run import Outcome, Run

KEPT = 8
"""Images of the last run that are kept for the page to show."""


def before(outcome: Outcome) -> Image.Image:
    return Image.fromarray(report.to_uint8(outcome.before))


def after(outcome: Outcome) -> Image.Image:
    return Image.fromarray(report.to_uint8(outcome.after))


def saliency(outcome: Outcome) -> Image.Image:
    return Image.fromarray(report.overlay(report.to_uint8(outcome.after), outcome.saliency, outcome.regions))


def loss(outcome: Outcome) -> Image.Image:
    return Image.fromarray(report.loss_curve(outcome.losses, outcome.scores, outcome.best))


EXTRAS: dict[str, Callable[[Outcome], Image.Image]] = {"before": before, "saliency": saliency, "loss": loss}
"""By the suffix of their files, -sgool-before and so on, and the names of their options."""


@dataclass(frozen=True)
class LastRun:
    number: int
    outcomes: list[Outcome]


last: dict[str, LastRun] = {}
"""By tab."""
_numbers = itertools.count(1)


def show(p: Any, processed: Any, run: Run, tab: str) -> None:
    """Append to the gallery and save what the settings ask for; remember the run for the page."""
    for number, outcome in sorted(run.outcomes.items()):
        info = processed.infotext(p, number)
        for name, draw in EXTRAS.items():
            save = getattr(shared.opts, f"sgool_save_{name}", False) and p.save_samples()
            give = getattr(shared.opts, f"sgool_return_{name}", False)
            if not save and not give:
                continue
            picture = draw(outcome)
            if save:
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
    if run.outcomes:
        last[tab] = LastRun(next(_numbers), [outcome for _, outcome in sorted(run.outcomes.items())][:KEPT])
