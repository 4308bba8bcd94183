"""Stable Diffusion 1.x and 2.x through diffusers: the backend of the command line and of `sgool.improve`."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgool import tiny
from sgool.checkpointing import MEMORY, blocks, checkpoint
from sgool.checks import (
    check_kind,
    check_seed,
    check_tensor,
    check_text,
    shown,
    usable_device,
    usable_dtype,
)
from sgool.errors import SgoolError, brief
from sgool.samplers import Branch, Network
from sgool.tiny import few_step

log = logging.getLogger(__name__)

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
"""What a pipeline must have."""


class DiffusersBackend:
    """A StableDiffusionPipeline as a backend. Its parts are used as they are: on their device, in their precision.

    memory: see `sgool.checkpointing.MEMORY`. Call `prepare` before a run. Raises SgoolError for another kind of
    pipeline, networks that cannot compute together, and a memory setting that there is not.
    """

    def __init__(self, pipeline: Any, memory: str = "fast") -> None:
        self.check(pipeline)
        self.memory = MEMORY[check_memory(memory)]
        self.tokenizer = pipeline.tokenizer
        self.text_encoder = pipeline.text_encoder
        self.vae = pipeline.vae
        self.unet = pipeline.unet
        weight = next(self.unet.parameters())
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.double().cpu()
        self.prediction = pipeline.scheduler.config.prediction_type
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = self.unet.config.sample_size
        self.latent_size: tuple[int, int] = (side, side) if isinstance(side, int) else tuple(side)

    @property
    def size(self) -> tuple[int, int]:
        return self.latent_size[0] * self.factor, self.latent_size[1] * self.factor

    def check(self, pipeline: Any) -> None:
        """Raises SgoolError for a pipeline that is no Stable Diffusion 1.x or 2.x, or is not where it can be used."""
        check_pipeline(pipeline, f"This {type(pipeline).__name__}")
        _check_place(pipeline)

    def prepare(self) -> Callable[[], None]:
        """Freeze the networks and have them recompute what `memory` says; returns what undoes all of it."""
        undo = [_freeze(part) for part in (self.text_encoder, self.vae, self.unet)]
        if self.memory.decoder:
            undo.append(checkpoint(blocks(self.vae.decoder)))
        if self.memory.network:
            undo.append(checkpoint(blocks(self.unet)))

        def restore() -> None:
            for each in reversed(undo):
                each()

        return restore

    def network(self, prompt: str | Sequence[str], negative_prompt: str = "", guidance_scale: float = 7.5) -> Network:
        """See Backend. At guidance scale 1 there is one branch; else two, batched into one unless memory is low.

        Raises SgoolError for prompts that are no texts, and a scale that is no finite number.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        for each in prompts or [None]:
            check_text(each, "The prompt")
        check_text(negative_prompt, "The negative prompt")
        if type(guidance_scale) not in (int, float) or not abs(guidance_scale) < math.inf:
            raise SgoolError(f"The guidance scale must be a finite number, not {shown(guidance_scale)}.")
        positive = self._encode_text(prompts)
        alone = Branch(1.0, lambda x, t: self._predict(x, t, positive))
        if guidance_scale == 1:
            branches = [alone]
        else:
            negative = self._encode_text([negative_prompt])

            def guided(x: Tensor, t: float) -> Tensor:
                without, with_prompt = self._predict(x, t, negative, positive).chunk(2)
                return without + guidance_scale * (with_prompt - without)

            branches = [Branch(1.0, guided, evals=2, back=(alone,))]
            if self.memory.sequential:
                branches = [
                    Branch(1 - guidance_scale, lambda x, t: self._predict(x, t, negative), back=()),
                    replace(alone, weight=guidance_scale, back=(alone,)),
                ]
        return Network(branches, self.alphas_cumprod, self.prediction, self.dtype)

    def _predict(self, x: Tensor, t: float, *prompts: Tensor) -> Tensor:
        """Predictions for all of x with each of the encoded prompts in turn. prompts: [B or 1, tokens, features]."""
        timesteps = torch.full((len(prompts) * len(x),), t, device=self.device)
        states = torch.cat([each.expand(len(x), -1, -1) for each in prompts])
        return self.predict(torch.cat([x] * len(prompts)), timesteps, states)

    def predict(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """The UNet's output."""
        return self.unet(x, timesteps, encoder_hidden_states=condition).sample

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> Tensor:
        # Without its configuration a tokenizer has no limit of its own.
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        for prompt in prompts:
            if len(self.tokenizer(prompt).input_ids) > length:
                log.warning("The diffusion model reads only the first %d tokens of the prompt.", length - 2)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0].to(self.dtype)

    def noise(self, seed: int) -> Tensor:
        check_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.unet.config.in_channels, *self.latent_size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        check_tensor(image, 3, "An image tensor")
        pixels = (image.to(self.device, torch.float32) * 2 - 1).to(self.vae.dtype)
        return self.vae.encode(pixels).latent_dist.mean.double() * self.vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        if not isinstance(latent, Tensor) or latent.ndim != 4 or latent.shape[1] != 4:
            found = list(latent.shape) if isinstance(latent, Tensor) else shown(latent)
            raise SgoolError(f"A latent is a tensor [B, 4, h, w], not {found}.")
        z = (latent.float() / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(z).sample.float() / 2 + 0.5


def _freeze(part: nn.Module) -> Callable[[], None]:
    """Evaluation mode and no gradients of the weights; returns what undoes it."""
    free = [weight for weight in part.parameters() if weight.requires_grad]
    training = [module for module in part.modules() if module.training]
    part.eval().requires_grad_(False)

    def undo() -> None:
        for weight in free:
            weight.requires_grad_(True)
        for module in training:
            module.training = True

    return undo


def check_pipeline(pipeline: Any, name: str) -> None:
    """Raises SgoolError unless the pipeline is a whole Stable Diffusion 1.x or 2.x that makes images from text."""
    config = getattr(getattr(pipeline, "unet", None), "config", None)
    whole = all(getattr(pipeline, part, None) is not None for part in PARTS)
    # Those for inpainting and depth have more channels, SDXL has conditions besides the prompt.
    if not whole or getattr(config, "in_channels", 0) != 4 or getattr(config, "addition_embed_type", None):
        raise SgoolError(f"{name} is not a Stable Diffusion 1.x or 2.x model that makes images from text.")
    if not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise SgoolError(f"{name} has a {type(pipeline.scheduler).__name__}, which has no noise schedule for SGOOL.")
    # Where a folder lacks its tokenizer, transformers makes an empty one, which reads every prompt as nothing.
    known, wanted = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    if known < wanted / 2:
        raise SgoolError(
            f"{name} has a tokenizer with {known} of the {wanted} words that its text encoder knows: its folder "
            "tokenizer is missing or not whole."
        )


def check_memory(memory: str) -> str:
    """The memory setting. Raises SgoolError for one that there is not."""
    if not isinstance(memory, str) or memory not in MEMORY:
        raise SgoolError(f"The memory must be one of {', '.join(MEMORY)}, not {shown(memory)}.")
    return memory


def _check_place(pipeline: Any) -> None:
    """Raises SgoolError unless the networks are on one device that holds data, and compute in floating point."""
    weights = [next(getattr(pipeline, part).parameters()) for part in ("text_encoder", "vae", "unet")]
    devices = {str(weight.device): None for weight in weights}
    if len(devices) > 1 or weights[0].is_meta:
        where = "device meta holds no data" if "meta" in devices else f"networks are on {' and '.join(devices)}"
        raise SgoolError(f"The pipeline must be on one device, and its {where}: move it with pipeline.to(device).")
    for weight in weights:
        usable_dtype(weight.dtype)


def find_model(model: str | os.PathLike[str]) -> Path:
    """Where a model is, or would be; the hub is not asked. Raises SgoolError for what can be no model."""
    check_kind(model, (str, os.PathLike), "A model is named by a text or a path")
    model = os.fspath(model)
    path = tiny.MODEL if model in tiny.NAMES else Path(model).expanduser()
    on_hub = model.count("/") == 1 and not model.startswith((".", "/", "~")) and all(model.split("/"))
    if not path.exists() and not on_hub:
        raise SgoolError(
            f"There is no model {model!r}: give {', '.join(tiny.NAMES)}, a folder, a checkpoint file or a hub name "
            "(owner/name)."
        )
    return path


def load_backend(
    model: str | os.PathLike[str] = "tiny",
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    memory: str = "fast",
) -> DiffusersBackend:
    """A backend ready to run, its UNet in `dtype`, its other networks in float32.

    model: `tiny` (embedded), `tiny-lcm` (its sibling for few steps), a diffusers folder, a single checkpoint file, or a
    model of the hub by its name (`owner/name`), which diffusers downloads. A checkpoint's configuration is taken from a
    diffusers folder of the same name beside it (`x/` for `x.safetensors`); without one, diffusers downloads Stable
    Diffusion's own.

    Raises SgoolError when there is no such model or it cannot be loaded, and for a wrong device, dtype or memory.
    """
    path, device, dtype = find_model(model), usable_device(device), usable_dtype(dtype)
    check_memory(memory)
    try:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging as diffusers_logging
    except ImportError as error:
        raise SgoolError("The command line needs diffusers: python -m pip install diffusers accelerate.") from error
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    options: dict[str, Any] = {"safety_checker": None}
    try:
        if path.is_file():
            configs = path.with_suffix("")
            if (configs / "model_index.json").is_file():
                options |= {"config": str(configs), "local_files_only": True}
            pipeline = StableDiffusionPipeline.from_single_file(str(path), **options)
        elif path.is_dir():
            pipeline = StableDiffusionPipeline.from_pretrained(str(path), local_files_only=True, **options)
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(str(model), **options)
    except Exception as error:  # diffusers, the hub, safetensors and pickle each raise their own
        raise SgoolError(f"The model {str(model)!r} could not be loaded: {brief(error)}") from error
    check_pipeline(pipeline, f"The model {str(model)!r}")
    if model == "tiny-lcm":
        few_step.add(pipeline.unet)
    pipeline.text_encoder.to(device, torch.float32)
    pipeline.vae.to(device, torch.float32)
    pipeline.unet.to(device, dtype)
    backend = DiffusersBackend(pipeline, memory)
    backend.prepare()
    return backend
