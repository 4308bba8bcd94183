"""Methods at the same budget of forward equivalents, judged by a CLIP that none of them has seen.

Paired by caption and seed: every method gets the same starting noise (best-of-N: as its first).
"""

from __future__ import annotations

import csv
import itertools
import os
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sgool import lab, tiny
from sgool.backends.diffusers import DiffusersBackend, load_backend
from sgool.checks import SEEDS, shown
from sgool.cost import halves
from sgool.errors import SgoolError
from sgool.generate import Critics, Request, generate, load_critics, make_sampler
from sgool.guidance.clip import Clip, load_clip_folder
from sgool.lab import world
from sgool.lab.same_image import CHANGES, changed
from sgool.lab.zooms import ZOOMS, Made, Painted, zoomed
from sgool.needs import needs
from sgool.presets import resolve
from sgool.settings import Settings
from sgool.weights import default_models_dir

PLAIN: dict[str, dict[str, Any]] = {
    "tiny": {"method": "none", "sampler": "ddim", "strength": 1.0, "steps": 10},
    "tiny-lcm": {"method": "none"},
}
"""The baseline of each model: plain DDIM at its best number of steps on the embedded one (``bench``, sampler_quality),
and what the few-step model sets itself."""

_DOODL: dict[str, Any] = {"method": "doodl", "sampler": "edict", "guidance_scale": 1.0, "patience": 0}
_GUIDED: dict[str, Any] = {"steps": 6, "strength": 0.67, "patience": 0}
_WEAK: dict[str, Any] = {"region_match": "weak-phrases"}

OPTIMIZERS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "doodl": {**_DOODL, "steps": 5, "strength": 1.0},
        "global": {**_GUIDED, "saliency_weight": 0.0, "candidates": 8},
        "sgool": {**_GUIDED, "candidates": 8},
        "sgool-weak": {**_GUIDED, "candidates": 8, **_WEAK},
        "global-one": {**_GUIDED, "saliency_weight": 0.0},
        "sgool-one": _GUIDED,
    },
    "tiny-lcm": {
        "doodl": {**_DOODL, "steps": 4},
        "global": {"saliency_weight": 0.0, "candidates": 4, "patience": 0},
        "sgool": {"candidates": 4, "patience": 0},
        "sgool-weak": {"candidates": 4, "patience": 0, **_WEAK},
        "global-one": {"saliency_weight": 0.0, "patience": 0},
        "sgool-one": {"patience": 0},
    },
}
"""What each optimizer chooses within the budget; the number of updates follows from it. "-one" improves the one seed
that is given."""

METHODS = ("none", "best-of-N", "doodl", "global", "sgool")
"""What is compared by default."""

ALL = (*METHODS, "sgool-weak", "global-one", "sgool-one", *ZOOMS, *CHANGES)

MOST = 1000
"""The settings allow at most this many candidates and iterations. So many images of a caption are also enough."""


@dataclass(frozen=True)
class Trial:
    """One image of one method: the judge's score, whether it finds the right caption, and the cost.

    right: among all captions and, for one of the embedded world, its near misses, which differ from it in one thing.
    equivalents: forward equivalents of the UNet. seconds: of one core. places: what zoom has painted, kept
    or not. similarity, distance: to the plain image, where a method changes it; see `sgool.lab.same_image.Changed`.
    """

    score: float
    right: bool
    equivalents: int
    seconds: float
    places: tuple[Painted, ...] = ()
    similarity: float | None = None
    distance: float | None = None


