"""One batch: every image improved on its own, and whatever fails leaves it as it is, with one sentence why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from modules import devices, errors, shared
from torch import Tensor

from sgool.checkpointing import MEMORY
from sgool.errors import SgoolError
from sgool.generate import Guides, generate, region_finder
from sgool.optimize import Result, Stop
from sgool.saliency.regions import Region
from sgool.webui import models, progress, refuse
from sgool.webui.guard import guarded
from sgool.webui.host import Host


@dataclass(frozen=True)
class Outcome:
    """What has come of one image. before, after: [3, H, W] in [0, 1], on the CPU; saliency: [H, W], of after."""

    before: Tensor
    after: Tensor
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
    hand; outcomes, notes: by the image's number.
    """

    values: dict[str, Any]
    owner: Callable[[], Any]
    noise: Tensor | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)


def improve(p: Any, run: Run, samples: Tensor) -> Tensor:
    """The batch's latents [B, 4, h, w], improved where that succeeded; the very same tensor where nothing did."""
    first = p.iteration * p.batch_size
    numbers = [first + i for i in range(len(samples))]
    if run.values["method"] == "none" or not run.values["iterations"] or progress.stopped():
        return samples
    if sentence := refuse.reason(p):
        _tell(p, run, numbers, sentence)
        return samples
    improved = samples
    for i, number in enumerate(numbers):
        label = f"image {number + 1}/{len(p.all_seeds)}, " if len(p.all_seeds) > 1 else ""
        try:
            latent = _one(p, run, samples[i : i + 1], i, number, label)
        except Stop:
            latent = None
        except Exception as error:
            latent = None
            _tell(p, run, [number], _sentence(error))
            if not isinstance(error, SgoolError) and not _out_of_memory(error):
                errors.report("SGOOL failed", exc_info=True)
        if latent is not None:
            improved = samples.clone() if improved is samples else improved
            improved[i : i + 1] = latent.to(samples)
        if progress.stopped():
            break
    return improved


def _one(p: Any, run: Run, sample: Tensor, i: int, number: int, label: str) -> Tensor | None:
    """One image, [1, 4, h, w]: its better latent, or None where the original is the best there is."""
    values = {**run.values, "guidance_scale": p.cfg_scale}
    while True:
        try:
            return _attempt(p, run, values, sample, i, number, label)
        except Exception as error:
            lower = list(MEMORY)[list(MEMORY).index(values["memory"]) + 1 :]
            if not _out_of_memory(error) or not lower or values["memory"] != run.values["memory"]:
                raise
            values["memory"] = lower[0]
        _tell(p, run, [], f"SGOOL ran out of memory and tries again with memory {values['memory']!r}.")


def _attempt(
    p: Any, run: Run, values: Mapping[str, Any], sample: Tensor, i: int, number: int, label: str
) -> Tensor | None:
    prompt, seed = p.prompts[i], int(p.seeds[i])
    memory = MEMORY[values["memory"]]
    noise = None if run.noise is None else run.noise[i : i + 1]
    with torch.enable_grad(), _full_precision(), guarded(p, memory), models.guides(values) as guides:
        host = Host(p, i, sample, noise, memory)
        before = host.decode_original()
        score = guides.selector.similarity(before, prompt)
        shown = progress.Progress(p, dict(values), label, score)
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
        outcome = _outcome(guides, values, result, before, score, better, seed, prompt)
        run.outcomes[number] = outcome
        print(f"SGOOL: {label}score {score:.3f} -> {outcome.score_after:.3f} in {outcome.iterations} iterations")
        if result.ended:
            _tell(p, run, [number], f"SGOOL: {result.ended}")
        return host.blend(result.best.latent).detach() if better else None


def _outcome(
    guides: Guides,
    values: Mapping[str, Any],
    result: Result,
    before: Tensor,
    score: float,
    better: bool,
    seed: int,
    prompt: str,
) -> Outcome:
    best = result.best
    after = best.image if better else before
    saliency, regions = best.saliency, best.regions
    if not better or saliency is None:
        saliency = guides.detect(before)
        regions = tuple(region_finder(values)(saliency))
    return Outcome(
        before=before[0].cpu(),
        after=after[0].cpu(),
        saliency=saliency.cpu(),
        regions=regions,
        score_before=score,
        score_after=best.score if better else score,
        losses=result.losses,
        scores=result.scores,
        best=best.iteration,
        iterations=len(result.losses) - 1,
        seed=seed,
        prompt=prompt,
        ended=result.ended,
    )


def _full_precision() -> Any:
    """Inside the WebUI's autocast (hires fix) CLIP would be cast, too."""
    return devices.without_autocast()


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def _sentence(error: Exception) -> str:
    if _out_of_memory(error):
        return "SGOOL ran out of memory, so this is the image without it; choose memory 'low' or a smaller picture."
    if isinstance(error, SgoolError):
        return f"SGOOL left the image as it was: {error}"
    reason = " ".join(str(error).split())[:200]
    return f"SGOOL failed, so this is the image without it: {type(error).__name__}: {reason}"


def _tell(p: Any, run: Run, numbers: list[int], sentence: str) -> None:
    """In the console, in the box below the gallery, and in the infotext of the images it concerns."""
    p.comment(sentence)
    print(sentence, file=sys.stderr)
    for number in numbers:
        run.notes[number] = sentence
