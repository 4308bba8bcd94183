"""Forge, and its descendants Forge Neo and ersatzForge.

They run a whole generation in inference mode, keep the networks in `model.forge_objects`, move them between CPU and GPU
themselves, and change tensors in place that the way back needs.
"""

from __future__ import annotations

import importlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from modules import devices, processing
from torch import Tensor, nn

from sgool.samplers import Schedule
from sgool.webui.hosts.automatic import Automatic, Denoiser, frozen
from sgool.webui.hosts.passable import NormalTensors, copying, normal, undecorated
from sgool.webui.inference import normal_mode
from sgool.webui.overlay import Overlay, attributes

GRAPHS = 2 * 2**30
"""Bytes that a run needs besides the networks, for each 512x512 pixels of the images that are improved together: other
models make room for them.
"""

KINDS = ("is_sd1", "is_sd2", "is_sdxl")
"""Of a model: what it is, where SGOOL knows its networks."""

_OF_A_GENERATION = ("forge_objects", "comments", "extra_generation_params")
"""Attributes of the model that a generation sets when it begins."""

_SCHEDULE = ("sigmas", "log_sigmas", "alphas_cumprod")
"""Attributes that hold noise levels."""

_GUIDING = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
"""Options of the UNet by which extensions (perturbed attention, dynamic thresholding) change guidance."""

_MISSING = object()


class LevelDenoiser(Denoiser):
    """Forge's denoiser takes x / a at a noise level and gives the image; timesteps it would round to whole ones."""

    def __init__(self, p: Any, schedule: Schedule | None, alphas_cumprod: Tensor) -> None:
        super().__init__(p, None)
        self.inner.classic_ddim_eps_estimation = False
        self.levels = {t: schedule.nu(i) for i, t in enumerate(schedule.timesteps)} if schedule else {}
        self.all_levels = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()

    def __call__(self, x: Tensor, t: float, step: int, **conditions: Any) -> Tensor:
        level = self.levels[t] if self.levels else self.all_levels[int(t)].item()
        noisy = x * (1 + level**2) ** 0.5
        with self.at(step):
            eps: Tensor = (noisy - self.inner(noisy, x.new_full((len(x),), level), **conditions)) / level
        return eps


