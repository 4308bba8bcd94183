"""What the user sees while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import shared
from PIL import Image
from torch import Tensor

from sgool import pictures
from sgool.download import Report, Transfer
from sgool.errors import brief
from sgool.result import Progress, Result, Snapshot
from sgool.settings import Settings
from sgool.webui import interrupts
from sgool.webui.overlay import attributes
from sgool.zoom import Place, Repaint, ZoomProgress


class BatchProgress:
    """What is told of a batch's run. count: of how many images. steps: of the sampler that the run uses; resamples:
    whether that makes another image of the seed than the WebUI's.

    The bar counts the first pass (`p.steps`) and the run's own sampler steps as one job. It does so only from here on,
    and falls once: during the first pass `sampling_steps` is handed to other extensions, which reckon with it. The
    number of jobs stays, because with more of them the WebUI makes the first Interrupt wait.
    """

    def __init__(self, p: Any, settings: Settings, count: int, steps: int, resamples: bool) -> None:
        self.iterations = settings.updates
        self.steps = steps
        self.resamples = resamples
        self.critic = settings.selector
        # There and back for every update, and before them every candidate once, or the image there and back.
        self.passes = 2 * self.iterations + (2 if settings.start == "image" else settings.candidates)
        self.of_an_image = self.passes * self.steps + (p.steps if settings.render == "yours" and resamples else 0)
        self.first_pass = 0 if settings.as_uploaded else p.steps
        self.done = [0] * count
        shared.state.sampling_steps = self.first_pass + count * self.of_an_image
        shared.state.sampling_step = self.first_pass

    def advance(self, index: int, steps: int) -> None:
        """To so many steps of an image; never back, also where its run begins again."""
        self.done[index] = max(self.done[index], min(steps, self.of_an_image))
        shared.state.sampling_step = max(shared.state.sampling_step, self.first_pass + sum(self.done))

    def end(self, index: int) -> None:
        """An image's run is over."""
        self.advance(index, self.of_an_image)


class ImageProgress(Progress):
    """What is told of one image of a batch, with the callbacks of its run. index: in the order of the runs. label: ""
    or which image it is; before: its score as it was.
    """

    def __init__(self, batch: BatchProgress, index: int, label: str, before: float) -> None:
        self.batch, self.index, self.label, self.before = batch, index, label, before
        self.passes = 0
        tell(f"SGOOL {label}0/{batch.iterations}, your image {before:.3f} ({batch.critic})")

    def step(self, done: int, total: int) -> None:
        """After every step of the reversible sampler, `done` of `total` in this pass. Raises Stop when asked to."""
        interrupts.check()
        self.batch.advance(self.index, int((self.passes + done / total) * self.batch.steps))
        if done == total:
            self.passes += 1

    def image(self, result: Result, newest: Snapshot) -> None:
        """After every image: the score of the WebUI's own, of iteration 0, and of the best one since."""
        scores = f"your image {self.before:.3f}"
        if self.batch.resamples:
            scores += f", sampled again {result.scores[0]:.3f}"
        if newest.iteration:
            scores += f", best {max(self.before, result.best.score):.3f}"
        tell(f"SGOOL {self.label}{newest.iteration}/{self.batch.iterations}, {scores} ({self.batch.critic})")
        opts = shared.opts
        if getattr(opts, "live_previews_enable", True) and opts.show_progress_every_n_steps != -1:
            shared.state.assign_current_image(Image.fromarray(pictures.to_uint8(newest.image)))
        interrupts.check()

    def render(self, step: int) -> None:
        """So many steps of the user's own sampler are done, which samples the noise that was found."""
        tell(f"SGOOL {self.label}rendering with your sampler")
        self.batch.advance(self.index, self.batch.passes * self.batch.steps + step)


