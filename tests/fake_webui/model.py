"""The embedded model with the attributes by which the WebUI's checkpoints are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sgool.backends.diffusers import DiffusersBackend


class FirstStage(nn.Module):
    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.decoder = vae.decoder

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z).sample


class Checkpoint(nn.Module):
    cond_stage_key = "txt"
    is_sd3 = False

    def __init__(self, backend: DiffusersBackend) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = backend.unet
        self.first_stage_model = FirstStage(backend.vae)
        self.scale_factor = backend.vae.config.scaling_factor
        self.alphas_cumprod = backend.alphas_cumprod.float()
        self.backend = (backend,)  # in a tuple, or its parameters were this module's, too

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        return self.backend[0]._encode_text([text])[0]