class Forge(Automatic):
    name = "Forge"
    proves = True

    full_precision = "--all-in-fp32, in Forge Neo --force-fp32"

    memory_module = "backend.memory_management"
    sampling_module = "backend.sampling.sampling_function"
    batching = ("backend.sampling.sampling_function", "memory_management")
    """The module that decides how many prompts fit into one evaluation, and what it calls its memory management."""

    lora: tuple[str, ...] = ("backend.operations", "backend.patcher.base")
    """Modules in which `merge_lora_to_weight` may merge weights with a LoRA at every evaluation ("online")."""

    def __init__(self) -> None:
        # Of the run at hand:
        self.tensors: NormalTensors | None = None
        self.images = 1
        self.schedule: list[tuple[weakref.ref[Any], dict[str, Any]]] = []

    def refuses(self, p: Any) -> str | None:
        model = p.sd_model
        if not any(getattr(model, kind, False) for kind in KINDS):
            return "SGOOL works with Stable Diffusion 1.x, 2.x and SDXL; it does not know this kind of model."
        unet = model.forge_objects.unet
        if quantised(unet.model) or quantised(model.forge_objects.vae.first_stage_model):
            return "SGOOL needs gradients, which quantised weights (NF4, GGUF, int8) do not pass on; load others."
        if flows(self._predictor(model)):
            return "SGOOL does not work with flow matching; use a model that predicts noise or v (SD 1.x, 2.x or SDXL)."
        if flag := self._streams():
            return f"SGOOL does not work with {flag}: a weight could be gone before its gradient is made."
        if (flag := self._eighths()) and any(parameter.itemsize == 1 for parameter in unet.model.parameters()):
            return f"SGOOL does not work with {flag}: its arithmetic makes no gradient."
        if unet.controlnet_linked_list is not None:
            return "SGOOL does not work with ControlNet in this WebUI, because it makes no gradient."
        return None

    def edits(self, model: Any) -> bool:
        return getattr(self.unet(model), "in_channels", 4) == 8

    def unet(self, model: Any) -> nn.Module:
        network: nn.Module = model.forge_objects.unet.model.diffusion_model
        return network

    def decoder(self, model: Any) -> nn.Module:
        network: nn.Module = model.forge_objects.vae.first_stage_model.decoder
        return network

    def alphas_cumprod(self, model: Any) -> Tensor:
        """Of the noise levels that the model itself is asked for: 1 / (sigma^2 + 1)."""
        with normal_mode():
            return 1 / (self._schedules(model)[0].sigmas.detach().double().cpu() ** 2 + 1)

    def denoiser(self, p: Any, schedule: Schedule | None) -> Denoiser:
        return LevelDenoiser(p, schedule, self.alphas_cumprod(p.sd_model))

    def decode(self, model: Any, latent: Tensor) -> Tensor:
        vae = model.forge_objects.vae
        z = self._to_vae(model, latent).to(vae.device, vae.vae_dtype)
        image: Tensor = vae.first_stage_model.decode(z).float() / 2 + 0.5
        return image.to(latent.device)

    def lcm_knows(self, model: Any) -> bool:
        return True

    def sampling(self, p: Any) -> None:
        """Remember the noise schedule. Zero Terminal SNR is in force while p samples, and no longer afterwards."""
        self.schedule = [
            (weakref.ref(owner), {name: getattr(owner, name) for name in _SCHEDULE if hasattr(owner, name)})
            for owner in self._schedules(p.sd_model)
        ]

    @contextmanager
    def gradients(self, p: Any, images: int = 1) -> Iterator[None]:
        self.images = images
        networks = self._networks(p.sd_model)
        with ExitStack() as stack:
            stack.callback(self._unload, p)
            self._load(p)
            # Its DDIM leaves the schedule on the model.
            stack.enter_context(kept(p.sd_model, "alphas_cumprod"))
            remembered = {owner(): values for owner, values in self.schedule}
            for owner in self._schedules(p.sd_model):  # another one, if another model has been loaded since
                stack.enter_context(attributes(owner, remembered.get(owner, {})))
            stack.enter_context(self._same_batches())
            stack.enter_context(self._online_lora())
            for network in networks:
                stack.enter_context(copying(network))
                stack.enter_context(undecorated(network))
            self.tensors = NormalTensors(networks)
            stack.callback(self._restore)
            self.tensors.set()
            for network in networks:
                stack.enter_context(frozen(network))
            yield

    def _restore(self) -> None:
        tensors, self.tensors = self.tensors, None
        if tensors is not None:
            tensors.restore()

    @contextmanager
    def own_work(self, p: Any) -> Iterator[None]:
        tensors = self.tensors
        if tensors is None:
            with torch.inference_mode():
                yield
            return
        tensors.restore()
        try:
            with torch.inference_mode():
                yield
        finally:
            try:
                self._load(p)  # what it worked with may have taken the place of the networks
            finally:
                tensors.set()

    @contextmanager
    def inner_pass(self, p: Any) -> Iterator[None]:
        """A generation makes its own `forge_objects`, without what other extensions have added to those of p."""
        model = p.sd_model
        there = {name: getattr(model, name) for name in _OF_A_GENERATION if hasattr(model, name)}
        with super().inner_pass(p), attributes(model, there):
            try:
                yield
            finally:
                processing.apply_circular_forge(model, bool(p.tiling))

    def guides_whole(self, model: Any) -> bool:
        return any(model.forge_objects.unet.model_options.get(name) for name in _GUIDING)

    def _networks(self, model: Any) -> list[nn.Module]:
        return [model.forge_objects.unet.model, model.forge_objects.vae.first_stage_model]

    def _predictor(self, model: Any) -> Any:
        """What knows the UNet's noise levels and what it predicts."""
        return model.forge_objects.unet.model.predictor

    def _schedules(self, model: Any) -> tuple[Any, ...]:
        """What holds noise levels; that of the UNet first."""
        return (self._predictor(model),)

    def _to_vae(self, model: Any, latent: Tensor) -> Tensor:
        z: Tensor = model.forge_objects.vae.first_stage_model.process_out(latent)
        return z

    def _load(self, p: Any) -> None:
        """All that a run evaluates, to where the WebUI wants it; in inference mode, as the WebUI itself does."""
        memory, sampling = importlib.import_module(self.memory_module), importlib.import_module(self.sampling_module)
        objects = p.sd_model.forge_objects
        shape = (self.images, *p.rng.shape)
        with torch.inference_mode():
            sampling.sampling_prepare(objects.unet, x=torch.empty(shape, device=devices.device))
            room: dict[str, float] = {"memory_required": GRAPHS * (self.images * shape[-1] * shape[-2] / 64**2)}
            if "minimum_memory_required" in inspect.signature(memory.load_models_gpu).parameters:
                room["minimum_memory_required"] = 0  # else the networks make room, too
            memory.load_models_gpu([objects.unet, objects.vae.patcher], **room)

    def _unload(self, p: Any) -> None:
        with torch.inference_mode():
            importlib.import_module(self.sampling_module).sampling_cleanup(p.sd_model.forge_objects.unet)

    def _same_batches(self) -> AbstractContextManager[None]:
        """Whether both prompts go into one evaluation must not depend on the memory that is free at the moment: the
        results differ in their last bits, and then no step can be inverted.
        """
        module, name = importlib.import_module(self.batching[0]), self.batching[1]
        memory = Overlay(getattr(module, name), get_free_memory=lambda *args, **options: float("inf"))
        return attributes(module, {name: memory})

    @contextmanager
    def _online_lora(self) -> Iterator[None]:
        """Weights that are merged in inference mode are normal ones for the network."""
        with ExitStack() as stack:
            for module in map(importlib.import_module, self.lora):
                if merge := getattr(module, "merge_lora_to_weight", None):
                    stack.enter_context(attributes(module, {"merge_lora_to_weight": normally(merge)}))
            yield

    def _streams(self) -> str:
        """The flag that moves weights while the network computes, or ""."""
        return "--cuda-stream" if importlib.import_module("backend.stream").should_use_stream() else ""

    def _eighths(self) -> str:
        """The flag (Forge Neo's) that multiplies weights of 8 bits as they are, or ""."""
        args = getattr(importlib.import_module("backend.args"), "args", None)
        return "--fast-fp8" if getattr(args, "fast_fp8", False) else ""


