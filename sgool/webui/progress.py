"""What the user sees while it runs, and what the user's Interrupt and Skip do to it."""

from __future__ import annotations

from typing import Any

from modules import shared
from PIL import Image

from sgool import report
from sgool.optimize import Result, Snapshot, Stop


class Progress:
    """Callbacks of one image's run. label: "" or which image of the batch. before: the image's score as it was.

    The progress bar counts the first pass (`p.steps`) and the run's own sampler steps as one job; the number of jobs
    stays, because with more of them the WebUI makes the first Interrupt wait.
    """

    def __init__(self, p: Any, values: dict[str, Any], label: str, before: float) -> None:
        self.iterations = values["iterations"]
        self.label = label
        self.before = before
        passes = 1 + 2 * self.iterations + (values["start"] == "image")
        self.first_pass = p.steps
        self.steps = values["steps"]
        self.done = 0
        shared.state.sampling_steps = self.first_pass + passes * self.steps
        shared.state.sampling_step = self.first_pass
        shared.state.current_image_sampling_step = self.first_pass
        self._tell(f"SGOOL {label}0/{self.iterations}, score {before:.3f}")

    def step(self, done: int, total: int) -> None:
        """After every step of the reversible sampler, `done` of `total` in this pass. Raises Stop when asked to."""
        check()
        state = shared.state
        state.sampling_step = min(state.sampling_steps, self.first_pass + int((self.done + done / total) * self.steps))
        if done == total:
            self.done += 1

    def image(self, result: Result, newest: Snapshot) -> None:
        """After every image."""
        best = max(self.before, result.best.score)
        self._tell(f"SGOOL {self.label}{newest.iteration}/{self.iterations}, score {self.before:.3f} -> {best:.3f}")
        opts = shared.opts
        if opts.live_previews_enable and opts.show_progress_every_n_steps != -1:
            shared.state.assign_current_image(Image.fromarray(report.to_uint8(newest.image)))
        check()

    def _tell(self, text: str) -> None:
        shared.state.job = shared.state.textinfo = text


def stopped() -> bool:
    """Whether the user has pressed Interrupt or Skip."""
    return shared.state.interrupted or shared.state.skipped


def check() -> None:
    if stopped():
        raise Stop
