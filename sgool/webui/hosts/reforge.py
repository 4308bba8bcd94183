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
    full_precision = "--all-in-fp32"
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

    def _predictor(self, model: Any) -> Any:
        """That of an extension comes into the network only when the network is loaded."""
        return model.forge_objects.unet.get_model_object("model_sampling")

    def _schedules(self, model: Any) -> tuple[Any, ...]:
        return (*super()._schedules(model), model)  # its DDIM has the model's own

    def _to_vae(self, model: Any, latent: Tensor) -> Tensor:
        z: Tensor = model.forge_objects.unet.model.latent_format.process_out(latent)
        return z

    def _streams(self) -> str:
        return "--async-offload" if getattr(self._args(), "async_offload", False) else ""

    def _eighths(self) -> str:
        fast = getattr(self._args(), "fast", None) or ()
        return "--fast fp8_matrix_mult" if any(each.value == "fp8_matrix_mult" for each in fast) else ""

    def _args(self) -> Any:
        return importlib.import_module("ldm_patched.modules.args_parser").args