def normally(merge: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def merged(*args: Any, **options: Any) -> Tensor:
        with torch.no_grad():
            weight = merge(*args, **options)
            return normal(weight) if weight.is_inference() else weight

    return merged


def flows(predictor: Any) -> bool:
    """Whether its noisy image is (1 - sigma) x + sigma noise. SGOOL makes x + sigma noise."""
    image = torch.ones(1, 4, 1, 1)
    noisy: Tensor = predictor.noise_scaling(torch.tensor([0.5]), torch.zeros_like(image), image)
    return not torch.allclose(noisy, image)


def quantised(network: nn.Module) -> bool:
    """Whether some weights are numbers of a kind that has to be unpacked first."""
    marks = ("gguf_cls", "quant_state", "quant_type", "bnb_quantized", "layout_cls", "_layout_cls")
    return any(
        not parameter.is_floating_point() or any(getattr(parameter, mark, None) is not None for mark in marks)
        for parameter in network.parameters()
    )


@contextmanager
def kept(owner: Any, name: str) -> Iterator[None]:
    """An attribute is afterwards as it was, or not there where it was not."""
    before = vars(owner).get(name, _MISSING)
    try:
        yield
    finally:
        if before is not _MISSING:
            setattr(owner, name, before)
        elif name in vars(owner):
            delattr(owner, name)
