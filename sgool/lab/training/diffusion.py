"""Step 3: train the UNet and the text encoder. ``python -m sgool.lab.training.diffusion --work WORK``

Both learn noise prediction on the autoencoder's latents, with Stable Diffusion's noise schedule. The loss has
min-SNR weights (arXiv 2303.09556, gamma 5), raised at high noise. Timesteps are stratified over the batch. One caption
in ten is dropped for classifier-free guidance. An exponential moving average of the weights is saved.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sgool.tiny import MODEL

TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}

UNET = {
    "sample_size": 16,
    "block_out_channels": (64, 96, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
}
"""As in Stable Diffusion 1.x, "attention_head_dim" is the number of heads."""

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def weight(a: torch.Tensor) -> torch.Tensor:
    """Of the error of the noise prediction at these alphas_cumprod: min(SNR, 5) / SNR, times up to 30 at high noise.

    There the text decides the colors, but the error is so small that the network would ignore the text with an even
    weight.
    """
    return (5 * (1 - a) / a).clamp(max=1) * (1 / a).clamp(max=30)


@torch.no_grad()
def encode(work: Path, count: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each picture's latent, [count, 4, 16, 16] each; cached in ``latents.pt``."""
    path = work / "latents.pt"
    if path.exists():
        mean, std = torch.load(path, weights_only=True)
        return mean, std
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device).eval()
    images = np.load(work / "images.npy", mmap_mode="r")[:count]
    means, stds = [], []
    for first in range(0, len(images), 50):
        x = torch.from_numpy(np.array(images[first : first + 50])).permute(0, 3, 1, 2).to(device)
        posterior = vae.encode(x.float() / 127.5 - 1).latent_dist
        means.append(posterior.mean.cpu())
        stds.append(posterior.std.cpu())
        if first % 5000 == 0:
            print(f"encoded {first}", flush=True)
    mean, std = torch.cat(means), torch.cat(stds)
    torch.save((mean, std), path)
    return mean, std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the averaged weights saved last")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    mean, std = encode(args.work, args.pictures, args.device)
    scale = 1 / mean.std().item()
    captions = json.loads((args.work / "captions.json").read_text())[: len(mean)]
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    tokens = tokenizer([*captions, ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    config = CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **TEXT)
    text = CLIPTextModel(config).to(args.device)
    unet = UNet2DConditionModel(**UNET).to(args.device)
    if args.resume:
        unet = UNet2DConditionModel.from_pretrained(args.work / "unet").to(args.device).train()
        text = CLIPTextModel.from_pretrained(args.work / "text_encoder").to(args.device).train()
    scheduler = DDIMScheduler(**SCHEDULE)
    alphas = scheduler.alphas_cumprod.to(args.device)
    trained = torch.nn.ModuleDict({"unet": unet, "text": text})
    average: Any = copy.deepcopy(trained).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(trained.parameters(), args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * i / args.steps) + 1e-3)
    )

    def save() -> None:
        average["unet"].save_pretrained(args.work / "unet")
        average["text"].save_pretrained(args.work / "text_encoder")
        scheduler.save_pretrained(args.work / "scheduler")
        (args.work / "scale.json").write_text(json.dumps(scale))

    log, begun, recent = [], time.time(), 0.0
    for step in range(args.steps):
        rows = torch.from_numpy(rng.integers(0, len(captions), args.batch))
        latent = ((mean[rows] + std[rows] * torch.randn_like(mean[rows])) * scale).to(args.device)
        dropped = torch.from_numpy(rng.random(args.batch) < 0.1)
        ids = tokens[torch.where(dropped, len(captions), rows)].to(args.device)
        t = (1000 * (torch.arange(args.batch) + torch.rand(args.batch)) / args.batch).long().to(args.device)
        a = alphas[t][:, None, None, None]
        noise = torch.randn_like(latent)
        guess = unet(a.sqrt() * latent + (1 - a).sqrt() * noise, t, text(ids)[0]).sample
        loss = (weight(a) * (guess - noise).square()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        shape.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(trained.parameters()), 1 - decay)
        recent += loss.item()
        if step % 50 == 49:
            log.append({"step": step + 1, "loss": recent / 50, "seconds": round(time.time() - begun)})
            recent = 0.0
            print(json.dumps(log[-1]), flush=True)
        if step % 250 == 249 or step == args.steps - 1:
            save()
            name = "diffusion-resumed" if args.resume else "diffusion"
            (args.work / f"{name}-log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    main()
