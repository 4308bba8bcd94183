"""reForge: Forge's first form, on AUTOMATIC1111's own classes of models."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from modules import scripts
from torch import Tensor, nn

from sgool.checkpointing import blocks
from sgool.webui.hosts.forge import Forge


class ReForge(Forge):
    name = "reForge"
    memory_module = "ldm_patched.modules.model_management"
    sampling_module = "modules_forge.forge_sampler"
    batching = ("ldm_patched.modules.samplers", "model_management")
    lora = ()  # it merges in normal mode

    def blocks(self, model: Any) -> Iterator[nn.Module]:
        """The UNet calls the layers of a sequence itself, and not the sequence."""
        for block in blocks(self.unet(model)):
            yield from block.children() if isinstance(block, nn.Sequential) else (block,)

    def no_scripts(self) -> Any:
        return scripts.ScriptRunner()  # it asks for one of its own among them

    def _schedules(self, model: Any) -> tuple[Any, ...]:
        return (*super()._schedules(model), model)  # its DDIM has the model's own

    def _to_vae(self, model: Any, latent: Tensor) -> Tensor:
        z: Tensor = model.forge_objects.unet.model.latent_format.process_out(latent)
        return z

    def _streams(self) -> bool:
        args = importlib.import_module("ldm_patched.modules.args_parser").args
        return bool(getattr(args, "cuda_stream", False))
