"""Step 4: train one of the three CLIPs. ``python -m sgool.lab.training.clip guide --assets DIR --work WORK``

Each CLIP is trained from scratch, with its own seed and architecture, by the symmetric contrastive loss of CLIP (arXiv
2103.00020) on scenes and their captions. A batch holds scenes and neighbors that differ in one thing, so the gist is
not enough to tell them apart. Equal captions count as correct for each other. One group in three has passed through the
autoencoder, and all are blurred, noised, shifted and recolored a little. The guide also learns crops of single
subjects, like salient crops, with a phrase of the caption.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from sgool.lab.training.views import GROUP, Source, around_subject, whole
from sgool.tiny import CLIPS

TEXT = {"context_length": 32, "width": 64, "heads": 4, "layers": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "guide": {"seed": 1, "crops": 0.5, "vision": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 12}},
    "selector": {
        "seed": 2,
        "crops": 0.0,
        "vision": {"image_size": 64, "layers": 4, "width": 96, "head_width": 24, "patch_size": 8},
    },
    "judge": {"seed": 3, "crops": 0.0, "vision": {"image_size": 128, "layers": [1, 2, 2, 1], "width": 10}},
}
"""The guide is a ResNet, the selector a transformer, the judge a deeper ResNet. The guide sees a picture at half its
resolution, just as ViT-B/32 sees a picture of 512 pixels at 224. The judge sees the full resolution. crops: the share
of pictures that are cropped to one subject."""

MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)


def augment(x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Random variations: float32 [N, 3, S, S] in [0, 1] -> float32 [N, 3, S, S]. A generator is one of the CPU's."""

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator).to(x.device, non_blocking=True)

    n, size = len(x), x.shape[-1]
    pad = size // 32
    x = F.pad(x, (pad, pad, pad, pad), mode="replicate")
    top, left = (int(v) for v in torch.randint(0, 2 * pad + 1, (2,), generator=generator))
    x = x[..., top : top + size, left : left + size]
    if torch.rand((), generator=generator) < 0.5:
        scale = 0.6 + 0.35 * torch.rand((), generator=generator).item()
        x = F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)
        x = F.interpolate(x, size=(size, size), mode="bilinear")
    x = (x - 0.5) * uniform(0.85, 1.15, n, 1, 1, 1) + 0.5 + uniform(-0.06, 0.06, n, 3, 1, 1)
    return x + uniform(0, 0.06, n, 1, 1, 1) * torch.randn(x.shape, generator=generator, device=x.device)


def batch(
    source: Source, count: int, size: int, crops: float, rng: np.random.Generator
) -> tuple[torch.Tensor, list[str]]:
    """float32 [count, 3, size, size] in [0, 1], and the captions."""
    pictures = [picture for _ in range(count // GROUP) for picture in source.group()]
    shown = [(around_subject if rng.random() < crops else whole)(picture, size, rng) for picture in pictures]
    images, texts = zip(*shown, strict=True)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, list(texts)


def equal_texts(texts: list[str]) -> torch.Tensor:
    """Bool [N, N]: which texts are the same."""
    _, number = np.unique(texts, return_inverse=True)
    return torch.from_numpy(number[:, None] == number[None])


def contrastive(logits: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss. All texts equal to an image's own text count as correct for the image."""
    equal = equal.float()
    target = equal / equal.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def write(folder: Path, model: torch.nn.Module, model_cfg: dict[str, Any]) -> None:
    """Write a CLIP in open_clip's format, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v for k, v in weights.items() if "attn_mask" not in k}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ARCHITECTURES)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--resume", action="store_true", help="continue from the embedded weights")
    args = parser.parse_args()
    seed, vision = ARCHITECTURES[args.name]["seed"], ARCHITECTURES[args.name]["vision"]
    seed += 100 * args.resume  # not the same pictures as before
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    source = Source(args.assets, args.work, rng)
    tokenizer = SimpleTokenizer(bpe_path=str(CLIPS[args.name].parent / "bpe.txt.gz"), context_length=32)
    model_cfg = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT | {"vocab_size": len(tokenizer.encoder)}}
    model = open_clip.CLIP(**model_cfg).train()
    if args.resume:
        stored = load_file(CLIPS[args.name] / "open_clip_model.safetensors")
        model.load_state_dict({key: value.float() for key, value in stored.items()})
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    optimizer = torch.optim.AdamW(model.parameters(), args.rate, betas=(0.9, 0.98), weight_decay=0.05)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * i / args.steps) + 1e-3)
    )
    log, begun = [], time.time()
    for step in range(args.steps):
        x, texts = batch(source, args.batch, vision["image_size"], ARCHITECTURES[args.name]["crops"], rng)
        x = (augment(x, generator) - mean) / std
        a = F.normalize(model.encode_image(x), dim=-1)
        b = F.normalize(model.encode_text(tokenizer(texts)), dim=-1)
        logits = model.logit_scale.exp() * a @ b.T
        loss = contrastive(logits, equal_texts(texts))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        shape.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 49:
            right = np.mean([texts[best] == text for best, text in zip(logits.argmax(1).tolist(), texts, strict=True)])
            log.append({"step": step + 1, "loss": loss.item(), "accuracy": float(right)})
            print(json.dumps(log[-1] | {"seconds": round(time.time() - begun)}), flush=True)
    write(CLIPS[args.name], model, model_cfg)
    (args.work / f"clip-{args.name}-log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    main()
