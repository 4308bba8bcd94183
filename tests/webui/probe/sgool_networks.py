"""Where the running program has its networks, and what a run could leave in them."""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any

import torch
from modules import shared


def unet() -> torch.nn.Module:
    objects = getattr(shared.sd_model, "forge_objects", None)
    return objects.unet.model.diffusion_model if objects else shared.sd_model.model.diffusion_model


def networks() -> list[torch.nn.Module]:
    """All parts of the loaded model. Forge and its kin keep them apart."""
    objects = getattr(shared.sd_model, "forge_objects", None)
    if not objects:
        return [shared.sd_model]
    return [objects.unet.model, objects.vae.first_stage_model, objects.clip.cond_stage_model]


def left(parts: list[torch.nn.Module]) -> dict[str, Any]:
    """What must be the same before and after a run."""
    modules = [module for part in parts for module in part.modules()]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    # reForge makes log_sigmas anew in each generation after the first with Zero Terminal SNR.
    buffers = [buffer for part in parts for name, buffer in part.named_buffers() if not name.endswith("log_sigmas")]
    tensors = [*parameters, *buffers]
    return {
        "trainable": sum(parameter.requires_grad for parameter in parameters),
        "gradients": sum(parameter.grad is not None for parameter in parameters),
        "training": sum(module.training for module in modules),
        # A method patched on an object is in the object's __dict__.
        "patched": sorted(
            f"{type(module).__name__}.{name}"
            for module in modules
            for name, value in vars(module).items()
            if inspect.isroutine(value)
        ),
        "hooks": sorted(
            f"{type(module).__name__}: {hook.__module__}"
            for module in modules
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            if "sgool_probe" not in str(hook.__module__)
        ),
        "inference": sum(tensor.is_inference() for tensor in tensors),
        # The same objects, in the same places.
        "tensors": hashlib.sha256(str([(id(each), each.data_ptr()) for each in tensors]).encode()).hexdigest(),
        "loaded": _loaded(),
        "samplers": sorted(
            f"{name}: {type(module.torch).__name__}"
            for name, module in sys.modules.items()
            if name.endswith("k_diffusion.sampling") and hasattr(module, "torch")
        ),
    }


def _loaded() -> list[str]:
    """What the memory management of Forge and its kin has on the device."""
    for name in ("backend.memory_management", "ldm_patched.modules.model_management"):
        if name in sys.modules:
            loaded = [each.model for each in sys.modules[name].current_loaded_models]
            return sorted(type(each.model).__name__ for each in loaded if each is not None)
    return []
