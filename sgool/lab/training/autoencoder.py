"""Step 2: train the autoencoder. ``python -m sgool.lab.training.autoencoder --work WORK``

Most steps use 64x64 crops. The last ones use whole pictures, because GroupNorm and the attention see a whole picture.
The loss is L1 and L2 on the picture, L1 on its horizontal and vertical differences (which keeps edges sharp without a
perceptual network), and a small KL term that keeps the latents smooth (as in latent diffusion, arXiv 2112.10752).

``--decoder-only`` continues with the encoder frozen. A diffusion model trained on its latents then stays valid. Half of
the latents get a little noise, because sampled latents are never perfect.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 128,
}
"""Each normalization group has at least four channels. With Stable Diffusion's 32 groups, the few channels would be
normalized one by one, and the mean color of a plain background would be lost. (With 32 groups L1 stayed at 0.4; this
configuration reaches 0.05.)"""

TRIES = 3

NOISE = 0.2
"""Largest noise on the latents with ``--decoder-only``, in standard deviations of the latents."""


def batch(images: np.ndarray, rng: np.random.Generator, count: int, crop: int) -> torch.Tensor:
    """Random crops, aligned to the latent grid, as float32 [count, 3, crop, crop] in [-1, 1].

    If the crops are smaller than the picture, each is the one with the most contrast of TRIES crops, because that crop
    usually shows a subject.
    """
    out = np.empty((count, crop, crop, 3), np.uint8)
    last = (images.shape[1] - crop) // 8
    for row in range(count):
        tries = rng.integers(0, len(images), TRIES if last else 1)
        places = [(i, *8 * rng.integers(0, last + 1, 2)) for i in tries]
        crops = [images[index, top : top + crop, left : left + crop] for index, top, left in places]
        out[row] = max(crops, key=lambda x: x[::2, ::2].std((0, 1)).sum())
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def differences(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--whole", type=int, default=200, help="number of last steps on whole pictures")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--kl", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the weights saved last")
    parser.add_argument("--decoder-only", action="store_true", help="like --resume, with the encoder frozen")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed + args.decoder_only)
    images = np.load(args.work / "images.npy", mmap_mode="r")
    folder = args.work / "vae"
    resumed = args.resume or args.decoder_only
    vae = AutoencoderKL.from_pretrained(folder) if resumed else AutoencoderKL(**CONFIG)
    if not resumed:
        with torch.no_grad():
            vae.quant_conv.bias[4:] = -4.0  # little noise at first; otherwise the decoder learns to ignore the latent
    vae.to(args.device).train()
    vae.encoder.requires_grad_(not args.decoder_only)
    vae.quant_conv.requires_grad_(not args.decoder_only)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * i / args.steps))
    )
    log, begun = [], time.time()
    for step in range(args.steps):
        whole = step >= args.steps - args.whole
        x = batch(images, rng, max(1, args.batch // 4) if whole else args.batch, 128 if whole else 64).to(args.device)
        posterior = vae.encode(x).latent_dist
        latent = posterior.sample()
        if args.decoder_only:
            latent[::2] += rng.uniform(0, NOISE) * latent.std() * torch.randn_like(latent[::2])
        y = vae.decode(latent).sample
        # Without these weights, small subjects on plain backgrounds would hardly count.
        weight = 1 / (x.std((1, 2, 3), keepdim=True) + 0.05)
        weight = weight / weight.mean()
        reconstruction = (weight * (y - x).abs()).mean()
        edges = sum((weight * (a - b).abs()).mean() for a, b in zip(differences(x), differences(y), strict=True))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        (reconstruction + (weight * (y - x).square()).mean() + edges + args.kl * kl).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        shape.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 0 or step == args.steps - 1:
            row = {"step": step, "l1": reconstruction.item(), "edges": float(edges), "kl": kl.item()}
            log.append(row | {"seconds": round(time.time() - begun)})
            print(json.dumps(log[-1]), flush=True)
        if step % 500 == 499 or step == args.steps - 1:
            vae.save_pretrained(folder)
    name = "decoder" if args.decoder_only else "autoencoder"
    (args.work / f"{name}-log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    main()
