"""The UNet with its text encoder, and the few-step sibling of the UNet."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from sgool.lab.larger import networks
from sgool.lab.larger.scenes import CONTEXT, Scenes
from sgool.lab.larger.source import Source
from sgool.lab.larger.trainer import Kind, load_average
from sgool.lab.training.diffusion import SCHEDULE, weight
from sgool.lab.training.few_step import SKIP, consistency, guided_step

DROPPED = 0.1
"""Share of captions left out, for classifier-free guidance."""

TOKENS = 77

SCALED = 256
"""Pictures that say how much latents are scaled."""


class Latents:
    """A pool of encoded pictures, made anew every so many steps: encoding each step's own would take half the time."""

    def __init__(self, source: Source, size: int = 65536, steps: int = 2000) -> None:
        self.source, self.size, self.steps = source, size, steps
        self.vae, self.number = source.vae(), -1
        path = source.work / "scale.json"
        if not path.is_file():
            mean, _, _ = self._encode(SCALED, torch.Generator().manual_seed(0))
            path.write_text(json.dumps(1 / mean.float().std().item()))
        self.scale: float = json.loads(path.read_text())

    def take(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Random latents [count, 4, 32, 32] and the tokens of their captions [count, CONTEXT]."""
        if self.number != step // self.steps:
            self.number = step // self.steps
            self.pool = self._encode(self.size, torch.Generator().manual_seed(1 + self.number))
        rows = torch.randint(self.size, (count,)).to(self.source.device, non_blocking=True)
        mean, std, ids = (each[rows] for each in self.pool)
        return (mean + std * torch.randn(mean.shape, device=mean.device)).float() * self.scale, ids

    @torch.no_grad()
    def _encode(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        found = []
        for first in range(0, count, 128):
            scenes: Scenes = self.source.scenes(min(128, count - first), generator)
            image, _, _ = self.source.paint(scenes, generator)
            with self.source.half():
                posterior = self.vae.encode(2 * image - 1).latent_dist
            found.append((posterior.mean.half(), posterior.std.half(), scenes.ids))
        mean, std, ids = (torch.cat(each) for each in zip(*found, strict=True))
        return mean, std, ids


def padded(ids: Tensor, end: int) -> Tensor:
    """Tokens [N, CONTEXT] as Stable Diffusion's text encoder takes them, [N, 77]: filled up with the end token."""
    filled = torch.full((len(ids), TOKENS), end, device=ids.device)
    filled[:, :CONTEXT] = torch.where(ids == 0, end, ids)
    return filled


class Diffusion(Kind):
    """Predicts noise, as `sgool.lab.training.diffusion` says."""

    rate, batch, decay = 8e-4, 512, 0.9995

    def __init__(self, source: Source, latents: Latents | None = None) -> None:
        self.source, self.latents = source, latents or Latents(source)
        self.end = source.vocabulary - 1
        parts = {"unet": networks.unet(), "text": networks.text_encoder(source.vocabulary)}
        self.networks = nn.ModuleDict(parts)
        self.alphabar = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(source.device)

    def inputs(self, step: int) -> dict[str, Tensor]:
        latent, ids = self.latents.take(step, self.batch)
        dropped = torch.rand(self.batch, 1) < DROPPED
        t = (1000 * (torch.arange(self.batch) + torch.rand(self.batch)) / self.batch).long()
        ids = padded(ids, self.end)
        ids[:, 1:] = torch.where(dropped.to(ids.device, non_blocking=True), self.end, ids[:, 1:])
        noise = torch.randn(latent.shape, device=latent.device)
        return {"latent": latent, "ids": ids, "t": t.to(latent.device, non_blocking=True), "noise": noise}

    def loss(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        t, noise = inputs["t"], inputs["noise"]
        a = self.alphabar[t][:, None, None, None]
        text = self.networks["text"](inputs["ids"])[0]
        x = a.sqrt() * inputs["latent"] + (1 - a).sqrt() * noise
        error = (self.networks["unet"](x, t, text).sample.float() - noise).square()
        return {"loss": (weight(a) * error).mean(), "error": error.mean()}


class FewStep(Kind):
    """Latent consistency distillation, as `sgool.lab.training.few_step` says; the average is the target network."""

    rate, batch, decay = 3e-4, 256, 0.95

    def __init__(self, source: Source, latents: Latents | None = None) -> None:
        self.source, self.latents = source, latents or Latents(source)
        self.end = source.vocabulary - 1
        parts = Diffusion(source, self.latents).networks
        load_average(parts, source.work / "unet")
        parts.to(source.device).eval().requires_grad_(False)
        self.teacher, self.text = parts["unet"], parts["text"]
        self.networks = nn.ModuleDict({"unet": copy.deepcopy(self.teacher).requires_grad_(True)})
        self.alphabar = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(source.device)

    @torch.no_grad()
    def inputs(self, step: int) -> dict[str, Tensor]:
        latent, ids = self.latents.take(step, self.batch)
        ids = torch.cat([padded(ids, self.end), padded(ids[:1], self.end)])
        ids[-1, 1:] = self.end
        with self.source.half():
            text = self.text(ids)[0].float()
        # Stratified over the grid, because the few steps at high noise decide what is in the picture.
        number = (1000 // SKIP * (torch.arange(self.batch) + torch.rand(self.batch)) / self.batch).long()
        t = (SKIP * number + SKIP - 1).to(latent.device, non_blocking=True)
        noise = torch.randn(latent.shape, device=latent.device)
        return {"latent": latent, "text": text[:-1], "empty": text[-1:], "t": t, "noise": noise}

    def loss(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        t, text, abar = inputs["t"], inputs["text"], self.alphabar
        a = abar[t][:, None, None, None]
        x = a.sqrt() * inputs["latent"] + (1 - a).sqrt() * inputs["noise"]
        before = guided_step(self.teacher, x, t, (text, inputs["empty"].expand_as(text)), abar)
        target: Any = self.average["unet"]
        with torch.no_grad():
            wanted = consistency(target, before, (t - SKIP).clamp(min=0), text, abar)
        guess = consistency(self.networks["unet"], x, t, text, abar)
        return {"loss": (((guess - wanted).float().square() + 1e-6).sqrt() - 1e-3).mean()}
