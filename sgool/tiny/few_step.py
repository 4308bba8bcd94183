"""The few-step sibling of the embedded UNet: the same network, and a low-rank difference that makes 4 steps enough.

Latent consistency distillation (arXiv 2310.04378) with the guidance folded in: `sgool.lab.training.few_step`. The file
holds up and down matrices [out, rank] and [rank, in] of each weight, as a LoRA does, and small weights whole.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

FILE = Path(__file__).parent / "few-step.safetensors"


@torch.no_grad()
def add(unet: nn.Module, file: Path = FILE) -> None:
    """Turn the embedded UNet into its sibling."""
    from safetensors.torch import load_file

    for name, weight in merged(dict(unet.state_dict()), load_file(file)).items():
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
