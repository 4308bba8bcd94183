"""One batch: every image improved on its own, and whatever fails leaves it as it is, with one sentence why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from modules import devices, errors, shared
from torch import Tensor

from sgool import report
from sgool.checkpointing import MEMORY
from sgool.errors import SgoolError, out_of_memory
from sgool.generate import Guides, generate, region_finder
from sgool.optimize import Stop
from sgool.saliency.regions import Region
from sgool.webui import models, progress, refuse
from sgool.webui.guard import guarded, sparing
from sgool.webui.host import Host


@dataclass(frozen=True)
class Outcome:
    """What has come of one image. before, after: uint8 [H, W, 3]; saliency: [H, W], float16, and regions: of after."""

    before: np.ndarray
    after: np.ndarray
    saliency: Tensor
    regions: tuple[Region, ...]
    score_before: float
    score_after: float
    losses: list[float]
    scores: list[float]
    best: int
    iterations: int
    seed: int
    prompt: str
    ended: str


@dataclass
class Run:
    """What is known of one generation. owner: gives its processing object, while that lives; noise: of the batch at
    hand; outcomes, notes: by the image's number; interrupted: whether the user has stopped it.
    """

    values: dict[str, Any]
    owner: Callable[[], Any]
    noise: Tensor | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    interrupted: bool = False


def improve(p: Any, run: Run, samples: Tensor) -> Tensor:
    """The batch's latents [B, 4, h, w], improved where that succeeded; the very same tensor where nothing did."""
    first = p.iteration * p.batch_size
    numbers = [first + i for i in range(len(samples))]
    if run.values["method"] == "none" or not run.values["iterations"] or progress.stopped():
        return samples
    improved = samples
    with _told(p, run, numbers):
        if sentence := refuse.reason(p):
            _tell(p, run, numbers, sentence)
            return samples
        with guarded(p), models.guides(run.values) as guides:
            shown = progress.Progress(p, run.values, len(numbers))
            for i, number in enumerate(numbers):
                if progress.stopped():
                    break
                with _told(p, run, [number]):
                    latent = _one(p, run, guides, shown, samples[i : i + 1], i, number)
                    if latent is not None:
                        improved = samples.clone() if improved is samples else improved
                        improved[i : i + 1] = latent.to(samples)
        shared.state.current_latent = improved  # what a preview shows from here on
    if progress.stopped():
        left = [number for number in numbers if number not in run.outcomes and number not in run.notes]
        word = "skipped" if shared.state.skipped else "interrupted"
        if left:
            _tell(p, run, left, f"SGOOL was {word}, so this is the image without it.")
        run.interrupted = shared.state.interrupted
        progress.settle(p)
    return improved


@contextmanager
def _told(p: Any, run: Run, numbers: list[int]) -> Iterator[None]:
    """Whatever fails in it leaves these images as they are, and is said in one sentence."""
    try:
        yield
    except Stop:
        pass
    except Exception as error:
        _tell(p, run, numbers, _sentence(error, run.values["memory"]))
        if not isinstance(error, SgoolError) and not out_of_memory(error):
            errors.report("SGOOL failed", exc_info=True)


def _one(
    p: Any, run: Run, guides: Guides, shown: progress.Progress, sample: Tensor, i: int, number: int
) -> Tensor | None:
    """One image, [1, 4, h, w]: its better latent, or None where the original is the best there is."""
    values = {**run.values, "guidance_scale": p.cfg_scale}
    while True:
        try:
            return _attempt(p, run, values, guides, shown, sample, i, number)
        except Exception as error:
            lower = list(MEMORY)[list(MEMORY).index(values["memory"]) + 1 :]
            if not out_of_memory(error) or not lower or values["memory"] != run.values["memory"]:
                raise
            values["memory"] = lower[0]
        _tell(p, run, [], f"SGOOL ran out of memory and tries again with memory {values['memory']!r}.")


def _attempt(
    p: Any,
    run: Run,
    values: Mapping[str, Any],
    guides: Guides,
    shown: progress.Progress,
    sample: Tensor,
    i: int,
    number: int,
) -> Tensor | None:
    prompt, seed = p.prompts[i], int(p.seeds[i])
    memory = MEMORY[values["memory"]]
    noise = None if run.noise is None else run.noise[i : i + 1]
    label = f"image {number + 1}/{len(p.all_seeds)}, " if len(p.all_seeds) > 1 else ""
    with torch.enable_grad(), _full_precision(), sparing(p, memory):
        host = Host(p, i, sample, noise, memory)
        before = host.decode_original()
        score = guides.selector.similarity(before, prompt)
        shown.begin(i, label, score)
        result = generate(
            host,
            guides,
            prompt,
            values,
            seed=seed,
            init_latent=host.original if values["start"] == "image" else None,
            on_image=shown.image,
            on_step=shown.step,
        )
        if shared.state.skipped:  # Skip gives the original, Interrupt the best so far
            raise Stop
        if result.error is not None:
            raise result.error
        better = result.best.score > score
        after = result.best.image if better else before
        saliency = guides.detect(after)
        outcome = Outcome(
            before=report.to_uint8(before),
            after=report.to_uint8(after),
            saliency=saliency.half().cpu(),
            regions=tuple(region_finder(values)(saliency)),
            score_before=score,
            score_after=result.best.score if better else score,
            losses=result.losses,
            scores=result.scores,
            best=result.best_update,
            iterations=result.iterations,
            seed=seed,
            prompt=prompt,
            ended=result.ended,
        )
        run.outcomes[number] = outcome
        print(f"SGOOL: {label}score {score:.3f} -> {outcome.score_after:.3f} in {outcome.iterations} iterations")
        if result.ended:
            _tell(p, run, [number], f"SGOOL: {result.ended}")
        return host.blend(result.best.latent).detach() if better else None


def _full_precision() -> Any:
    """Inside the WebUI's autocast (hires fix) CLIP would be cast, too."""
    return devices.without_autocast()


def _sentence(error: Exception, memory: str) -> str:
    if out_of_memory(error):
        less = "memory 'low' or " if memory == "fast" else ""  # the next lower one has been tried already
        return f"SGOOL ran out of memory, so this is the image without it; choose {less}a smaller picture."
    if isinstance(error, SgoolError):
        return f"SGOOL left the image as it was: {error}"
    reason = " ".join(str(error).split())[:200]
    return f"SGOOL failed, so this is the image without it: {type(error).__name__}: {reason}"


def _tell(p: Any, run: Run, numbers: list[int], sentence: str) -> None:
    """In the console, in the box below the gallery, and in the infotext of the images it concerns."""
    p.comment(sentence)
    print(sentence, file=sys.stderr)
    for number in numbers:
        run.notes[number] = _without_folder(sentence)


def _without_folder(sentence: str) -> str:
    """Pictures are given away, and the path of the models' folder often names a person."""
    folder = str(models.models_dir())
    for written in (folder, repr(folder)[1:-1]):  # the system's own errors double Windows' backslashes
        sentence = sentence.replace(written, "models/sgool")
    return sentence
