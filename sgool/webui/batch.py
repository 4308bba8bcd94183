"""One batch: some images improved at a time; a failure leaves its image as it is, with one sentence why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from modules import devices, errors, shared
from torch import Tensor

from sgool import cost, pictures
from sgool.checkpointing import MEMORY, Memory
from sgool.errors import SgoolError, brief, out_of_memory
from sgool.generate import Critics, Request, abreast, generate, region_finder
from sgool.lockstep import Member, in_lockstep
from sgool.result import Result, Stop
from sgool.samplers import Network
from sgool.settings import Settings
from sgool.webui import interrupts, masks, models, unsupported
from sgool.webui.backend import WebuiBackend, joined
from sgool.webui.follow import Followed
from sgool.webui.isolation import isolated, sparing
from sgool.webui.memory import sparingly
from sgool.webui.messages import failure, story, tell
from sgool.webui.progress import BatchProgress, ImageProgress
from sgool.webui.records import Outcome, Run, Scores
from sgool.webui.render import Rendered, rendered


def improve(p: Any, run: Run, samples: Tensor) -> Tensor:
    """The batch's latents [B, 4, h, w], improved where that succeeded; the very same tensor where nothing did."""
    if interrupts.stopped():
        return samples
    batch = Batch(p, run, samples)
    with batch.told(batch.numbers):
        if sentence := unsupported.reason(p):
            tell(p, run, batch.numbers, sentence)
            return samples
        with isolated(p, batch.most), models.critics(run.settings) as critics:
            height, width = samples.shape[-2:]
            batch.each(masks.looking(p, run, critics, (8 * width, 8 * height)))
        shared.state.current_latent = batch.improved  # what a preview shows from here on
    batch.settle()
    return batch.improved


def improves(settings: Settings) -> bool:
    """Whether these settings do anything to the image as a whole."""
    return cost.improves(settings)


def nothing_to_do(settings: Settings) -> str | None:
    """Why these settings leave every image as it is, or None."""
    if improves(settings) or settings.zoom or settings.best:
        return None
    if settings.method == "baseline":
        return "Method baseline works while a seed is sampled, and has nothing to do with a start from the image."
    what = "With method none" if settings.method == "none" else "With 0 iterations"
    return (
        f"{what} and without zoom SGOOL has nothing to do here; more candidate seeds would choose the best of several "
        "images."
    )


