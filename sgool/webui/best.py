"""The best of a batch: every finished image is scored by the selector, and the best come first. Needs no gradients."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from modules import devices, errors, images, processing, shared
from PIL import Image

from sgool import pictures
from sgool.errors import SgoolError, out_of_memory
from sgool.webui import infotext, messages, models
from sgool.webui.isolation import random_numbers
from sgool.webui.overlay import attributes
from sgool.webui.records import Run, Score

ANY_ORDER = ("X/Y/Z plot", "Prompts from file or textbox")
"""Selected scripts that take the images of a generation in any order; others (SD upscale) take each for a part of their
own work."""

_LISTS = ("all_seeds", "all_subseeds", "all_prompts", "all_negative_prompts")
"""What the WebUI says of the images besides their infotexts, by their place in the gallery."""


def begin(p: Any, run: Run) -> None:
    """Hold back the grid, and the images where not all are to be saved: both wait for the order."""
    if not run.settings.best:
        return
    if script := _orders_itself(p):
        p.comment(f"SGOOL scores the images and leaves their order, because the script {script} relies on it.")
        return
    run.sorts = True
    run.held["do_not_save_grid"] = p.do_not_save_grid
    p.do_not_save_grid = True
    if run.settings.best_shown and not run.settings.best_save_all:
        run.held["do_not_save_samples"] = p.do_not_save_samples
        p.do_not_save_samples = True


def score(p: Any, run: Run, image: Image.Image) -> None:
    """Score the finished image that p has at hand. A failure leaves all images in their order, and is told once."""
    number = p.iteration * p.batch_size + p.batch_index
    run.made.append(number)
    stopped = shared.state.interrupted or shared.state.skipped
    if "do_not_save_samples" in run.held and (shared.opts.save_incomplete_images or not stopped):
        run.waiting[number] = image
    if run.unscored:
        return
    try:
        with random_numbers(), models.critics(run.settings) as critics, devices.without_autocast(), torch.no_grad():
            picture = np.array(image.convert("RGB"))
            value = critics.selector.judge(pictures.to_tensor(picture).to(devices.device), p.all_prompts[number])
        if not math.isfinite(value):
            raise SgoolError("the selector's score of one is not a finite number.")
        run.scores[number], run.pictures[number] = Score(value, critics.selector.name), picture
    except Exception as error:
        run.unscored = True
        left = range(number, len(p.all_seeds))
        _report(p, run, left, error)


@contextmanager
def sorting(p: Any, processed: Any, run: Run) -> Iterator[None]:
    """All images are made, and the best come first. Within it, SGOOL's other pictures are added to the gallery, which
    is still in the order of the images' numbers.
    """
    for name, value in run.held.items():
        setattr(p, name, value)
    try:
        _rank(p, processed, run)
    except SgoolError as error:
        _report(p, run, run.made, error)
        processed.comments += f"{messages.not_scored(error)}\n"
    try:
        _save(p, processed, run)
        yield
    finally:
        _arrange(p, processed, run)


def _rank(p: Any, processed: Any, run: Run) -> None:
    """Who comes first. Raises SgoolError where the gallery does not hold the images."""
    if not run.sorts or run.unscored or len(run.made) < 2:
        return
    shown, first = len(processed.images), processed.index_of_first_image
    if shown - first < _size(p) * len(run.made) or len(_texts(processed, run)) < len(run.made):
        raise SgoolError("another extension has taken some out of the gallery.")
    order = sorted(run.made, key=lambda number: -run.scores[number].value)
    run.ranks = {number: place for place, number in enumerate(order, 1)}
    run.shown = order[: run.settings.best_shown or None]
    told = ", ".join(f"image {number + 1} {run.scores[number].value:.3f}" for number in order)
    print(f"SGOOL: best first, {told} ({run.scores[order[0]].critic})")


def _save(p: Any, processed: Any, run: Run) -> None:
    """Save what was held back: the images that are shown, the best first. All of them, where nothing was ranked."""
    if p.do_not_save_samples or not shared.opts.samples_save:
        return
    texts = _texts(processed, run)
    for number in [number for number in run.shown or run.made if number in run.waiting]:
        iteration, index = divmod(number, p.batch_size)
        # The pattern of the file's name may ask p which image of which batch it is.
        with attributes(p, {"iteration": iteration, "batch_index": index}):
            picture, text = run.waiting[number], ranked(texts[number], run, number)
            seed, prompt = p.all_seeds[number], p.all_prompts[number]
            images.save_image(picture, p.outpath_samples, "", seed, prompt, shared.opts.samples_format, info=text, p=p)


def _arrange(p: Any, processed: Any, run: Run) -> None:
    """The best first: pictures, infotexts, seeds and prompts, the files' infotexts; and then the grid."""
    if not run.sorts:
        return
    groups = _groups(p, processed, run)
    if run.ranks:
        first, old = processed.index_of_first_image, _texts(processed, run)
        texts = {number: ranked(old[number], run, number) for number in run.made}
        for number in run.made:
            _tell_file(groups[number][0], old[number], texts[number])
        shown = [picture for number in run.shown for picture in groups[number]]
        processed.images[first : first + sum(map(len, groups.values()))] = shown
        processed.infotexts[first : first + len(run.made)] = [texts[number] for number in run.shown]
        order = [*run.ranks, *(number for number in range(len(p.all_seeds)) if number not in run.ranks)]
        for name in _LISTS:
            setattr(processed, name, [getattr(processed, name)[number] for number in order])
        processed.seed, processed.subseed = processed.all_seeds[0], processed.all_subseeds[0]
        groups = {number: groups[number] for number in run.shown}
    _grid(p, processed, [picture for group in groups.values() for picture in group])
    processed.info = processed.infotexts[0]


