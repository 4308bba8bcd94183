"""The networks that a run needs besides the diffusion model, and their files, before anything slow begins."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

from sgool.checks import as_folder
from sgool.download import DownloadError, Report, unreachable
from sgool.errors import SgoolError
from sgool.guidance import critic_weights
from sgool.saliency import detector_weights
from sgool.saliency.faces import fetch_faces
from sgool.settings import Settings, invalid
from sgool.weights import Weight, ensure, is_here


@dataclass(frozen=True)
class Needs:
    """Names, as in `Settings`, and whether faces are looked for: all that tells one run's networks from another's."""

    guide: str
    selector: str
    detector: str
    faces: bool = False

    @property
    def weights(self) -> dict[str, Sequence[Weight]]:
        """The files of each; what finds faces can do without its own. Raises SgoolError for a name that there is not,
        and says whose it is.
        """
        with naming("guide"):
            guide = critic_weights(self.guide, "guide")
        with naming("selector"):
            selector = critic_weights(self.selector, "selector")
        return {"guide": guide, "selector": selector, "detector": detector_weights(self.detector)}


@contextlib.contextmanager
def naming(setting: str) -> Iterator[None]:
    """An error in it says which setting is wrong."""
    try:
        yield
    except SgoolError as error:
        raise invalid(setting, error) from error


def needs(settings: Settings) -> Needs:
    """What a run with these settings needs.

    Without saliency in the loss only the map is drawn, by a detector without weights. The mask comes from the user: a
    front door puts it in the detector's place. Where images are only scored,
    the guide needs none either.
    """
    improved = settings.method == "sgool" and settings.iterations > 0
    refined = settings.zoom and settings.zoom_iterations > 0  # by SGOOL's own loss, whatever the method
    salient = settings.saliency_weight > 0 and (improved or refined)
    salient = salient or (settings.zoom and settings.zoom_by == "attention")
    salient = salient and settings.saliency != "mask"  # which is the user's
    faces = settings.zoom and settings.zoom_by == "faces"
    idle = not (settings.iterations or settings.candidates > 1 or settings.zoom or settings.method == "baseline")
    only_scores = settings.best and idle
    guide = "embedded" if only_scores else settings.guide  # of which nothing is asked
    return Needs(guide, settings.selector, settings.saliency if salient else "spectral", faces)


def missing(wanted: Needs, models_dir: str | os.PathLike[str]) -> list[Weight]:
    """The files that have to be downloaded, without the face detector's, which a run can do without. Asks nobody;
    raises SgoolError for a name that there is not.
    """
    every = [weight for weights in wanted.weights.values() for weight in weights]
    return [weight for weight in dict.fromkeys(every) if not is_here(weight, models_dir)]


def fetch(wanted: Needs, models_dir: str | os.PathLike[str], report: Report | None = None) -> None:
    """Download what is missing into models_dir; report None: with a bar on stderr.

    Where the face detector's file cannot be had, `Critics.faces` says it in its note.

    Raises SgoolError for a name that there is not, a folder that cannot be one, and one that names all files that
    cannot be had, and what to do instead; and what `report` raises.
    """
    models_dir = as_folder(models_dir)
    if lacking := missing(wanted, models_dir):
        _fetch(wanted, lacking, models_dir, report)
    if wanted.faces:
        fetch_faces(models_dir, report)


def _fetch(wanted: Needs, lacking: Sequence[Weight], models_dir: Path, report: Report | None) -> None:
    away = unreachable([weight.url for weight in lacking], report)
    failed = {weight: away[_host(weight)] for weight in lacking if _host(weight) in away}
    # Where a host is away, that is told at once, and not after a gigabyte from the others.
    for weight in lacking if not failed else ():
        host = _host(weight)
        if host in away:
            failed[weight] = away[host]
            continue
        try:
            ensure(weight, models_dir, report)
        except DownloadError as error:
            failed[weight] = error.reason
            if error.unreachable:
                away[host] = error.reason
    if failed:
        offline = set(failed.values()) <= set(away.values())
        advice = "connect to the network and try again" if offline else "try again later"
        file = "file" if len(failed) == 1 else "files"
        raise SgoolError(
            f"Cannot download {_listed(failed)}: {advice}, or put the {file} into {models_dir} yourself under "
            f"{'this name' if len(failed) == 1 else 'these names'}, or choose {_others(wanted, failed)}."
        )


def _host(weight: Weight) -> str:
    with contextlib.suppress(ValueError):  # HF_ENDPOINT can hold anything
        return urlsplit(weight.url).hostname or weight.url
    return weight.url


def _listed(failed: dict[Weight, str]) -> str:
    """The files, where they are published, and why they do not come, which is said once for several."""
    groups = groupby(failed.items(), key=lambda each: each[1])
    return "; ".join(
        f"{_joined([f'{weight.file} from {weight.url}' for weight, _ in group])} ({reason})" for reason, group in groups
    )


def _others(wanted: Needs, failed: dict[Weight, str]) -> str:
    """What needs no files, in place of what needs these."""
    lacking = [name for name, weights in wanted.weights.items() if any(weight in failed for weight in weights)]
    critics = [name for name in lacking if name != "detector"]
    ways = [f"embedded as {_joined(critics)}"] if critics else []
    return _joined(ways + (["spectral as saliency detector"] if "detector" in lacking else []))


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
