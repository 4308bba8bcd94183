"""What a run shows besides the image: before, saliency and loss, where the settings ask for them; and the run itself,
for the page that asked for it."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from modules import images, shared
from PIL import Image

from sgool import pictures
from sgool.webui import infotext
from sgool.webui.isolation import attributes
from sgool.webui.records import Outcome, Run

KEPT = 8
"""Images of a run, the first ones, that are kept for its page to show."""

KEPT_RUNS = 8
"""Runs that are kept; the oldest one goes."""

runs: OrderedDict[str, list[Outcome]] = OrderedDict()
"""By an id that nobody can guess: the finished generation hands it to its own page."""


def before(outcome: Outcome) -> Image.Image:
    return Image.fromarray(outcome.before)


def after(outcome: Outcome) -> Image.Image:
    return Image.fromarray(outcome.after)


def saliency(outcome: Outcome) -> Image.Image:
    return Image.fromarray(pictures.overlay(outcome.after, outcome.saliency, outcome.regions))


def loss(outcome: Outcome) -> Image.Image:
    result = outcome.result
    return Image.fromarray(pictures.loss_curve(result.losses, result.scores, result.best_update))


def extras(outcome: Outcome) -> dict[str, Callable[[Outcome], Image.Image]]:
    """By the suffix of their files, -sgool-before and so on, and the names of their options."""
    curve = {"loss": loss} if outcome.result.losses else {}  # a run that was stopped before its first image has none
    return {"before": before, "saliency": saliency, **curve}


def keep(run: Run) -> str:
    """Keep the run's first images for its page; returns the run's id, "" where there is nothing to show."""
    if not run.outcomes:
        return ""
    number = secrets.token_urlsafe(12)
    runs[number] = [outcome for _, outcome in sorted(run.outcomes.items())][:KEPT]
    while len(runs) > KEPT_RUNS:
        runs.popitem(last=False)
    return number


def show(p: Any, processed: Any, run: Run) -> None:
    """Append to the gallery and save what the settings ask for.

    Whatever the user has stopped since, these pictures are whole. A selected script (SD upscale) gets none of them: it
    takes every picture for a part of its own work.
    """
    saved = shared.opts.samples_save and not p.do_not_save_samples
    selected = bool(p.script_args and p.script_args[0])
    files = _files(processed, run)
    for number, outcome in sorted(run.outcomes.items()):
        for name, draw in extras(outcome).items():
            save = getattr(shared.opts, f"sgool_save_{name}", False) and saved
            give = getattr(shared.opts, f"sgool_return_{name}", False) and not selected
            if not save and not give:
                continue
            picture = draw(outcome)
            with _plain(p) if name == "before" else nullcontext():
                info = processed.infotext(p, number)
            if save:
                _save(p, number, files.get(number), picture, info, f"-sgool-{name}")
            if give:
                if shared.opts.enable_pnginfo:
                    picture.info["parameters"] = info
                processed.images.append(picture)
                processed.infotexts.append(info)


def _files(processed: Any, run: Run) -> dict[int, str]:
    """Where the WebUI has saved each image, by its number: of an image's files, the first that is in the gallery."""
    found: dict[int, str] = {}
    for image in processed.images[processed.index_of_first_image :]:  # before it there may be a grid
        file = getattr(image, "already_saved_as", None)
        if file in run.files:
            found.setdefault(run.files[file], file)
    return found


def _save(p: Any, number: int, file: str | None, picture: Image.Image, info: str, suffix: str) -> None:
    """Beside the image itself and under its name, which takes no number from the WebUI's count.

    file: where the WebUI has saved the image, or None.
    """
    extension = shared.opts.samples_format
    if file is not None:
        path = Path(file)
        name = path.stem + suffix
        images.save_image(
            picture, str(path.parent), "", extension=extension, info=info, p=p, forced_filename=name, save_to_dirs=False
        )
        return
    # The pattern of the file's name may ask p which image of which batch it is.
    iteration, index = divmod(number, p.batch_size)
    with attributes(p, {"iteration": iteration, "batch_index": index}):
        seed, prompt = p.all_seeds[number], p.all_prompts[number]
        images.save_image(picture, p.outpath_samples, "", seed, prompt, extension, info=info, p=p, suffix=suffix)


@contextmanager
def _plain(p: Any) -> Iterator[None]:
    """The infotext of the image before says nothing of SGOOL, which had no part in it."""
    with attributes(p, {"extra_generation_params": infotext.without_ours(p.extra_generation_params)}):
        yield