def ranked(text: str, run: Run, number: int) -> str:
    """The infotext with the image's rank behind its score. The prompt, which may say anything, stands before both."""
    if number not in run.ranks:
        return text
    told = f"{infotext.SCORE}: {infotext.shown(run.scores[number])}"
    before, found, after = text.rpartition(told)
    return f"{before}{told}, {infotext.RANK}: {run.place(number)}{after}" if found else text


def _orders_itself(p: Any) -> str:
    """The selected script that relies on the order of the images, or ""."""
    number = p.script_args[0] if p.script_args else 0
    if not number:
        return ""
    scripts = getattr(p.scripts, "selectable_scripts", ())
    title = scripts[number - 1].title() if number <= len(scripts) else "below the accordions"
    return "" if title in ANY_ORDER else title


def _texts(processed: Any, run: Run) -> dict[int, str]:
    """The infotexts by the images' numbers, in a gallery that is not sorted yet."""
    return dict(zip(run.made, processed.infotexts[processed.index_of_first_image :], strict=False))


def _groups(p: Any, processed: Any, run: Run) -> dict[int, list[Any]]:
    """The pictures of each image, by its number."""
    size = _size(p)
    made = processed.images[processed.index_of_first_image :]
    return {number: made[i * size : (i + 1) * size] for i, number in enumerate(run.made)}


def _size(p: Any) -> int:
    """Pictures in the gallery of one image: itself and, where the WebUI shows them, its mask and its masked part."""
    masked = getattr(p, "mask_for_overlay", None) is not None
    return 1 + masked * (bool(shared.opts.return_mask) + bool(shared.opts.return_mask_composite))


def _report(p: Any, run: Run, numbers: Sequence[int], error: Exception) -> None:
    messages.tell(p, run, numbers, messages.not_scored(error))
    if not isinstance(error, SgoolError) and not out_of_memory(error):
        errors.report("SGOOL could not score an image", exc_info=True)


def _tell_file(picture: Any, old: str, new: str) -> None:
    """Give the picture and its file the infotext with the rank. A file that cannot be read or written keeps its own."""
    if old == new or not shared.opts.enable_pnginfo or not hasattr(picture, "info"):
        return
    picture.info["parameters"] = new
    if name := getattr(picture, "already_saved_as", None):
        try:
            _rewrite(Path(name), picture, old, new)
        except OSError as error:
            errors.report(f"SGOOL could not write an image's rank into its file: {error!r}")


def _rewrite(file: Path, picture: Any, old: str, new: str) -> None:
    """Write the file again, unless another one has taken its name."""
    with Image.open(file) as saved:
        told, more = images.read_info_from_image(saved)
    if told != old:
        return
    part = file.with_suffix(".tmp")
    try:
        kept = {name: text for name, text in more.items() if isinstance(text, str)}
        images.save_image_with_geninfo(picture, new, str(part), file.suffix, existing_pnginfo=kept)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    beside = file.with_suffix(".txt")
    if shared.opts.save_txt and beside.exists():
        beside.write_text(f"{new}\n", encoding="utf-8")


def _grid(p: Any, processed: Any, shown: Sequence[Any]) -> None:
    """The grid that the WebUI would have made of these pictures."""
    opts = shared.opts
    if p.do_not_save_grid or not (opts.return_grid or opts.grid_save) or not shown:
        return
    if len(shown) < 2 and opts.grid_only_if_multiple:
        return
    grid = images.image_grid(list(shown), p.batch_size)
    text = processing.create_infotext(
        p,
        p.prompts,
        p.seeds,
        p.subseeds,
        use_main_prompt=True,
        index=0,
        all_negative_prompts=p.negative_prompts,
    )
    if opts.return_grid:
        if opts.enable_pnginfo:
            grid.info["parameters"] = text
        processed.images.insert(0, grid)
        processed.infotexts.insert(0, text)
        processed.index_of_first_image += 1
    if opts.grid_save:
        seed, prompt, short = processed.all_seeds[0], processed.all_prompts[0], not opts.grid_extended_filename
        images.save_image(
            grid,
            p.outpath_grids,
            "grid",
            seed,
            prompt,
            opts.grid_format,
            info=text,
            short_filename=short,
            p=p,
            grid=True,
        )
