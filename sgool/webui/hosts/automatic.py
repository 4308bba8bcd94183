"""AUTOMATIC1111's WebUI, and all that its forks have in common with it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from modules import devices, sd_samplers, sd_samplers_cfg_denoiser, sd_samplers_common, shared
from torch import Tensor, nn

from sgool.checkpointing import blocks
from sgool.samplers import Schedule
from sgool.webui.overlay import Overlay, attributes

DENOISER_OPTIONS = ("skip_early_cond", "s_min_uncond_all", "batch_cond_uncond")
"""Options of the user's that a run sets otherwise for its own evaluations."""

_HIJACK = ("comments", "extra_generation_params")
"""Of the WebUI's hijack, what a generation clears when it begins."""


class Denoiser:
    """The WebUI's guided denoiser, made anew for one image: eps, whatever the model predicts.

    schedule: of the user's own sampling, where that is followed, else None.
    """

    def __init__(self, p: Any, schedule: Schedule | None) -> None:
        sampler = sd_samplers.create_sampler("DDIM", p.sd_model)
        sampler.initialize(p)
        self.inner = sampler.model_wrap_cfg
        self.inner.mask = self.inner.nmask = None  # `WebuiBackend.blend` applies the mask
        self.inner.steps = p.steps
        self.inner.total_steps = getattr(p, "firstpass_steps", None) or p.steps
        # img2img samples fewer.
        self.sampled = getattr(getattr(p.sampler, "model_wrap_cfg", None), "steps", None) or self.inner.total_steps
        if schedule is not None and predicts_v(p.sd_model):
            self.inner.model_wrap = VDenoiser(p.sd_model, schedule)

    def __call__(self, x: Tensor, t: float, step: int, **conditions: Any) -> Tensor:
        """eps for x [B, 4, h, w] at timestep t, which is the WebUI's step number `step`.

        Raises the WebUI's InterruptedException.
        """
        with self.at(step):
            eps: Tensor = self.inner(x, x.new_full((len(x),), t), **conditions)
        return eps

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """The denoiser, and extensions that it calls, see this step of the WebUI's where its bar counts a run's.

        The WebUI counts a step when its prediction is there, so extensions hear of the one before.
        """
        self.inner.step = step
        own = Overlay(shared.state, sampling_step=max(0, step - 1), sampling_steps=self.sampled)
        if hasattr(sd_samplers_cfg_denoiser, "state"):
            seen = {"state": own}
        else:
            seen = {"shared": Overlay(sd_samplers_cfg_denoiser.shared, state=own)}
        with attributes(sd_samplers_cfg_denoiser, seen):
            yield