class ZoomBar(ZoomProgress, Progress):
    """What is told of an image's zoom, with the callbacks of the zoom and of the updates inside a place.

    label: "" or which image it is. As a context: the WebUI's bar is afterwards as it was. Meanwhile it counts the
    batch's first pass and all its places as one job, which falls once, since the first pass is over.
    """

    _NAMES = ("job", "textinfo", "job_no", "sampling_step", "sampling_steps", "current_image_sampling_step")

    def __init__(self, p: Any, settings: Settings, label: str) -> None:
        self.label = label
        self.settings = settings
        passes = 2 * settings.zoom_iterations + 2 if settings.zoom_iterations else 0
        self.of_painting = max(1, round(settings.zoom_strength * p.steps))
        self.of_a_place = self.of_painting + passes * settings.steps
        self.places = settings.zoom_places
        self.first_pass = 0 if settings.as_uploaded else p.steps
        self.index, self.batch_size = p.batch_index, p.batch_size

    def __enter__(self) -> ZoomBar:
        state = shared.state
        self._kept = attributes(state, {name: getattr(state, name) for name in self._NAMES})
        self._kept.__enter__()
        state.job_no = max(0, state.job_no - 1)
        self._begin(0, self.places)
        tell(f"SGOOL {self.label}zoom")
        return self

    def __exit__(self, *error: Any) -> None:
        self._kept.__exit__(*error)

    def begin(self, number: int, count: int, place: Place) -> None:
        """A place is painted, `number` of `count` from 0. Raises Stop when asked to."""
        interrupts.check()
        self._begin(number, count)
        self.text = f"SGOOL {self.label}zoom {number + 1}/{count}: {brief(place.name, 60)}"
        tell(self.text)

    def count(self, step: int) -> None:
        """So many steps of painting the place again are done."""
        self._advance(min(step, self.of_painting))

    def step(self, done: int, total: int) -> None:
        """After every step of an update's sampler, `done` of `total` in this pass. Raises Stop when asked to."""
        interrupts.check()
        self._advance(self.of_painting + int((self.passes + done / total) * self.settings.steps))
        if done == total:
            self.passes += 1

    def image(self, result: Result, newest: Snapshot) -> None:
        """After every image of a place: the score of the place as it was painted, and of the best one since."""
        best = f", best {result.best.score:.3f}" if newest.iteration else ""
        painted = f"painted {result.scores[0]:.3f}{best}"
        tell(
            f"{self.text}, update {newest.iteration}/{self.settings.zoom_iterations}, {painted} "
            f"({self.settings.selector})"
        )
        interrupts.check()

    def end(self, repaint: Repaint, image: Tensor) -> None:
        """A place is done; the preview shows the whole image as it is now."""
        opts = shared.opts
        if getattr(opts, "live_previews_enable", True) and opts.show_progress_every_n_steps != -1:
            shared.state.assign_current_image(Image.fromarray(pictures.to_uint8(image)))

    def _begin(self, number: int, count: int) -> None:
        """The place `number` of `count` begins. Where fewer are found than were asked for, the bar is shorter."""
        self.passes = 0
        of_an_image = count * self.of_a_place
        self.begun = self.first_pass + self.index * of_an_image + number * self.of_a_place
        shared.state.sampling_steps = self.first_pass + self.batch_size * of_an_image
        shared.state.sampling_step = self.begun

    def _advance(self, steps: int) -> None:
        """To so many steps of this place; never back."""
        reached = self.begun + min(steps, self.of_a_place)
        shared.state.sampling_step = max(shared.state.sampling_step, reached)


@contextmanager
def downloading() -> Iterator[Report]:
    """Shows a download on the WebUI's bar, which is as it was afterwards. Interrupt and Skip stop the download."""
    state = shared.state
    names = ("job", "textinfo", "job_count", "job_no", "sampling_step", "sampling_steps")
    with attributes(state, {name: getattr(state, name) for name in names}):

        def report(transfer: Transfer) -> None:
            tell(f"SGOOL downloads {transfer}")
            if transfer.total:
                # The WebUI draws no bar without a job.
                state.job_count, state.job_no = 1, 0
                state.sampling_step, state.sampling_steps = transfer.done, transfer.total
            interrupts.check()

        yield report


@contextmanager
def telling(text: str) -> Iterator[None]:
    """A text on the page's progress bar, which is as it was afterwards."""
    with attributes(shared.state, {name: getattr(shared.state, name) for name in ("job", "textinfo")}):
        tell(text)
        yield


def tell(text: str) -> None:
    """On the progress bar of the page."""
    shared.state.job = shared.state.textinfo = text
