"""SGOOL inside a place: its latent is improved at the model's resolution, after it has been painted again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from modules import devices
from torch import Tensor

from sgool.checkpointing import MEMORY, Memory
from sgool.generate import Critics, Request, generate
from sgool.region import Region
from sgool.result import Progress
from sgool.settings import Settings
from sgool.webui import unsupported
from sgool.webui.backend import WebuiBackend
from sgool.webui.isolation import isolated, sparing
from sgool.webui.memory import sparingly
from sgool.zoom import Place


class Refiner:
    """Improves painted places as often as `zoom_iterations` says. say: hears what the user should know.

    unsupported: why it cannot be done here; then places stay as they were painted.
    """

    def __init__(self, critics: Critics, settings: Settings, progress: Progress, say: Callable[[str], None]) -> None:
        own = {"start": "image", "candidates": 1, "method": "sgool", "iterations": settings.zoom_iterations}
        self.critics = critics
        self.settings = settings.changed(**own)
        self.progress = progress
        self.say = say
        self.unsupported = ""
        self.proven: Memory | None = None  # with which the gradient is known to be right

    def improve(self, inner: Any, painted: Tensor, place: Place) -> Tensor:
        """The place's latent [1, 4, h, w], painted by the processing object `inner`, improved where that succeeds.

        Raises what made it fail.
        """
        self.unsupported = self.unsupported or unsupported.reason(inner) or ""
        if self.unsupported:
            return painted

        def attempt(settings: Settings) -> Tensor:
            memory = MEMORY[settings.memory]
            with torch.enable_grad(), devices.without_autocast(), sparing(inner, memory):
                backend = WebuiBackend(inner, 0, painted, None, memory)
                if self.proven != memory:
                    backend.prove(settings.guidance_scale)
                    self.proven = memory
                request = Request(place.prompt, seed=int(inner.seeds[0]), init_latent=backend.original)
                left, top, width, height = inner.paste_to
                critics = self.critics.inside(Region(top, left, height, width, 1.0))
                result = generate(backend, critics, request, settings, self.progress)
                if result.error is not None:
                    raise result.error
                if result.best_update <= 0:  # as it was painted, carried to noise and back
                    return painted
                return backend.blend(result.best.latent).detach().to(painted)

        with isolated(inner):
            return sparingly(attempt, self.settings.changed(guidance_scale=float(inner.cfg_scale)), self.say)
