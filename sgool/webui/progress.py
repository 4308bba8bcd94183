"""What the user sees while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import shared
from PIL import Image

from sgool import pictures
from sgool.download import Report, Transfer
from sgool.result import Progress, Result, Snapshot
from sgool.settings import Settings
from sgool.webui import interrupts
from sgool.webui.isolation import attributes


class BatchProgress(Progress):
    """What is told of a batch's run, with the callbacks of its images. count: how many they are.

    The bar counts the first pass (`p.steps`) and the run's own sampler steps as one job. It does so only from here on,
    and falls once: during the first pass `sampling_steps` is handed to other extensions, which reckon with it. The
    number of jobs stays, because with more of them the WebUI makes the first Interrupt wait.
    """

    def __init__(self, p: Any, settings: Settings, count: int) -> None:
        self.iterations = 0 if settings.method == "none" else settings.iterations
        self.steps = settings.steps
        self.resamples = settings.start == "seed"
        # There and back for every update, and before them every candidate once, or the image there and back.
        passes = 2 * self.iterations + (2 if settings.start == "image" else settings.candidates)
        self.first_pass, self.of_an_image = p.steps, passes * self.steps
        shared.state.sampling_steps = self.first_pass + count * self.of_an_image
        shared.state.sampling_step = self.begun = self.first_pass

    def begin(self, index: int, label: str, before: float) -> None:
        """An image's run begins. label: "" or which image it is; before: the image's score as it was."""
        self.begun = self.first_pass + index * self.of_an_image
        self.done = 0
        self.label, self.before = label, before
        self._advance(0)
        tell(f"SGOOL {label}0/{self.iterations}, your image {before:.3f}")

    def step(self, done: int, total: int) -> None:
        """After every step of the reversible sampler, `done` of `total` in this pass. Raises Stop when asked to."""
        interrupts.check()
        self._advance(int((self.done + done / total) * self.steps))
        if done == total:
            self.done += 1

    def image(self, result: Result, newest: Snapshot) -> None:
        """After every image: the score of the WebUI's own, of iteration 0, and of the best one since."""
        scores = f"your image {self.before:.3f}"
        if self.resamples:
            scores += f", sampled again {result.scores[0]:.3f}"
        if newest.iteration:
            scores += f", best {max(self.before, result.best.score):.3f}"
        tell(f"SGOOL {self.label}{newest.iteration}/{self.iterations}, {scores}")
        opts = shared.opts
        if opts.live_previews_enable and opts.show_progress_every_n_steps != -1:
            shared.state.assign_current_image(Image.fromarray(pictures.to_uint8(newest.image)))
        interrupts.check()

    def _advance(self, steps: int) -> None:
        """To so many steps of this image; never back, also where its run begins again."""
        reached = self.begun + min(steps, self.of_an_image)
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


def tell(text: str) -> None:
    """On the progress bar of the page."""
    shared.state.job = shared.state.textinfo = text
