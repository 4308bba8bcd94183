"""One update by DOODL's published code (arXiv 2303.13703, github.com/salesforce/DOODL), on our networks.

The code is imported from a checkout and run as published: `gen` of doodl.py, with DOODL's own MemCNN. Whatever DOODL
loads from elsewhere (networks, tokenizers, an old copy of diffusers) is passed in. In DOODL's own code, the hard-coded
GPU, half precision and 64x64 latents are replaced. Saved pictures and progress bars are left out, in DOODL's favor.
DOODL freezes no weights, so it also computes their gradients; `Doodl.weights` can turn these off.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sgool.errors import SgoolError
from sgool.guidance.clip import Clip
from sgool.lab.random_backend import TOKENS, RandomBackend

_OWN = ("doodl", "helper_functions", "memcnn")
_ABSENT = (
    "transformers",
    "omegaconf",
    "imageio",
    "my_half_diffusers",
    "my_half_diffusers.schedulers",
    "my_half_diffusers.schedulers.scheduling_utils",
    "fgvc_ws_dan_helpers",
    "fgvc_ws_dan_helpers.inception_bap",
)
"""Imports that DOODL does not get: network loaders, its copy of an old diffusers, and code for other guidance."""


def check_folder(folder: Path) -> None:
    """Raises SgoolError unless the folder is a checkout of DOODL."""
    if not all((folder / f"{name}.py").is_file() for name in _OWN[:2]):
        raise SgoolError(f"{folder} is not a checkout of github.com/salesforce/DOODL: it has no doodl.py.")


class Doodl:
    """DOODL guided by the prompt, with its published settings but with the given CLIP, UNet, decoder and steps.

    folder: the checkout. Raises SgoolError if its code cannot be imported.
    """

    def __init__(
        self, folder: Path, backend: RandomBackend, clip: Clip, prompt: str, steps: int, guidance_scale: float
    ) -> None:
        self.backend = backend
        self.clip = clip
        self.networks: list[nn.Module] = [backend.unet, backend.vae, clip.model]
        self.module = _import(folder)
        if not hasattr(self.module, "gen"):
            raise SgoolError(f"{folder} is not a checkout of github.com/salesforce/DOODL: its doodl.py has no `gen`.")
        self.arguments = {
            "cond_prompt": prompt,
            "model_guidance_type": "CLIP",
            "model_guidance_dict": {"clip_prompt": prompt, "clip_model_str": "vit_b_32"},
            "steps": steps,
            "sd_guidance_scale": guidance_scale,
        }
        device, dtype = backend.device.type, backend.dtype
        embedded = SimpleNamespace(last_hidden_state=backend.condition)
        tokens = _Tokens()
        given: dict[str, Any] = {
            "device": device,
            "torch_dtype": dtype,
            # On the CPU, autocast would make DOODL use bfloat16, but our own code does not use it there.
            "autocast": torch.autocast if device == "cuda" else lambda device: nullcontext(),
            "torch": _TorchOfSize(backend.latent_size),
            "unet": _Unet(backend),
            "vae": backend.vae,
            "clip": lambda ids: embedded,
            "clip_tokenizer": tokens,
            "AutoProcessor": SimpleNamespace(from_pretrained=lambda *_, **__: SimpleNamespace(tokenizer=tokens)),
            "AutoModel": SimpleNamespace(from_pretrained=lambda *_, **__: _GuidingClip(clip, prompt)),
            "tqdm": lambda steps, **_: steps,
            "prep_image_for_return": lambda image: SimpleNamespace(save=lambda path: None),
        }
        vars(self.module).update(given)

    @contextmanager
    def weights(self, trainable: bool) -> Iterator[None]:
        """In this context the networks' weights get gradients (as published) or not."""
        try:
            for network in self.networks:
                network.requires_grad_(trainable)
            yield
        finally:
            for network in self.networks:
                network.requires_grad_(False)
                network.zero_grad(set_to_none=True)

    def work(self, updates: int, mark: Callable[[], None]) -> None:
        """See `sgool.lab.bench_update.Work`. DOODL prints a line before each update, which marks the updates."""

        def announced(text: str) -> None:
            if text.startswith("Optimization Step"):
                mark()

        vars(self.module)["print"] = announced
        generator = torch.get_rng_state()
        try:
            with torch.no_grad():  # DOODL's module turns gradients off globally, and on again where needed
                self.module.gen(**self.arguments, num_traversal_steps=updates)
            mark()
        finally:
            torch.set_rng_state(generator)
            for network in self.networks:
                network.zero_grad(set_to_none=True)


class _Unet(nn.Module):
    """The UNet with the call signature that DOODL uses. SDXL's own conditions are added."""

    def __init__(self, backend: RandomBackend) -> None:
        super().__init__()
        self.unet = backend.unet
        self.predict = backend.predict

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.predict(x, t.expand(len(x)), encoder_hidden_states))


class _GuidingClip:
    """Our CLIP with the method names of transformers' CLIP."""

    def __init__(self, clip: Clip, prompt: str) -> None:
        self.clip = clip
        self.prompt = prompt
        self.device = clip.device

    def to(self, device: str) -> _GuidingClip:
        return self

    def get_text_features(self, ids: Tensor) -> Tensor:
        return self.clip.encode_text(self.prompt)[None]

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return self.clip.model.encode_image(pixels.to(self.clip.dtype))  # type: ignore[operator]


class _Tokens:
    """A tokenizer whose tokens nobody reads, because both text encoders return fixed embeddings."""

    model_max_length = TOKENS

    def __call__(self, *texts: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.zeros(1, TOKENS, dtype=torch.long))


class _TorchOfSize:
    """torch, except that `randn` replaces DOODL's hard-coded 64x64 by the model's latent size."""

    def __init__(self, latent_size: tuple[int, int]) -> None:
        self.latent_size = latent_size

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn(self, shape: tuple[int, ...], **options: Any) -> Tensor:
        return torch.randn((*shape[:-2], *self.latent_size), **options)


class _Absent(ModuleType):
    """A stand-in module. Every name can be imported from it and is a loader that loads nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        loaded = SimpleNamespace(to=lambda device: None, text_model=SimpleNamespace(to=lambda device: None))
        return SimpleNamespace(from_pretrained=lambda *_, **__: loaded)


def _import(folder: Path) -> ModuleType:
    """The folder's module doodl.py. sys.modules and the gradient mode are restored afterwards."""
    from diffusers import DDIMScheduler

    absent = {name: _Absent(name) for name in _ABSENT}
    vars(absent["my_half_diffusers"])["DDIMScheduler"] = DDIMScheduler  # for the noise levels; DOODL has its own steps
    before, gradients, here = dict(sys.modules), torch.is_grad_enabled(), Path.cwd()
    sys.modules.update(absent)
    sys.path.insert(0, str(folder.resolve()))
    try:
        with tempfile.TemporaryDirectory() as place, redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about features that are deprecated by now
            (Path(place) / "hf_auth").write_text("none\n")  # DOODL reads its hub login from this file
            os.chdir(place)
            doodl = importlib.import_module("doodl")
            os.chdir(here)
            return doodl
    except Exception as error:
        raise SgoolError(f"DOODL's code in {folder} cannot be imported: {error}") from error
    finally:
        os.chdir(here)
        sys.path.remove(str(folder.resolve()))
        torch.set_grad_enabled(gradients)
        for name in [n for n in sys.modules if (n not in before and n.split(".")[0] in _OWN) or n in absent]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name in absent})
