"""What the command line does around a run: load, show progress, write the pictures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sgool import cost, outputs, pictures, tiny
from sgool.backends.diffusers import DiffusersBackend, find_model, load_backend
from sgool.checks import as_folder, check_seed, usable_device, usable_dtype
from sgool.detect import MaskDetector
from sgool.errors import SgoolError
from sgool.flags import flag
from sgool.generate import Critics, Request, check_prompts, check_start, generate, load_critics
from sgool.guidance.half import is_half
from sgool.guidance.prompt import clean_prompt
from sgool.images import read_image, read_mask
from sgool.needs import fetch, needs
from sgool.phrase_sheet import phrase_sheet
from sgool.phrases import measure
from sgool.presets import ZOOMS, ignored, only_zooms, resolve
from sgool.result import TRIED, Progress, Result, Snapshot, Stop
from sgool.settings import ABOUT, Settings, check_names
from sgool.signals import Guard
from sgool.tiny.words import COLORS, OTHERS, SUBJECTS, unknown_words
from sgool.weights import default_models_dir
from sgool.zoom import Picture, Place, Repaint, Verdict, Zoomed, ZoomProgress, zoom_in
from sgool.zoom.given import as_given, at_size, check_look, check_zoom, mask_at_size
from sgool.zoom.paint import Painter

PICTURES = ("before", "after", "saliency", "comparison", "loss", "zoom", "phrases")

FILES = (*(f"{name}.png" for name in PICTURES), "result.json")
"""What a run may leave in its folder."""


@dataclass(frozen=True)
class Job:
    """One call of `generate`. values: only the settings that the user gave. mask: an image, white where to zoom in;
    look_at: likewise, where to look.
    """

    prompt: str
    out: Path
    negative_prompt: str = ""
    seed: int = 0
    model: str = "tiny"
    init_image: Path | None = None
    mask: Path | None = None
    look_at: Path | None = None
    device: str | None = None
    dtype: str | None = None
    models_dir: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def run(job: Job, guard: Guard | None = None) -> tuple[dict[str, Any], Result]:
    """Do the job and write its pictures into its folder: (what result.json holds, the result).

    Raises SgoolError for bad input, before anything slow where that can be known. guard: takes the signals. They act at
    once while the models are loaded; from then on they end the run with the best image so far, and never the writing.
    """
    guard = guard or Guard()
    check_seed(job.seed)
    settings = job_settings(job)
    check_prompts(job.prompt, job.negative_prompt)
    check_start(settings, job.init_image is not None)
    check_zoom(settings, job.mask is not None)
    check_look(settings, job.look_at is not None)
    find_model(job.model)
    with outputs.claimed(job.out, FILES):
        image = None if job.init_image is None else read_image(job.init_image)
        mask, looked = (None if path is None else read_mask(path) for path in (job.mask, job.look_at))
        device, dtype = machine(job.device, job.dtype)
        for note in notes(job, settings):
            print(f"sgool: {note}", file=sys.stderr)
        wanted, folder = needs(settings), as_folder(job.models_dir or default_models_dir())
        fetch(wanted, folder)
        print("Loading the models ...", file=sys.stderr)
        if job.model in tiny.NAMES:
            torch.set_num_threads(1)  # its layers are so small that a second thread only waits for the first
        backend = load_backend(job.model, device=device, dtype=dtype, memory=settings.memory)
        critics = load_critics(wanted, folder, device, is_half(dtype))
        mask, looked = (
            None if each is None else mask_at_size(each, image, settings, backend.size) for each in (mask, looked)
        )
        image = at_size(image, settings, backend.size)
        critics = critics if looked is None else replace(critics, detector=MaskDetector(looked))
        latent = None if image is None or only_zooms(settings) else backend.encode(image.to(device))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        request = Request(job.prompt, job.negative_prompt, job.seed, latent)
        if (images := cost.images(settings, settings.steps)) > 1:
            print(f"sgool: This takes {cost.in_words(images).removeprefix('slow: ')}.", file=sys.stderr)
        guard.hold()
        if image is not None and only_zooms(settings):
            result = as_given(image, critics, job.prompt, settings)
        else:
            result = shown(backend, critics, request, settings, guard)
        closer = Closer(Painter(backend, critics, request, settings), guard) if settings.zoom else None
        if closer:
            closer.look(Picture(result.best.image, job.prompt, mask))
        if settings.show_phrases:
            after = closer.zoomed.image if closer and closer.zoomed else result.best.image
            result.phrases = measure([critics.selector, critics.guide], [result.first.image, after], job.prompt)
        return write(job, settings, result, device, closer), result


def shown(backend: DiffusersBackend, critics: Critics, request: Request, settings: Settings, guard: Guard) -> Result:
    """Generate, with a progress bar. Before the first image a signal that is held acts as if it were not."""
    with tqdm(total=settings.updates + 1, desc="SGOOL", unit="image", file=sys.stderr) as bar:
        try:
            return generate(backend, critics, request, settings, Bar(bar, guard, settings))
        except Stop:
            guard.interrupt()


def job_settings(job: Job) -> Settings:
    """The settings of a job. An initial image is a start from it, and a mask is there to zoom in or to look at."""
    check_names(job.values)
    start = {"start": "image"} if job.init_image else {}
    zoom = {"zoom": True, "zoom_by": "mask"} if job.mask else {}
    look = {"saliency": "mask"} if job.look_at else {}
    return resolve({**start, **zoom, **look, **job.values}, model=job.model)


def notes(job: Job, settings: Settings) -> Iterator[str]:
    """What the user should know before the run begins, a sentence each."""
    if idle := ignored(job.values, settings.method, settings.start, settings.zoom):
        where = f"--method {settings.method}" + (" and --start image" if settings.start == "image" else "")
        where += " and no --zoom" if set(idle) & set(ZOOMS) else ""
        yield f"With {where} these do nothing: {', '.join(map(flag, idle))}."
    if job.model in tiny.NAMES and (unknown := unknown_words(clean_prompt(job.prompt))):
        more = " ..." if len(unknown) > 8 else ""
        known = "; ".join(map(", ".join, (SUBJECTS, COLORS, OTHERS)))
        yield f"The embedded model does not know {', '.join(unknown[:8])}{more}. Its only words are {known}."


def machine(device: str | None, dtype: str | None, *, meta: bool = False) -> tuple[torch.device, torch.dtype]:
    """The device and the UNet's dtype: by default CUDA in float16 where there is one, else the CPU in float32.

    meta: whether torch's device without data will do. Raises SgoolError for a device or dtype that cannot be used.
    """
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "meta" and not meta:
        raise SgoolError("The device 'meta' holds no data; it only counts, in bench --size.")
    return place, usable_dtype(dtype or ("float16" if place.type == "cuda" else "float32"))


class Closer(ZoomProgress, Progress):
    """Looks closer at an image, and shows how far that is. A signal that is held back ends it."""

    def __init__(self, painter: Painter, guard: Guard) -> None:
        self.painter = painter
        self.guard = guard
        self.zoomed: Zoomed | None = None
        self.score = 0.0

    def look(self, picture: Picture) -> None:
        """Zoom into a picture. What comes of it is in `zoomed`."""
        self.painter.progress = self
        with tqdm(total=0, desc="SGOOL zoom", unit="place", file=sys.stderr) as self.bar:
            self.zoomed = zoom_in(picture, self.painter.critics, self.painter.settings, self.painter, self)
        self.score = self.painter.critics.selector.judge(self.zoomed.image, picture.prompt)

    @property
    def ended(self) -> str:
        """What did not go as asked, for people."""
        return self.zoomed.ended if self.zoomed else ""

    def begin(self, number: int, count: int, place: Place) -> None:
        self.bar.total = count
        self.bar.set_postfix_str(place.name)
        self.step(0, 1)

    def end(self, repaint: Repaint, image: Tensor) -> None:
        self.bar.update()
        self.bar.write(f"  {repaint}", file=sys.stderr)

    def step(self, done: int, total: int) -> None:
        if self.guard.number:
            raise Stop


def write(
    job: Job, settings: Settings, result: Result, device: torch.device, closer: Closer | None = None
) -> dict[str, Any]:
    """Write before, after, saliency, comparison, loss, zoom, phrases and result.json; returns the last."""
    drawn = draw(job, result, closer)
    noted = result.phrases.note if result.phrases else ""
    equivalents = result.forward_equivalents + (closer.painter.forward_equivalents if closer else 0)
    figures = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
        "model": job.model,
        **effective(settings),
        "sampler": result.sampler,
        "iterations_done": result.iterations,
        "best_iteration": result.best_update,
        "scored_by": settings.selector,
        "score_before": result.first.score,
        "score_start": result.score_start,
        "score_after": closer.score if closer and closer.zoomed else result.best.score,
        "scores": result.scores,
        "losses": result.losses,
        "regions": [vars(region) for region in result.best.regions],
        "unet_evals": result.unet_evals + (closer.painter.unet_evals if closer else 0),
        "forward_equivalents": equivalents,
        "cost_images": round(cost.spent(equivalents, settings), 2),
        "seconds": round(result.seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        "ending": result.ending.value,
        "ended": " ".join(filter(None, (result.ended, closer.ended if closer else "", noted))),
    }
    if result.phrases:
        figures["phrases"] = result.phrases.as_list()
    if closer and closer.zoomed:
        figures["places"] = [
            {
                "name": each.place.name,
                "text": each.place.text,
                "region": vars(each.place.region),
                "before": each.before,
                "after": each.after,
                "verdict": each.verdict.name.lower(),
            }
            for each in closer.zoomed.repaints
        ]
    files = {f"{name}.png": pictures.png(picture) for name, picture in drawn.items()}
    files["result.json"] = json.dumps(figures, indent=1).encode()
    outputs.replace(job.out, files, FILES)
    return figures


def effective(settings: Settings) -> dict[str, Any]:
    """The settings that have a part in the run."""
    idle = ignored(ABOUT, settings.method, settings.start, settings.zoom)
    return {name: value for name, value in settings.as_dict().items() if name not in idle and ABOUT[name].cli}


def draw(job: Job, result: Result, closer: Closer | None = None) -> dict[str, Any]:
    """The pictures of a result, uint8 RGB [H, W, 3], by name."""
    first, best = result.first, result.best
    zoomed = closer.zoomed if closer else None
    score = closer.score if closer and zoomed else best.score
    before, after = pictures.to_uint8(first.image), pictures.to_uint8(zoomed.image if zoomed else best.image)
    assert first.saliency is not None
    looked = pictures.overlay(before, first.saliency, first.regions)
    three = pictures.comparison(before, looked, after, first.score, score, job.prompt)
    drawn = {"before": before, "after": after, "saliency": looked, "comparison": three}
    if result.losses:
        drawn["loss"] = pictures.loss_curve(result.losses, result.scores, result.best_update)
    if zoomed and (pairs := [pair(each) for each in zoomed.repaints if each.crop_after is not None]):
        drawn["zoom"] = pictures.pairs(pairs)
    if result.phrases and result.phrases.found:
        drawn["phrases"] = phrase_sheet(before, after, result.phrases.found)
    return drawn


def pair(repaint: Repaint) -> pictures.Pair:
    """A place before and after, for its picture."""
    assert repaint.crop_before is not None and repaint.crop_after is not None
    before, after = pictures.to_uint8(repaint.crop_before), pictures.to_uint8(repaint.crop_after)
    return pictures.Pair(before, after, str(repaint), repaint.verdict is Verdict.KEPT)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: the allocator's on CUDA, else the whole process's (0 where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


AT_ONCE = 0.003
"""Reports of steps that are closer than this, in seconds, are about one evaluation of the network."""


class Bar(Progress):
    """Shows how far the sampler is, and the scores of the first image, of iteration 0 and of the best image.

    After the first image it says how long the run takes. Ends the run where a signal is held back.
    """

    def __init__(self, bar: tqdm, guard: Guard, settings: Settings) -> None:
        self.bar = bar
        self.what = f"{settings.selector} score"
        self.guard = guard
        self.settings = settings
        self.scores = ""
        self.times = [time.monotonic()]

    def step(self, done: int, total: int) -> None:
        self.times.append(time.monotonic())
        self.bar.set_postfix_str(f"{self.scores}step {done}/{total}")
        self._check()

    def image(self, result: Result, newest: Snapshot) -> None:
        if not self.scores and self.bar.total > 1:
            seconds = self._sampled() * cost.whole(self.settings) / cost.begin(self.settings)
            self.bar.write(f"sgool: about {seconds:.0f} s", file=sys.stderr)
        before, start, after = result.first.score, result.scores[0], result.best.score
        where = "" if result.best_update == TRIED else f" at {result.best_update}"
        self.scores = f"{self.what} before {before:.3f}, start {start:.3f}, best {after:.3f}{where}, "
        self.bar.update()
        self._check()

    def _sampled(self) -> float:
        """Seconds of the steps so far, by their median, because networks warm up for seconds in the first ones.

        Candidates that are made together report a step one right after the other.
        """
        steps = [end - start for start, end in pairwise(self.times) if end - start > AT_ONCE]
        return median(steps) * len(steps) if steps else 0.0

    def _check(self) -> None:
        if self.guard.number:
            raise Stop
