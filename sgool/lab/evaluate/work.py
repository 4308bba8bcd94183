"""What makes and scores images: the models, loaded once. One of it works in each process."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from sgool import pictures, tiny
from sgool.backends.diffusers import DiffusersBackend, load_backend
from sgool.errors import SgoolError, brief, out_of_memory
from sgool.generate import SMALLEST, Critics, Request, generate, load_critics
from sgool.guidance.critic import Critic
from sgool.guidance.half import is_half
from sgool.job import machine
from sgool.lab.evaluate.metrics import Metric, load_metric
from sgool.lab.evaluate.plan import Trial
from sgool.lab.evaluate.store import Record
from sgool.needs import Needs, fetch
from sgool.result import Ending, Progress, Result, Snapshot, Stop

MEMORY, NUMBERS, DEATH, OTHER = "out of memory", "not a number", "worker lost", "other"
"""The kinds of failures."""

TOGETHER = 8
"""Candidates that are made to see how long one takes."""


@dataclass(frozen=True)
class Setup:
    """What a worker loads. device None: CUDA where there is one. size: see `Plan`."""

    model: str
    size: int | None
    needs: Needs
    memory: str
    dtype: str
    models_dir: Path
    device: str | None = None


class Worker:
    """Makes images and scores them. interrupted: asked at every step; where it is true, Stop is raised."""

    def __init__(self, setup: Setup, interrupted: Callable[[], bool] = bool) -> None:
        self.setup = setup
        self.interrupted = interrupted
        self.device, self.dtype = machine(setup.device, setup.dtype)
        if setup.model in tiny.NAMES:
            torch.set_num_threads(1)  # its layers are so small that a second thread only waits for the first
        self._models: tuple[DiffusersBackend, Critics] | None = None
        self._metric: tuple[Metric, Critic] | None = None

    def ready(self) -> bool:
        """Whether it is there."""
        return True

    def make(self, trial: Trial) -> tuple[bytes, Record]:
        """An image as PNG, and what came of it; b"" where it failed."""
        backend, critics = self._loaded()
        watch = Watch(self.interrupted)
        request = Request(trial.prompt.text, seed=trial.seed)
        try:
            result = generate(backend, critics, request, trial.settings, watch)
        except (SgoolError, RuntimeError, MemoryError) as error:
            return b"", failure(error)
        if result.ending is Ending.INTERRUPTED:
            raise Stop
        if result.error is not None:
            return b"", failure(result.error)
        return pictures.png(pictures.to_uint8(result.best.image)), watch.record(result)

    def images_in_the_time(self, plain: Trial, improved: Trial) -> tuple[int, float, float]:
        """How many plain images can be made, and the best of them chosen, while one is improved: (number, seconds of
        the improved one, seconds of a plain one).

        Raises SgoolError where one of them fails.
        """
        backend, critics = self._loaded()
        request = Request(plain.prompt.text, seed=plain.seed)
        several = plain.settings.changed(candidates=TOGETHER)
        run = partial(generate, backend, critics, request, progress=Watch(self.interrupted))
        run(plain.settings)  # what is slow the first time is not counted
        seconds = []
        for settings in (improved.settings, several):
            begun = time.monotonic()
            result = run(settings)
            if result.ending is Ending.INTERRUPTED:
                raise Stop
            if result.error is not None:
                raise result.error
            seconds.append(time.monotonic() - begun)
        each = seconds[1] / TOGETHER
        return max(1, round(seconds[0] / each)), seconds[0], each

    @torch.no_grad()
    def measure(self, metric: Metric, images: Sequence[tuple[bytes, str]]) -> list[float]:
        """The scores of images, given as PNG, each for its text."""
        if self.interrupted():
            raise Stop
        critic = self._critic(metric)
        return [metric.scale * float(critic.score(as_tensor(image).to(self.device), text)) for image, text in images]

    def _loaded(self) -> tuple[DiffusersBackend, Critics]:
        if self._models is None:
            setup, half = self.setup, is_half(self.dtype)
            print("Loading the models ...", file=sys.stderr)
            fetch(setup.needs, setup.models_dir)
            backend = load_backend(setup.model, device=self.device, dtype=self.dtype, memory=setup.memory)
            if setup.size is not None:
                if setup.size % backend.factor or setup.size // backend.factor < SMALLEST:
                    raise SgoolError(
                        f"--size must be a multiple of {backend.factor}, at least {SMALLEST * backend.factor}, for "
                        f"this model, not {setup.size}."
                    )
                backend.latent_size = setup.size // backend.factor, setup.size // backend.factor
            self._models = backend, load_critics(setup.needs, setup.models_dir, self.device, half)
        return self._models

    def _critic(self, metric: Metric) -> Critic:
        """The metric's network; of these, and of the models that make images, one at a time is in memory."""
        if self._metric is None or self._metric[0] != metric:
            self._models = self._metric = None
            if self.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
            self._metric = metric, load_metric(metric, self.setup.models_dir, self.device, is_half(self.dtype))
        return self._metric[1]


class Watch(Progress):
    """Remembers when each image of a run was there."""

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        self.interrupted = interrupted
        self.begun = time.monotonic()
        self.seconds: list[float] = []

    def step(self, done: int, total: int) -> None:
        if self.interrupted():
            raise Stop

    def image(self, result: Result, newest: Snapshot) -> None:
        self.seconds.append(time.monotonic() - self.begun)

    def record(self, result: Result) -> Record:
        """What is kept of a run. The curve has a value for each image of it; the scores are the selector's."""
        return {
            "seconds": round(result.seconds, 4),
            "evaluations": result.forward_equivalents,
            "curve": {
                "seconds": [round(each, 4) for each in self.seconds[-len(result.losses) :]],  # of the last attempt
                "losses": result.losses,
                "scores": result.scores,
            },
        }


def failure(error: BaseException) -> Record:
    """The record of what failed: of which kind, and the sentence."""
    if out_of_memory(error):
        kind = MEMORY
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    else:
        kind = NUMBERS if "NaN or infinite" in str(error) else OTHER
    return {"failure": kind, "error": brief(error)}


def as_tensor(image: bytes) -> Tensor:
    """A PNG as an image [1, 3, H, W] in [0, 1]."""
    picture = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None  # the store has checked the file
    return pictures.to_tensor(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