class Automatic:
    """One running program. What is said of these methods holds for its forks, too.

    model: the loaded model, `p.sd_model`.
    """

    name = "AUTOMATIC1111's WebUI"

    full_precision = "--no-half"
    """The flag that makes the networks compute in float32."""

    proves = False
    """Whether a run first proves that its gradient is right, because nobody can know all the networks."""

    def refuses(self, p: Any) -> str | None:
        """Why gradients cannot be had here, in one sentence, or None."""
        from modules import sd_unet  # ersatzForge has none

        model = p.sd_model
        if torch.is_inference_mode_enabled():
            return "SGOOL needs gradients, which this WebUI switches off (inference mode)."
        if getattr(model, "is_sd3", False):
            return "SGOOL does not work with Stable Diffusion 3; use a model that predicts noise (SD 1.x, 2.x or SDXL)."
        if sd_unet.current_unet is not None:
            return "SGOOL needs gradients, but a replaced UNet (such as TensorRT) has none; set SD Unet to None."
        if shared.cmd_opts.lowvram and torch.device(devices.device).type != "cpu":
            return (
                "SGOOL does not work with --lowvram on a GPU: this unloads weights that gradients need; use --medvram."
            )
        if not hasattr(model, "alphas_cumprod") or not hasattr(model.model, "diffusion_model"):
            return "SGOOL does not know this kind of model; it works with Stable Diffusion 1.x, 2.x and SDXL."
        return None

    def edits(self, model: Any) -> bool:
        """Whether it is an instruct-pix2pix model."""
        return getattr(model, "cond_stage_key", None) == "edit"

    def unet(self, model: Any) -> nn.Module:
        network: nn.Module = model.model.diffusion_model
        return network

    def blocks(self, model: Any) -> Iterator[nn.Module]:
        """The parts of the UNet to recompute one at a time."""
        return blocks(self.unet(model))

    def decoder(self, model: Any) -> nn.Module:
        network: nn.Module = model.first_stage_model.decoder
        return network

    def alphas_cumprod(self, model: Any) -> Tensor:
        """[N], float64, on the CPU."""
        alphas: Tensor = model.alphas_cumprod
        return alphas.detach().double().cpu()

    def denoiser(self, p: Any, schedule: Schedule | None) -> Denoiser:
        return Denoiser(p, schedule)

    def decode(self, model: Any, latent: Tensor) -> Tensor:
        """[B, 4, h, w] -> [B, 3, H, W] in about [0, 1]; gradients pass."""
        z = latent.to(devices.dtype_vae) / model.scale_factor
        with devices.without_autocast():
            image: Tensor = model.first_stage_model.decode(z).float() / 2 + 0.5
        return image

    def lcm_knows(self, model: Any) -> bool:
        """Whether the WebUI's LCM takes the model for what it predicts."""
        return not predicts_v(model)

    def lcm_boundary(self) -> bool:
        """Whether the WebUI's LCM keeps the boundary condition of consistency models. Forge Neo's does not."""
        return find_spec("modules.sd_samplers_lcm") is not None

    def options(self, **values: Any) -> AbstractContextManager[None]:
        """Settings for the denoiser alone. The user's settings stay untouched: a run takes minutes, and meanwhile the
        user may change them and the WebUI may save them.
        """
        seen = getattr(sd_samplers_cfg_denoiser, "shared", None)
        if seen is None:
            opts = sd_samplers_cfg_denoiser.opts
            return attributes(sd_samplers_cfg_denoiser, {"opts": Overlay(opts, **values)})
        return attributes(sd_samplers_cfg_denoiser, {"shared": Overlay(seen, opts=Overlay(seen.opts, **values))})

    def own_options(self) -> AbstractContextManager[None]:
        """The user's settings for the denoiser, inside of `options`."""
        return self.options(
            **{name: getattr(shared.opts, name) for name in DENOISER_OPTIONS if hasattr(shared.opts, name)}
        )

    def sampling(self, p: Any) -> None:
        """Hear that p is about to sample."""

    @contextmanager
    def gradients(self, p: Any, images: int = 1) -> Iterator[None]:
        """Networks that gradients can pass, with frozen weights; afterwards all is as it was.

        images: how many are improved together, which says how much memory a run needs.
        """
        with frozen(p.sd_model):
            yield

    def own_work(self, p: Any) -> AbstractContextManager[None]:
        """Inside of `gradients`: what the WebUI itself does, with its networks as it has them."""
        return nullcontext()

    def guides_whole(self, model: Any) -> bool:
        """Whether an extension works on what guidance gives, so that its two halves cannot be told apart."""
        return False

    def no_scripts(self) -> Any:
        """The `scripts` of a generation in which none takes part."""
        return None

    @contextmanager
    def inner_pass(self, p: Any) -> Iterator[None]:
        """Around a generation in the middle of p's: what it changes in the model is put back."""
        with ExitStack() as stack:
            if (hijack := _hijack()) is not None:
                there = {name: getattr(hijack, name) for name in _HIJACK if hasattr(hijack, name)}
                stack.enter_context(attributes(hijack, there))
                stack.callback(hijack.apply_circular, bool(p.tiling))
            yield

    def k_diffusion(self) -> Any:
        """The module in which every sampler leaves its own source of random numbers, as `torch`."""
        own = getattr(sd_samplers_common, "sampling", None)  # reForge
        return own or importlib.import_module("k_diffusion.sampling")


def _hijack() -> Any:
    """What the WebUI changes in a model and says of it; None in Forge Neo."""
    try:
        return importlib.import_module("modules.sd_hijack").model_hijack
    except ImportError:
        return None


def predicts_v(model: Any) -> bool:
    return getattr(model, "parameterization", "eps") == "v"


class VDenoiser(nn.Module):
    """In place of the WebUI's own around a model that predicts v, which knows whole timesteps alone.

    eps = a v + sigma x, at the levels of the schedule.
    """

    def __init__(self, model: Any, schedule: Schedule) -> None:
        super().__init__()
        self.inner_model = model
        self.levels = {t: (schedule.a[i], schedule.sigma[i]) for i, t in enumerate(schedule.timesteps)}

    def forward(self, x: Tensor, timesteps: Tensor, **conditions: Any) -> Tensor:
        t = timesteps[0].item()
        a, sigma = self.levels[int(t) if t == int(t) else t]
        return a * self.inner_model.apply_model(x, timesteps, **conditions) + sigma * x


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No parameter collects a gradient."""
    free = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in free:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
