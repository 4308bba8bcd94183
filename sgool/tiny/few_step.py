"""The few-step sibling of the embedded UNet: the same network, and a low-rank difference that makes 4 steps enough.

Latent consistency distillation (arXiv 2310.04378) with the guidance folded in: `sgool.lab.training.few_step`. The file
holds up and down matrices [out, rank] and [rank, in] of each weight, as a LoRA does, and small weights whole.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

FILE = Path(__file__).parent / "few-step.safetensors"

RANK = 32


def difference(base: dict[str, Tensor], tuned: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the file holds, float16: the difference of two sets of weights, by singular values."""
    found: dict[str, Tensor] = {}
    for name, weight in tuned.items():
        change = weight.float() - base[name].float()
        if change.ndim < 2 or min(change.shape[0], change[0].numel()) <= 2 * RANK:
            found[name] = change.half()
            continue
        u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        root = s[:RANK].sqrt()
        found[f"{name}.up"] = (u[:, :RANK] * root).half().contiguous()
        found[f"{name}.down"] = (root[:, None] * v[:RANK]).half().contiguous()
    return found


@torch.no_grad()
def add(unet: nn.Module) -> None:
    """Turn the embedded UNet into its sibling."""
    from safetensors.torch import load_file

    for name, weight in merged(dict(unet.state_dict()), load_file(FILE)).items():
        unet.get_parameter(name).copy_(weight)


def merged(base: dict[str, Tensor], change: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sibling's weights by name, float32."""
    found = {}
    for name, weight in base.items():
        if name in change:
            found[name] = weight.float() + change[name].float()
        else:
            up, down = (change[f"{name}.{part}"].float() for part in ("up", "down"))
            found[name] = weight.float() + (up @ down).reshape(weight.shape)
    return found
