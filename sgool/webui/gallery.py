"""What a run shows besides the image: before, saliency and loss, where the settings ask for them; and the run itself,
for the page that asked for it."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from modules import images, shared
from PIL import Image
from torch import Tensor

from sgool import pictures
from sgool.webui import infotext
from sgool.webui.overlay import attributes
from sgool.webui.phrases import veil
from sgool.webui.records import Entry, Run

KEPT = 8
"""Images of a run, the first ones, that are kept for its page to show."""

KEPT_RUNS = 8
"""Runs that are kept; the oldest one goes."""

runs: OrderedDict[str, list[Entry]] = OrderedDict()
"""By an id that nobody can guess: the finished generation hands it to its own page."""


def before(entry: Entry) -> Image.Image:
    return Image.fromarray(entry.before)


def after(entry: Entry) -> Image.Image:
    return Image.fromarray(entry.after)


def saliency(entry: Entry) -> Image.Image:
    return Image.fromarray(pictures.overlay(entry.after, entry.saliency, entry.regions))


def loss(entry: Entry) -> Image.Image:
    assert entry.outcome is not None
    result = entry.outcome.result
    return Image.fromarray(pictures.loss_curve(result.losses, result.scores, result.best_update))


def extras(entry: Entry) -> dict[str, Callable[[Entry], Image.Image]]:
    """By the suffix of their files, -sgool-before and so on, and the names of their options."""
    if not entry.changed:
        return {}
    # Only a zoom, and a run that was stopped before its first image, have none.
    curve = {"loss": loss} if entry.outcome is not None and entry.outcome.result.losses else {}
    return {"before": before, "saliency": saliency, **curve}


def places(entry: Entry) -> dict[str, Callable[[Entry], Image.Image]]:
    """Each place of a zoom as it was and as it was painted, enlarged so that it can be seen: place-1-before, ..."""
    drawn: dict[str, Callable[[Entry], Image.Image]] = {}
    for number, place in enumerate(entry.zoom.places if entry.zoom else (), 1):
        for when, picture in (("before", place.picture_before), ("after", place.picture_after)):
            if picture is not None:
                drawn[f"place-{number}-{when}"] = partial(_enlarged, picture)
    return drawn


def maps(entry: Entry) -> dict[str, Callable[[Entry], Image.Image]]:
    """Where the image shows each phrase, to lay over the picture before or after: phrase-1-before, ..."""
    drawn: dict[str, Callable[[Entry], Image.Image]] = {}
    for number, each in enumerate(entry.phrases.found if entry.phrases else (), 1):
        for when, heat in (("before", each.map_before), ("after", each.map_after)):
            if heat is not None:
                drawn[f"phrase-{number}-{when}"] = partial(_veil, heat)
    return drawn


def all_of(entry: Entry) -> dict[str, Callable[[Entry], Image.Image]]:
    """Every picture that there is of an image, by the name that the page asks for."""
    return {"after": after, **extras(entry), **places(entry), **maps(entry)}


def _veil(heat: Tensor, entry: Entry) -> Image.Image:
    return Image.fromarray(veil(heat.float().numpy(), entry.after.shape[:2]))


def _enlarged(picture: np.ndarray, _: Entry) -> Image.Image:
    """To at least 256 pixels, by a whole factor."""
    image = Image.fromarray(picture)
    factor = max(1, -(-256 // max(image.size)))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)


def keep(run: Run) -> str:
    """Keep the run's first images for its page; returns the run's id, "" where there is nothing to show."""
    entries = list(run.entries.values())
    if not entries:
        return ""
    number = secrets.token_urlsafe(12)
    runs[number] = entries[:KEPT]
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
    for number, entry in run.entries.items():
        for name, draw in extras(entry).items():
            save = getattr(shared.opts, f"sgool_save_{name}", False) and saved
            give = getattr(shared.opts, f"sgool_return_{name}", False) and not selected
            if not save and not give:
                continue
            picture = draw(entry)
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