class Batch:
    """The images of one batch. samples: [B, 4, h, w], as the WebUI's sampler left them; improved: what became of them.

    numbers: the images' numbers within the generation. chosen: the places in the batch of those to improve, in turn.
    most: how many are improved at once.
    """

    def __init__(self, p: Any, run: Run, samples: Tensor) -> None:
        self.p = p
        self.run = run
        self.samples = self.improved = samples
        first = p.iteration * p.batch_size
        self.numbers = [first + i for i in range(len(samples))]
        self.chosen = list(range(len(samples)))
        height, width = samples.shape[-2:]
        wanted = min(run.settings.best_improved or len(samples), len(samples))
        self.most = min(abreast((8 * height, 8 * width), run.settings), wanted)
        self.backends: dict[int, WebuiBackend] = {}
        self.rendered: dict[int, Rendered | None] = {}
        self.proven: Memory | None = None  # with which the gradient is known to be right

    def each(self, critics: Critics) -> None:
        """Improve the images, or only the best of them, until the user stops it."""
        self.chosen = self._best(critics)
        self.followed = self._followed()
        steps = self.followed.schedule.steps if self.followed else self.run.settings.steps
        resamples = self.run.settings.start == "seed" and self.followed is None
        self.progress = BatchProgress(self.p, self.run.settings, len(self.chosen), steps, resamples)
        for begin in range(0, len(self.chosen), self.most):
            if interrupts.stopped():
                break
            places = self.chosen[begin : begin + self.most]
            self.abreast = len(places)
            for i in self._together(places, critics) if len(places) > 1 else places:
                if not interrupts.stopped():
                    self._alone(i, critics)
            for index in range(begin, begin + len(places)):
                self.progress.end(index)

    def settle(self) -> None:
        """What the user's Interrupt or Skip leaves to say and to do."""
        if not interrupts.stopped():
            return
        wanted = [self.numbers[i] for i in self.chosen]
        left = [each for each in wanted if each not in self.run.outcomes and each not in self.run.notes]
        word = "skipped" if shared.state.skipped else "interrupted"
        if left:
            tell(self.p, self.run, left, f"SGOOL was {word}, so this is the image without it.")
        self.run.interrupted = shared.state.interrupted
        self.run.stopped.update(self.numbers)
        interrupts.settle(self.p)

    @contextmanager
    def told(self, numbers: Sequence[int]) -> Iterator[None]:
        """A failure in it leaves these images as they are, and is told in one sentence."""
        try:
            yield
        except Stop:
            pass
        except Exception as error:
            tell(self.p, self.run, numbers, failure(error, self.run.settings.memory))
            if not isinstance(error, SgoolError) and not out_of_memory(error):
                errors.report("SGOOL failed", exc_info=True)

    def _best(self, critics: Critics) -> list[int]:
        """The places of the images to improve: all, or the best of them, the best one first."""
        count, most = len(self.samples), self.run.settings.best_improved
        if not most or most >= count:
            return self.chosen
        scores = [self._scored(i, critics) for i in range(count)]
        order = sorted(range(count), key=lambda i: -scores[i] if math.isfinite(scores[i]) else math.inf)
        for place, i in enumerate(order, 1):
            self.run.first_ranks[self.numbers[i]] = f"{place} of {count}, {scores[i]:.4f}"
        return order[:most]

    def _scored(self, i: int, critics: Critics) -> float:
        """The score of an image as it was."""
        interrupts.check()
        memory = MEMORY[self.run.settings.memory]
        with torch.no_grad(), devices.without_autocast(), sparing(self.p, memory):
            backend = WebuiBackend(self.p, i, self.samples[i : i + 1], None, memory)
            return critics.selector.judge(self._original(i, backend), self.p.prompts[i])

    def _alone(self, i: int, critics: Critics) -> None:
        """Improve one image; where memory runs out, once more with less of it."""
        again = partial(tell, self.p, self.run, [self.numbers[i]], note=False)
        with self.told([self.numbers[i]]):
            self._put(i, sparingly(partial(self._attempt, i, critics), self._settings(), again))

    def _together(self, places: Sequence[int], critics: Critics) -> list[int]:
        """Improve some images at once. Returns those for which memory ran out: they may still fit alone."""
        settings = self._settings()

        def attempt(i: int, member: Member) -> None:
            self._put(i, self._attempt(i, critics, settings, member))

        def join(numbers: Sequence[int]) -> Network | None:
            return joined([self.backends[places[number]] for number in numbers], settings.guidance_scale)

        left = []
        with devices.without_autocast():
            raised = in_lockstep([partial(attempt, i) for i in places], join)
        for i, error in zip(places, raised, strict=True):
            if error is not None and out_of_memory(error):
                left.append(i)
            elif error is not None:
                with self.told([self.numbers[i]]):
                    raise error
        return left

    def _settings(self) -> Settings:
        return self.run.settings.changed(guidance_scale=float(self.p.cfg_scale))

    def _put(self, i: int, latent: Tensor | None) -> None:
        """The image's better latent [1, 4, h, w]; None where the original is the best there is."""
        if latent is not None:
            self.improved = self.samples.clone() if self.improved is self.samples else self.improved
            self.improved[i : i + 1] = latent.to(self.samples)

    def _attempt(self, i: int, critics: Critics, settings: Settings, member: Member | None = None) -> Tensor | None:
        """One image's better latent [1, 4, h, w], or None where the original is the best there is."""
        prompt, seed = self.p.prompts[i], int(self.p.seeds[i])
        memory = MEMORY[settings.memory]
        # Inside the WebUI's autocast (hires fix) the critics would be cast, too.
        with torch.enable_grad(), devices.without_autocast(), sparing(self.p, memory):
            latent, noise = self.samples[i : i + 1], self._noise(i)
            backend = self.backends[i] = WebuiBackend(self.p, i, latent, noise, memory, self.followed)
            if self.proven != memory:
                backend.prove(settings.guidance_scale)
                self.proven = memory
            backend.member = member
            score = critics.selector.judge(self._original(i, backend), prompt)
            progress = ImageProgress(self.progress, self.chosen.index(i), self._label(i), score)
            start = backend.original if settings.start == "image" else None
            sampling = self.followed.sampling(i) if self.followed else None
            request = Request(prompt, seed=seed, init_latent=start, sampling=sampling)
            result = generate(backend, critics, request, settings, progress)
            if result.error is not None and not shared.state.skipped:
                raise result.error
            rendered = self.rendered[i] = self._render(i, backend, critics, result, progress)
            if shared.state.skipped:  # Skip gives the original, Interrupt the best so far
                raise Stop
            # Whether what the run begins with is the user's image.
            own = (self.followed or self.run.uploaded) and settings.method != "baseline"
            improved = result.best.score > score and not (own and _is_first(result))
            better = backend.blend(result.best.latent).detach() if improved else None
            if rendered and rendered.score > max(score, result.best.score):
                better = rendered.latent
            self._keep(i, backend, critics, score, better, result)
            return better

    @torch.no_grad()
    def _keep(
        self, i: int, backend: WebuiBackend, critics: Critics, score: float, better: Tensor | None, result: Result
    ) -> None:
        """Remember what has come of the image. score: of the WebUI's own; better: the latent to go on with, or None."""
        number, rendered = self.numbers[i], self.rendered[i]
        before = self.run.uploaded[i] if self.run.uploaded else backend.picture(backend.original)
        after = before if better is None else backend.picture(better)
        saliency = critics.detector.of(self.p.prompts[i])(pictures.to_tensor(after))
        outcome = self.run.outcomes[number] = Outcome(
            before=before,
            after=after,
            saliency=saliency.half().cpu(),
            regions=tuple(region_finder(self.run.settings)(saliency)),
            score_before=score,
            critic=critics.selector.name,
            start=self.run.settings.start,
            improved=better is not None,
            result=Scores.of(result),
            sampled=self._sampled(result),
            follows=self.followed is not None,
            rendered=rendered.score if rendered else None,
            by_yours=rendered is not None and better is rendered.latent,
            seconds=self._seconds(i, result),
        )
        print(f"SGOOL: {self._label(i)}{story(outcome)}")
        if result.ended:
            tell(self.p, self.run, [number], f"SGOOL: {result.ended}")

    def _seconds(self, i: int, result: Result) -> float:
        """How long the run took for each image's worth of evaluations, its own and those of the images beside it."""
        image = self.p.steps * (len(self.p.c.batch[i]) + (self.p.cfg_scale != 1))
        return result.seconds * image / max(image, result.forward_equivalents) / self.abreast

    def _render(
        self, i: int, backend: WebuiBackend, critics: Critics, result: Result, progress: ImageProgress
    ) -> Rendered | None:
        """The noise that was found, by the user's own sampler; None where there is none, or that did not succeed."""
        noise = result.best.noise
        asked = self.run.settings.render == "yours" and self.run.settings.start == "seed" and not self.followed
        if not asked or noise is None or _is_first(result) or interrupts.stopped():
            return None
        try:
            return rendered(backend, critics.selector, noise, self.p.prompts[i], progress.render)
        except Stop:
            return None
        except Exception as error:
            told = (
                f"SGOOL's noise could not be sampled by your sampler, so the image is as optimized: {brief(error, 200)}"
            )
            tell(self.p, self.run, [self.numbers[i]], told)
            return None

    def _original(self, i: int, backend: WebuiBackend) -> Tensor:
        """The user's image [1, 3, H, W]: as the WebUI decodes it, or as it was uploaded."""
        if not self.run.uploaded:
            return backend.decode_original()
        return pictures.to_tensor(self.run.uploaded[i]).to(backend.device)

    def _followed(self) -> Followed | None:
        """The user's own sampling of the batch, where SGOOL does likewise."""
        if self.run.recording is None:
            return None
        try:
            return self.run.recording.followed()
        except SgoolError as error:
            told = f"SGOOL samples with its own sampler, because it cannot sample as your {self.p.sampler_name} does:"
            tell(self.p, self.run, self.numbers, f"{told} {error}", note=False)
            return None

    def _sampled(self, result: Result) -> str:
        """With what, in words."""
        if self.followed:
            return f"your own {self.p.sampler_name}, {_count(self.p.steps)}"
        return f"its own {result.sampler}, {_count(self.run.settings.steps)}"

    def _noise(self, i: int) -> Tensor | None:
        return None if self.run.noise is None else self.run.noise[i : i + 1]

    def _label(self, i: int) -> str:
        count = len(self.p.all_seeds)
        return f"image {self.numbers[i] + 1}/{count}, " if count > 1 else ""


def _is_first(result: Result) -> bool:
    """Whether the run's best image is the one that it began with, to within rounding."""
    return result.best is result.first or bool((result.best.latent - result.first.latent).abs().max() < 1e-4)


def _count(steps: int) -> str:
    return f"{steps} step{'s' if steps != 1 else ''}"