def updates_within(budget: int, run: int, candidates: int, share: float, passes: int = 3) -> tuple[int, int]:
    """(candidates, updates) that a budget of forward equivalents allows; `run` evaluations make one image.

    Each candidate is one run, and there are as many as leave room for an update. An update is the improved share of a
    run with gradients (two equivalents each, see `Result.forward_equivalents`), then the same share without: three
    passes, or two where only the prompt's half of the guidance goes back.
    """
    update = round(passes * share * run)
    candidates = max(1, min(candidates, (budget - update) // run))
    return candidates, max(0, (budget - candidates * run) // update)


@cache
def _loaded(model: str) -> tuple[DiffusersBackend, Critics, Clip]:
    torch.set_num_threads(1)
    critics = load_critics(needs(resolve({}, model=model)), default_models_dir())
    return load_backend(model), critics, load_clip_folder(tiny.CLIPS["judge"])


def trial(method: str, caption: str, seed: int, budget: int, captions: tuple[str, ...], model: str = "tiny") -> Trial:
    """Make one image by one method and judge it."""
    backend, critics, judge = _loaded(model)
    texts = _embeddings((caption, *rivals(caption, captions)))
    request = Request(caption, seed=seed)
    zooms = method in ZOOMS
    closer = resolve(ZOOMS.get(method, {}), model=model)
    if method == "sgool+zoom":
        # What both halves of the guidance cost in each step of each place.
        budget -= halves(closer) * round(closer.zoom_strength * closer.steps) * closer.zoom_places
    plain = method == "none" or (zooms and method != "sgool+zoom")
    begun = time.process_time()
    if method in CHANGES:
        own = changed(backend, critics, request, resolve(PLAIN[model], model=model), method, budget)
        scores = texts @ judge.encode_image(own.image)[0]
        seconds = time.process_time() - begun
        return Trial(
            *(scores[0].item(), int(scores.argmax()) == 0, own.equivalents, seconds),
            similarity=own.similarity,
            distance=own.distance,
        )
    settings = resolve(PLAIN[model], model=model) if plain else _within(method.removesuffix("+zoom"), budget, model)
    if zooms:

        def judged(image: torch.Tensor, text: str = "") -> float:
            embedding = judge.encode_text(text) if text else texts[0]
            return float(embedding @ judge.encode_image(image)[0])

        place = halves(closer) * round(closer.zoom_strength * closer.steps)
        again = (budget - halves(settings) * settings.steps) // place
        repaints = max(1, again) if method == "resampled" else 0
        made = zoomed(backend, critics, request, (settings, closer), judged, repaints)
    else:
        result = generate(backend, critics, request, settings)
        made = Made(result.best.image, result.forward_equivalents, ())
    seconds = time.process_time() - begun
    scores = texts @ judge.encode_image(made.image)[0]
    return Trial(scores[0].item(), int(scores.argmax()) == 0, made.equivalents, seconds, made.places)


def _within(method: str, budget: int, model: str) -> Settings:
    """The settings of a method that spends a budget of forward equivalents."""
    settings = resolve(PLAIN[model] if method == "best-of-N" else OPTIMIZERS[model][method], model=model)
    network = halves(settings)
    run = settings.steps * network * make_sampler(settings).evals_per_step
    if method == "best-of-N":
        return settings.changed(candidates=max(1, min(budget // run, MOST)))
    sampler = make_sampler(settings)
    schedule = sampler.schedule(_loaded(model)[0].alphas_cumprod, settings.steps)
    node = sampler.start_node(schedule, settings.strength)
    share = (settings.steps - node) / settings.steps
    passes = 2 if settings.way_back == "prompt" and network == 2 else 3
    candidates, iterations = updates_within(budget, run, settings.candidates, share, passes)
    return settings.changed(candidates=candidates, iterations=min(iterations, MOST))


def rivals(caption: str, captions: Sequence[str]) -> tuple[str, ...]:
    """The texts that an image of the caption might be taken for: the other captions, and its near misses."""
    scene = world.parse(caption)
    misses = [] if scene is None else itertools.chain.from_iterable(world.near_misses(scene).values())
    return tuple(dict.fromkeys([text for text in captions if text != caption] + [miss.caption for miss in misses]))


@cache
def _embeddings(captions: tuple[str, ...]) -> torch.Tensor:
    judge = load_clip_folder(tiny.CLIPS["judge"])
    return torch.stack([judge.encode_text(caption) for caption in captions])


def read_captions(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a column ``caption`` (and, for strata, ``size`` and ``background``); others are kept."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SgoolError(f"The captions {path} cannot be read: {error}") from error
    if not rows or not all((row.get("caption") or "").strip() for row in rows):
        raise SgoolError(f"The captions {path} need a header with a column 'caption', and a caption in each line.")
    return rows


@dataclass(frozen=True)
class Plan:
    """What is compared: the first `limit` captions, `seeds` images each, with a budget of forward equivalents an image.

    model: one of `PLAIN`. first_seed: of a caption's images. jobs: processes, by default one for each core. Raises
    SgoolError for what cannot be.
    """

    limit: int = 60
    seeds: int = 1
    budget: int = 400
    methods: tuple[str, ...] = METHODS
    jobs: int | None = None
    model: str = "tiny"
    first_seed: int = 0

    def __post_init__(self) -> None:
        if min(self.limit, self.seeds, self.budget, 1 if self.jobs is None else self.jobs) < 1:
            raise SgoolError("--limit, --seeds, --budget and --jobs must be at least 1.")
        if self.seeds > MOST:
            raise SgoolError(f"--seeds must be at most {MOST}.")
        if not 0 <= self.first_seed <= SEEDS - self.seeds:
            raise SgoolError(f"--first-seed must be at least 0, and every seed below {SEEDS}.")
        if self.model not in PLAIN:
            raise SgoolError(f"--model must be one of {', '.join(PLAIN)}, not {shown(self.model)}.")
        if unknown := [name for name in self.methods if name not in ALL]:
            raise SgoolError(f"There is no method {unknown[0]!r} to compare; there are {', '.join(ALL)}.")


def compare(path: Path | None, plan: Plan, *, progress: bool = True) -> dict[str, Any]:
    """Run every method of the plan on the captions of a file (None: 200 held-out ones).

    "methods" and "subsets" hold what `summarize` gives, "trials" every single image; see ``render_tables``.
    """
    methods, seeds, budget, model = plan.methods, plan.seeds, plan.budget, plan.model
    rows = read_captions(path or lab.CAPTIONS)
    captions = tuple(dict.fromkeys(row["caption"] for row in rows))
    tried = rows[: plan.limit]
    tasks = [
        (method, row["caption"], seed, budget, captions, model)
        for row in tried
        for seed in range(plan.first_seed, plan.first_seed + seeds)
        for method in methods
    ]
    with closing(_made(tasks, min(plan.jobs or os.cpu_count() or 1, len(tasks)))) as made:
        done = list(tqdm(made, desc="compare", unit="image", total=len(tasks), disable=not progress))
    trials = {method: done[i :: len(methods)] for i, method in enumerate(methods)}
    everything = np.ones(len(tried) * seeds, bool)
    subsets = {"all": everything}
    for column in ("size", "background"):
        for value in dict.fromkeys(row[column] for row in tried if row.get(column)):
            subsets[f"{column}: {value}"] = np.repeat([row.get(column) == value for row in tried], seeds)
    if "none" in trials:
        right = np.array([t.right for t in trials["none"]])
        subsets |= {"none is wrong": ~right, "none is right": right}
    summaries = {name: summarize(trials, mask, seeds) for name, mask in subsets.items() if mask.any()}
    return {
        "model": model,
        "captions": len(tried),
        "seeds": seeds,
        "first_seed": plan.first_seed,
        "budget": budget,
        "settings": {"none": PLAIN[model], "best-of-N": PLAIN[model], **OPTIMIZERS[model], **ZOOMS},
        "methods": summaries.pop("all"),
        "subsets": summaries,
        "trials": [
            {"method": method, "caption": caption, "seed": seed, **asdict(outcome)}
            for (method, caption, seed, *_), outcome in zip(tasks, done, strict=True)
        ],
    }


def _made(tasks: Sequence[tuple[Any, ...]], jobs: int) -> Generator[Trial]:
    """The trials of the tasks, in turn. A single job needs no process of its own."""
    if jobs == 1:
        yield from itertools.starmap(trial, tasks)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        for future in [pool.submit(trial, *task) for task in tasks]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C or a failure the rest is not made


def summarize(trials: Mapping[str, Sequence[Trial]], mask: np.ndarray, seeds: int) -> dict[str, Any]:
    """Per method means over the masked trials, and paired gains in score and accuracy over every other method."""
    chosen = {name: [t for t, keep in zip(row, mask, strict=True) if keep] for name, row in trials.items()}
    groups = np.repeat(np.arange(len(mask) // seeds), seeds)[mask]
    scores = {name: np.array([t.score for t in row]) for name, row in chosen.items()}
    found = {name: np.array([t.right for t in row], float) for name, row in chosen.items()}

    def gains(values: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
        return {other: paired(values[name] - values[other], groups) for other in chosen if other != name}

    return {
        name: {
            "images": len(row),
            "score_mean": float(scores[name].mean()),
            "accuracy_mean": float(found[name].mean()),
            "forward_equivalents_per_image": float(np.mean([t.equivalents for t in row])),
            "seconds_per_image": float(np.mean([t.seconds for t in row])),
            **_of_places([place for t in row for place in t.places], len(row)),
            **_of_changes(row),
            "gain_over": gains(scores, name),
            "accuracy_gain_over": gains(found, name),
        }
        for name, row in chosen.items()
    }


def _of_places(places: Sequence[Painted], images: int) -> dict[str, float | None]:
    """How many places an image had painted and kept, how often the judge agrees with what the selector did, and what
    the places gained or would have gained: the whole image, and the place by itself for its own text.
    """
    if not places:
        return {}
    kept, refused = ([each for each in places if each.kept is kept] for kept in (True, False))

    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return {
        "painted_per_image": len(places) / images,
        "kept_per_image": len(kept) / images,
        "kept_rightly": mean([each.gain > 0 for each in kept]),
        "refused_rightly": mean([not each.gain > 0 for each in refused]),
        "kept_gain": mean([each.gain for each in kept]),
        "refused_gain": mean([each.gain for each in refused]),
        "kept_crop_gain": mean([each.crop_gain for each in kept]),
        "refused_crop_gain": mean([each.crop_gain for each in refused]),
    }


def _of_changes(row: Sequence[Trial]) -> dict[str, float]:
    """How far a method has moved the plain image, on average."""
    moved = [(t.similarity, t.distance) for t in row if t.similarity is not None and t.distance is not None]
    if not moved:
        return {}
    similarity, distance = np.mean(moved, 0)
    return {"similarity_mean": float(similarity), "distance_mean": float(distance)}


def paired(differences: np.ndarray, groups: np.ndarray, samples: int = 5000) -> dict[str, Any]:
    """Mean difference and its bootstrap 95 % interval; whole captions (groups) are resampled, not single images."""
    rng = np.random.default_rng(0)
    names = np.unique(groups)
    sums = np.array([differences[groups == name].sum() for name in names])
    counts = np.array([(groups == name).sum() for name in names])
    picks = rng.integers(0, len(names), (samples, len(names)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {"mean": float(differences.mean()), "ci95": [float(low), float(high)]}


def render_tables(figures: Mapping[str, Any]) -> str:
    """The comparison as markdown tables, one for all captions and one for each subset."""
    lines = [
        f"{figures['model']}: {figures['captions']} captions, {figures['seeds']} seed(s), {figures['budget']} forward "
        "equivalents an image"
    ]
    last = list(figures["methods"])[-1]  # of METHODS, sgool
    for title, methods in {"all": figures["methods"], **figures["subsets"]}.items():
        lines += [
            "",
            f"**{title}**",
            "",
            f"| method | images | score | accuracy | equivalents | seconds | {last}'s gain (95 %) | in accuracy |",
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        ours = methods[last]
        for name, row in methods.items():
            score, accuracy = (_interval(ours.get(key, {}).get(name)) for key in ("gain_over", "accuracy_gain_over"))
            lines.append(
                f"| {name} | {row['images']} | {row['score_mean']:.3f} | {row['accuracy_mean']:.2f} | "
                f"{row['forward_equivalents_per_image']:.0f} | {row['seconds_per_image']:.1f} | {score} | {accuracy} |"
            )
        lines += [_told(name, row) for name, row in methods.items() if "painted_per_image" in row]
        lines += [
            f"\n{name}: similarity to the plain image {row['similarity_mean']:.3f}, distance {row['distance_mean']:.3f}"
            for name, row in methods.items()
            if "similarity_mean" in row
        ]
    return "\n".join(lines)


def _told(name: str, row: Mapping[str, Any]) -> str:
    """What became of the places that a method has painted."""
    kept, refused = (
        "none"
        if row[f"{what}_rightly"] is None
        else f"{row[f'{what}_rightly']:.0%} of them rightly; the image {row[f'{what}_gain']:+.3f}, the place by itself "
        f"{row[f'{what}_crop_gain']:+.3f}"
        for what in ("kept", "refused")
    )
    return (
        f"\n{name}: {row['painted_per_image']:.2f} places painted an image; {row['kept_per_image']:.2f} kept ({kept}), "
        f"the rest refused ({refused})"
    )


def _interval(gain: Mapping[str, Any] | None) -> str:
    return "" if gain is None else f"{gain['mean']:+.3f} [{gain['ci95'][0]:+.3f}, {gain['ci95'][1]:+.3f}]"
