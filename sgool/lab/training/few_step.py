"""The few-step sibling: latent consistency distillation of the UNet. ``python -m sgool.lab.training.few_step --help``

The student learns to say at once where the teacher's guided trajectory ends (latent consistency models, arXiv
2310.04378). The guidance is folded in, so the student needs no negative prompt: one evaluation a step. Resumable.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sgool.backends.diffusers import load_backend
from sgool.lab.world import Painter, random_scene
from sgool.presets import MODELS
from sgool.tiny import few_step

SKIP = 20
"""Timesteps between the two ends of a step: fifty steps of DDIM, from 999 on."""

RANK = 32
"""Of the difference that is shipped."""

DATA, TIMESTEP_SCALE = 0.5, 10.0
"""Of the boundary condition: what LCM was published with."""


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of the consistency function at timesteps [B], each [B, 1, 1, 1]."""
    scaled = TIMESTEP_SCALE * t.double()
    skip = DATA**2 / (scaled**2 + DATA**2)
    out = scaled / (scaled**2 + DATA**2).sqrt()
    return skip.float()[:, None, None, None], out.float()[:, None, None, None]


def consistency(unet: nn.Module, x: Tensor, t: Tensor, text: Tensor, alphabar: Tensor) -> Tensor:
    """Where the trajectory through x at t ends, as the network sees it."""
    a = alphabar[t][:, None, None, None]
    clean = (x - (1 - a).sqrt() * unet(x, t, encoder_hidden_states=text).sample) / a.sqrt()
    skip, out = boundary(t)
    return skip * x + out * clean


@torch.no_grad()
def guided_step(unet: nn.Module, x: Tensor, t: Tensor, texts: tuple[Tensor, Tensor], alphabar: Tensor) -> Tensor:
    """One DDIM step of the teacher, SKIP timesteps towards the image; at the end to the first timestep."""
    text, empty = texts
    both = unet(torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=torch.cat([empty, text])).sample
    without, with_text = both.chunk(2)
    eps = without + MODELS["tiny"]["guidance_scale"] * (with_text - without)
    a, to = (alphabar[each][:, None, None, None] for each in (t, (t - SKIP).clamp(min=0)))
    return to.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - to).sqrt() * eps


@torch.no_grad()
def paint(assets: Path, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Latents [count, 4, 16, 16] of composed scenes, and their captions."""
    backend, rng, painter = load_backend("tiny"), np.random.default_rng(seed), Painter(assets)
    latents, captions = [], []
    for _ in range(count):
        scene = random_scene(rng)
        picture = torch.from_numpy(painter.paint(scene, rng)).permute(2, 0, 1)[None].float() / 255
        latents.append(backend.encode(picture).float())
        captions.append(scene.caption)
    return torch.cat(latents), captions


def difference(base: dict[str, Tensor], tuned: dict[str, Tensor], rank: int = RANK) -> dict[str, Tensor]:
    """What the file holds, float16: the difference of two sets of weights, by singular values."""
    found: dict[str, Tensor] = {}
    for name, weight in tuned.items():
        change = weight.float() - base[name].float()
        if change.ndim < 2 or min(change.shape[0], change[0].numel()) <= 2 * rank:
            found[name] = change.half()
            continue
        u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        root = s[:rank].sqrt()
        found[f"{name}.up"] = (u[:, :rank] * root).half().contiguous()
        found[f"{name}.down"] = (root[:, None] * v[:rank]).half().contiguous()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, help="folder of the emoji pictures")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--assemble", action="store_true", help="only write what was trained into sgool/tiny")
    args = parser.parse_args()
    if args.assemble:
        tuned = torch.load(args.work / "few-step.pt", weights_only=True)["target"]
        save_file(difference(load_backend("tiny").unet.state_dict(), tuned), few_step.FILE)
        return
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    cache, saved = args.work / "few-step-latents.pt", args.work / "few-step.pt"
    if not cache.exists():
        torch.save(paint(args.assets, args.pictures, args.seed), cache)
    latents, captions = torch.load(cache, weights_only=True)
    backend = load_backend("tiny")
    teacher, alphabar = backend.unet, backend.alphas_cumprod.float()
    student = copy.deepcopy(teacher).requires_grad_(True)
    target = copy.deepcopy(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), args.rate, betas=(0.9, 0.99), weight_decay=0.0)
    begin = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        begin = state["step"]
        student.load_state_dict(state["student"])
        target.load_state_dict(state["target"])
        optimizer.load_state_dict(state["optimizer"])
    empty = backend._encode_text([""])
    log, begun, recent = [], time.time(), 0.0
    for step in range(begin, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 30, max(0.05, 1.2 * (1 - step / args.steps)))
        rows = torch.from_numpy(rng.integers(0, len(latents), args.batch))
        text = backend._encode_text([captions[row] for row in rows])
        # Stratified over the grid, because the few steps at high noise decide what is in the picture.
        number = (50 * (torch.arange(args.batch) + torch.rand(args.batch)) / args.batch).long()
        t = SKIP * number + SKIP - 1
        noise = torch.randn_like(latents[rows])
        a = alphabar[t][:, None, None, None]
        x = a.sqrt() * latents[rows] + (1 - a).sqrt() * noise
        before = guided_step(teacher, x, t, (text, empty.expand_as(text)), alphabar)
        with torch.no_grad():
            wanted = consistency(target, before, (t - SKIP).clamp(min=0), text, alphabar)
        guess = consistency(student, x, t, text, alphabar)
        loss = (((guess - wanted).square() + 1e-6).sqrt() - 1e-3).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(student.parameters()), 1 - min(0.95, (step + 1) / 50))
        recent += loss.item()
        if step % 50 == 49:
            log.append({"step": step + 1, "loss": recent / 50, "seconds": round(time.time() - begun)})
            recent = 0.0
            print(json.dumps(log[-1]), flush=True)
        if step % 100 == 99 or step == args.steps - 1:
            state = {"step": step + 1, "student": student.state_dict(), "target": target.state_dict()}
            torch.save({**state, "optimizer": optimizer.state_dict()}, saved)


if __name__ == "__main__":
    main()
