"""What is written into the images' infotext, and how it is read back into the controls."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

from sgool import __version__
from sgool.presets import ignored
from sgool.settings import DEFAULTS
from sgool.webui.arguments import WEBUI
from sgool.webui.records import Outcome, Run, Score, ZoomOutcome

_PREFIX = "SGOOL "
VERSION = f"{_PREFIX}version"
"""Stands in every infotext of an image that was made with SGOOL ticked."""
CRITIC = f"{_PREFIX}scored by"
"""Which critic an image's scores are of: the selector."""
SCORE = f"{_PREFIX}score"
RANK = f"{_PREFIX}rank"
"""Of a finished image, in the best of a batch."""
NOTE = f"{_PREFIX}note"
"""Why an image is as it was, or a run ended early."""


def key(name: str) -> str:
    """The infotext key of a setting: its label."""
    return f"{_PREFIX}{WEBUI[name].label}"


_OUTCOME: dict[str, Callable[[Outcome], str | int | None]] = {
    "SGOOL score before": lambda outcome: _score(outcome.score_before),
    "SGOOL score resampled": lambda outcome: _score(outcome.score_resampled),
    "SGOOL score after": lambda outcome: _score(outcome.score_after),
    "SGOOL best iteration": lambda outcome: outcome.best_iteration,
    "SGOOL regions found": lambda outcome: len(outcome.regions),
    "SGOOL iterations done": lambda outcome: outcome.result.iterations,
    "SGOOL by your sampler": lambda outcome: _rendered(outcome),
    "SGOOL sampled with": lambda outcome: outcome.sampled or None,
}
"""Of each image: the WebUI's own score, the score of iteration 0 where SGOOL sampled the image again, the score of what
came out, which iteration made that (none where the WebUI's own image did), and with what SGOOL sampled."""


_ZOOM: dict[str, Callable[[ZoomOutcome], str | None]] = {
    "SGOOL zoom kept": lambda zoom: f"{zoom.kept} of {len(zoom.places)}",
    "SGOOL zoom outcome": lambda zoom: "; ".join(place.told for place in zoom.places) or None,
}
"""Of each image: how many places were painted again and kept, and what became of each."""


def _rendered(outcome: Outcome) -> str | None:
    """The score of the noise that was found, by the user's own sampler."""
    kept = "kept" if outcome.by_yours else "not kept"
    return None if outcome.rendered is None else f"{outcome.rendered:.4f}, {kept}"


def shown(score: Score) -> str:
    return f"{score.value:.4f}"


def _score(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


class JsonOnly(list[Any]):
    """A value of `p.extra_generation_params` that the page and the API get to see, and no infotext.

    Their JSON shows what is in the list; for an infotext the WebUI asks for the image's own entry: None.
    """

    def __getitem__(self, index: Any) -> None:  # type: ignore[override]
        return None


RUN = f"{_PREFIX}run"
"""Where the page finds the id of the run that made its images."""
PHRASES = f"{_PREFIX}phrases"
"""Of each image: how much of each phrase of the prompt it shows. That is measured when the images are saved already."""


def without_ours(params: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without our entries."""
    return {name: value for name, value in params.items() if not name.startswith(_PREFIX)}


def write(p: Any, run: Run) -> None:
    """Add every setting that has a part in the run and is not at its default, what came of each image, the version."""
    params = p.extra_generation_params
    settings = run.settings
    without = ignored(WEBUI, settings.method, settings.start, settings.zoom, settings.best)
    for name in [name for name in WEBUI if name not in without]:
        value = getattr(run.settings, name)
        if value != DEFAULTS[name]:
            params[key(name)] = value
    for field, (found, read) in _fields(run).items():
        params[field] = _per_image(found, read)
    params[VERSION] = __version__


def settle(p: Any, run: Run, number: str) -> None:
    """After the last image: plain lists in place of functions, because the API's JSON shows no functions. They are in
    the gallery's order.

    number: the run's id for the page, or "".
    """
    order = [*run.ranks, *(number for number in range(len(p.all_seeds)) if number not in run.ranks)]
    for field, (found, read) in _fields(run).items():
        if found:
            p.extra_generation_params[field] = [read(found[i]) if i in found else None for i in order]
        else:
            p.extra_generation_params.pop(field, None)
    if run.phrases:
        told = [run.phrases[i].as_list() if i in run.phrases else None for i in order]
        p.extra_generation_params[PHRASES] = JsonOnly(told)
    if number:
        p.extra_generation_params[RUN] = JsonOnly([number])


def _fields(run: Run) -> dict[str, tuple[Mapping[int, Any], Callable[[Any], Any]]]:
    """What the infotext says of each image: by its key, where that is found by the image's number, and how to read it.

    Nothing stands there of what the run does not do.
    """
    fields: dict[str, tuple[Mapping[int, Any], Callable[[Any], Any]]] = {}
    places = {number: run.place(number) for number in run.ranks}
    if run.whole:
        fields |= {field: (run.outcomes, read) for field, read in _OUTCOME.items()}
    if run.settings.zoom:
        fields |= {field: (run.zooms, read) for field, read in _ZOOM.items()}
    if run.settings.best_improved and run.whole:
        fields["SGOOL rank before"] = (run.first_ranks, str)
    if run.settings.best:
        fields |= {SCORE: (run.scores, shown), RANK: (places, str)}
    scored: ChainMap[int, Any] = ChainMap({}, run.outcomes, run.zooms, run.scores)  # type: ignore[arg-type]  # while they fill
    return {**fields, CRITIC: (scored, lambda found: found.critic), NOTE: (run.notes, str)}


def _per_image(found: Mapping[int, Any], read: Callable[[Any], Any]) -> Callable[..., Any]:
    """The WebUI calls it for every infotext. While it makes images it counts within the batch, else over all."""

    def value(p: Any, index: int, all_seeds: Any, use_main_prompt: bool = False, **_: Any) -> Any:
        number = index + (p.iteration * p.batch_size if all_seeds is p.seeds else 0)
        return read(found[number]) if number in found and not use_main_prompt else None

    return value


def paste(name: str) -> Callable[[Mapping[str, str]], Any]:
    """Reads a setting back: its value, its default where it is not named, None (leave it) where SGOOL was off."""
    default = DEFAULTS[name]

    def read(params: Mapping[str, str]) -> Any:
        if VERSION not in params:
            return None
        value = params.get(key(name), default)
        if isinstance(default, bool):  # bool("False") is true
            return value is True or str(value) == "True"
        return type(default)(value)

    return read


def paste_enabled(params: Mapping[str, str]) -> bool:
    return VERSION in params
