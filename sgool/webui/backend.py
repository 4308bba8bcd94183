"""The WebUI's loaded model as a backend: one image of a batch, seen through the WebUI's own guided denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from modules import devices, processing, prompt_parser, rng, sd_samplers_common
from torch import Tensor

from sgool.checkpointing import Memory
from sgool.errors import SgoolError
from sgool.guidance.half import is_half
from sgool.lockstep import Member
from sgool.result import Stop
from sgool.samplers import Branch, Network
from sgool.webui.follow import Followed
from sgool.webui.hosts import host
from sgool.webui.hosts.proof import prove


class WebuiBackend:
    """See `sgool.backends.Backend`. Prompts are ignored, because the WebUI has already encoded them.

    p: the WebUI's processing object, with its conditionings. index: the image's index in the batch. latent: the image
    as the WebUI's sampler left it, [1, 4, h, w]. noise: the noise that the sampler started from, [1, 4, h, w], or None.
    followed: the user's own sampling, where the network is asked for that. member: set where the image is
    improved together with others.
    """

    def __init__(
        self,
        p: Any,
        index: int,
        latent: Tensor,
        noise: Tensor | None,
        memory: Memory,
        followed: Followed | None = None,
    ) -> None:
        self.p = p
        self.member: Member | None = None
        self.schedule = followed.schedule if followed else None
        self.model = p.sd_model
        self.index = index
        self.memory = memory
        self.device = torch.device(devices.device)
        self.alphas_cumprod = host().alphas_cumprod(self.model)
        self.latent_dtype = latent.dtype
        self.original = latent.detach().to(self.device, torch.float64, copy=True)
        self.seed_noise = None if noise is None else noise.detach().to(self.device, torch.float64, copy=True)

    @property
    def size(self) -> tuple[int, int]:
        return 8 * self.original.shape[-2], 8 * self.original.shape[-1]

    def network(self, prompt: Any, negative_prompt: str, guidance_scale: float) -> Network:
        """See `joined`; asked together with the networks of other images where this one is a member."""
        own = joined([self], guidance_scale)
        assert own is not None
        return self.member.asking(own) if self.member else own

    def prove(self, guidance_scale: float) -> None:
        """Where the host may have other networks than are known here, compare their gradients with differences.

        Raises SgoolError where these differ.
        """
        if not host().proves:
            return
        t = self.schedule.timesteps[self.schedule.steps // 2] if self.schedule else len(self.alphas_cumprod) // 2
        alphabar = self.alphas_cumprod[int(t)].item()
        noise = torch.randn(self.original.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x = alphabar**0.5 * self.original + (1 - alphabar) ** 0.5 * noise.to(self.original)
        branches = self.network(None, "", guidance_scale).branches
        first = next(each for branch in branches for each in ((branch,) if branch.back is None else branch.back))

        def predict(x: Tensor) -> Tensor:
            with network_precision():
                return first.function(x.float(), t)

        unet, decoder = host().unet(self.model), host().decoder(self.model)
        gpu = self.device.type != "cpu"
        prove("UNet", predict, x, [unet], rough=gpu or is_half(devices.dtype))
        prove("VAE's decoder", self.decode, self.original, [decoder], rough=gpu or is_half(devices.dtype_vae))

    def noise(self, seed: int) -> Tensor:
        """The noise that the image's own sampler started from; for another seed, the WebUI's noise for that seed."""
        if seed == self.p.seeds[self.index] and self.seed_noise is not None:
            return self.seed_noise
        made = rng.ImageRNG(tuple(self.original.shape[1:]), [seed]).next()
        return made.to(self.device, torch.float64)

    def decode(self, latent: Tensor) -> Tensor:
        """See Backend. Outside an inpainting mask, the original is decoded."""
        return host().decode(self.model, self.blend(latent))

    def decode_original(self) -> Tensor:
        """The original image. If the precision of the VAE is too low, the WebUI raises the precision as usual.

        Raises SgoolError if the image is NaN all the same.
        """
        with torch.no_grad():
            image = self.decode(self.original)
            if not torch.isfinite(image).all():
                with host().own_work(self.p):
                    processing.decode_latent_batch(
                        self.model, self.original.float(), target_device=devices.cpu, check_for_nans=True
                    )
                image = self.decode(self.original)
        if not torch.isfinite(image).all():
            raise SgoolError("The VAE decodes this image to NaN.")
        return image.clamp(0, 1)

    @torch.no_grad()
    def picture(self, latent: Tensor) -> np.ndarray:
        """The latent as the WebUI itself makes a picture of it: uint8 RGB [H, W, 3]."""
        with host().own_work(self.p):
            (decoded,) = processing.decode_latent_batch(
                self.model, latent.to(self.latent_dtype), target_device=devices.cpu, check_for_nans=True
            )
        pixels = torch.clamp((decoded.float() + 1) / 2, 0, 1)
        return (255.0 * np.moveaxis(pixels.numpy(), 0, 2)).astype(np.uint8)

    def blend(self, latent: Tensor) -> Tensor:
        """The latent inside the inpainting mask and the original outside, as the WebUI blends at the end."""
        mask, nmask = getattr(self.p, "mask", None), getattr(self.p, "nmask", None)
        if mask is None or nmask is None:
            return latent
        # Copies, because masks from inference mode block gradients.
        inside, outside = nmask.to(latent, copy=True), mask.to(latent, copy=True)
        return latent * inside + self.original.to(latent) * outside

    def step(self, t: float) -> int:
        """The WebUI's step number at timestep t. Prompt schedules are written in these numbers."""
        if self.schedule is not None:
            return self.schedule.timesteps.index(t)
        total, last = self._total_steps(), len(self.alphas_cumprod)
        step = int((last - t) * total // last)
        if getattr(self.p, "init_latent", None) is not None and self.p.sampler.model_wrap_cfg.total_steps is not None:
            # img2img counts from the step where it begins, if it has sampled at all.
            steps, begin = sd_samplers_common.setup_img2img_steps(self.p)
            step = int((last - t) * steps // last) - (steps - begin - 1)
        return max(0, min(total - 1, step))

    def _total_steps(self) -> int:
        return getattr(self.p, "firstpass_steps", None) or self.p.steps

    def image_conditioning(self) -> Tensor:
        """The extra input of inpainting and depth models, as in the first pass; one pixel of zeros for all others.

        The sampler's own tensor is used if the sampler still has it, because a new one would use other random numbers.
        """
        own = (getattr(self.p.sampler, "sampler_extra_args", None) or {}).get("image_cond")
        if own is None:
            with host().own_work(self.p):
                own = self.p.txt2img_image_conditioning(self.original.float())
            return _copy(own)
        return _copy(own[self.index : self.index + 1] if own.shape[0] > 1 else own)


def joined(backends: Sequence[WebuiBackend], guidance_scale: float) -> Network | None:
    """The WebUI's CFG denoiser for these images at once, with prompt scheduling, AND, emphasis and loaded LoRA as in
    the first pass. None where their prompts have different parts.

    The denoiser returns eps, whatever the model predicts. With memory "low", each prompt is a branch of its own. Where
    the negative prompt has no weight, as at guidance scale 1, it is not evaluated (the WebUI itself does).
    """
    first = backends[0]
    denoiser = host().denoiser(first.p, first.schedule)
    prompts = [each.p.c.batch[each.index] for each in backends]
    # At guidance scale 1 Forge has no negative prompt. In its place stands one that has no weight.
    uc = first.p.uc
    negatives = [
        own[0].schedules if uc is None else uc[each.index] for own, each in zip(prompts, backends, strict=True)
    ]
    weights = [part.weight for part in prompts[0]]
    if any([part.weight for part in own] != weights for own in prompts):
        return None
    image_cond = torch.cat([each.image_conditioning() for each in backends])

    def branch(weight: float, prompts: Sequence[Any], scale: float, alone: bool) -> Branch:
        own, uncond = [_own(each) for each in prompts], [_own_schedule(each) for each in negatives]

        def predict(x: Tensor, t: float) -> Tensor:
            each = len(x) // len(own)
            cond = prompt_parser.MulticondLearnedConditioning((len(x),), _repeated(own, each))
            skip = host().options(s_min_uncond_all=True, batch_cond_uncond=False) if alone else nullcontext()
            try:
                with skip:
                    return denoiser(
                        x,
                        t,
                        first.step(t),
                        uncond=_repeated(uncond, each),
                        cond=cond,
                        cond_scale=scale,
                        s_min_uncond=float("inf") if alone else 0.0,
                        image_cond=image_cond.repeat_interleave(each, 0),
                    )
            except sd_samplers_common.InterruptedException:
                raise Stop from None

        return Branch(weight, predict, evals=1 if alone else 1 + len(weights))

    def single(weight: float, schedules: Sequence[Any]) -> Branch:
        # With the "negative guidance minimum sigma" above every sigma, the denoiser evaluates its prompt alone.
        parts = [[prompt_parser.ComposableScheduledPromptConditioning(each)] for each in schedules]
        return branch(weight, parts, 1.0, alone=True)

    parts = [(weight, [own[i].schedules for own in prompts]) for i, weight in enumerate(weights)]
    wanted = [(weight, schedules) for weight, schedules in parts if weight > 0]
    total = sum(weight for weight, _ in wanted)
    whole = host().guides_whole(first.model)
    back = None if whole else tuple(single(weight / total, schedules) for weight, schedules in wanted) or None
    rest = 1 - guidance_scale * sum(weights)
    sequential = first.memory.sequential and not whole
    if abs(rest) < 1e-9 or sequential:
        branches = [single(guidance_scale * weight, schedules) for weight, schedules in parts]
        if abs(rest) >= 1e-9:
            branches = [single(rest, negatives), *branches]
            if back:
                branches = [replace(each, back=()) for each in branches[:-1]] + [replace(branches[-1], back=back)]
    else:
        branches = [replace(branch(1.0, prompts, guidance_scale, alone=False), back=back)]
    return Network(branches, first.alphas_cumprod, "epsilon", torch.float32, network_precision)


def network_precision() -> AbstractContextManager[Any]:
    return devices.without_autocast() if getattr(devices, "unet_needs_upcast", False) else devices.autocast()


def _repeated(rows: Sequence[Any], count: int) -> list[Any]:
    return [row for row in rows for _ in range(count)]


def _own(prompts: Any) -> list[Any]:
    single = prompt_parser.ComposableScheduledPromptConditioning
    return [single(_own_schedule(each.schedules), each.weight) for each in prompts]


def _own_schedule(schedules: Any) -> list[Any]:
    """Copy the schedules, because other extensions may pass tensors from inference mode, which block gradients."""
    return [each._replace(cond=_copy(each.cond)) for each in schedules]


def _copy(cond: Any) -> Any:
    if isinstance(cond, dict):
        return {key: _copy(value) for key, value in cond.items()}
    return cond.detach().clone()
