"""The Python door: improve an image of your own diffusers pipeline.

import sgool
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("runwayml/stable-diffusion-v1-5").to("cuda")
improved = sgool.improve(pipeline, "a cat reading a newspaper", seed=7, steps=20)
improved.image.save("better.png")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgool import tiny
from sgool.backends.diffusers import DiffusersBackend, check_pipeline
from sgool.errors import SgoolError
from sgool.generate import Critics, Request, check_prompts, check_seed, generate, load_critics
from sgool.needs import fetch, needs
from sgool.pictures import to_uint8
from sgool.presets import only_zooms, resolve
from sgool.region import Region
from sgool.result import Progress, Result
from sgool.settings import Settings
from sgool.weights import default_models_dir
from sgool.zoom import Picture, Zoomed, zoom_in
from sgool.zoom.given import as_given, at_size
from sgool.zoom.paint import Painter

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Improved:
    """What `improve` returns. Scores are the selector's, the higher the better; `result` holds all images and losses.

    before, image: the seed's (or the given) image as SGOOL's sampler makes it, and the best one. latent: [1, 4, h, w],
    float64, of the best image before any zoom; empty where a given image was only zoomed into. saliency: [H, W] in
    [0, 1], where people look in the first image, or None. regions: of the best image. seed, settings: what the run was
    made with. zoomed: the places that were painted again; None without zoom.
    """

    before: Image
    image: Image
    score_before: float
    score_after: float
    latent: Tensor
    saliency: Tensor | None
    regions: tuple[Region, ...]
    seed: int
    settings: Settings
    result: Result
    zoomed: Zoomed | None = None


class Improver:
    """A pipeline with its critics loaded, for several images.

    pipeline: a diffusers StableDiffusionPipeline (SD 1.x or 2.x) on the device and in the precision it should run in.
    It is changed only while an image is made. settings: names and values of `sgool.Settings`; the rest takes the
    defaults. Missing weights are downloaded into the folder SGOOL_MODELS names, or ~/.cache/sgool.

    Raises SgoolError for another kind of pipeline, a wrong setting, and weights that cannot be had.
    """

    def __init__(self, pipeline: Any, **settings: Any) -> None:
        check_pipeline(pipeline, f"This {type(pipeline).__name__}")
        if any(hasattr(part, "_hf_hook") for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)):
            raise SgoolError("SGOOL needs the pipeline's networks to stay in place: turn its CPU offload off.")
        own = str(getattr(pipeline, "name_or_path", "")) == str(tiny.MODEL)
        self.settings = resolve(settings, model="tiny" if own else "")
        self.backend = DiffusersBackend(pipeline, self.settings.memory)
        wanted = needs(self.settings)
        fetch(wanted, default_models_dir())
        self.critics: Critics = load_critics(wanted, default_models_dir(), self.backend.device)

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        image: Image | Tensor | None = None,
        mask: Image | Tensor | None = None,
        progress: Progress | None = None,
    ) -> Improved:
        """Make and improve one image; see `improve`.

        mask: an image of the same size, white where to zoom in; for zoom=True and zoom_by="mask".
        """
        check_prompts(prompt, negative_prompt)
        check_seed(seed)
        settings = self.settings if image is None else self.settings.changed(start="image")
        given = None if image is None else _pixels(image)
        where = None if mask is None else _pixels(mask).mean(1)[0]
        given, where = at_size(given, where, settings, self.backend.size)
        restore = self.backend.prepare()
        try:
            # A caller's no_grad or inference mode must not reach the run.
            with torch.inference_mode(False), torch.enable_grad():
                only = given is not None and only_zooms(settings)
                latent = None if given is None or only else self.backend.encode(given)
                request = Request(prompt, negative_prompt, seed, latent)
                if given is not None and only:
                    result = as_given(given, self.critics, prompt, settings)
                else:
                    result = generate(self.backend, self.critics, request, settings, progress)
                zoomed = None
                if settings.zoom:
                    painter = Painter(self.backend, self.critics, request, settings, progress)
                    zoomed = zoom_in(Picture(result.best.image, prompt, where), self.critics, settings, painter)
                    score = self.critics.selector.judge(zoomed.image, prompt)
        finally:
            restore()
        improved = _improved(result, seed, settings)
        if zoomed is None:
            return improved
        return replace(improved, image=_picture(zoomed.image), score_after=score, zoomed=zoomed)


def improve(
    pipeline: Any,
    prompt: str,
    *,
    negative_prompt: str = "",
    seed: int = 0,
    image: Image | Tensor | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Improved:
    """Make an image with a diffusers pipeline and improve its starting latent.

    Arguments:
        pipeline: a StableDiffusionPipeline; it is left as it was. `Improver` loads the critics once for several images.
        prompt, negative_prompt: what the image should and should not show.
        seed: of SGOOL's own starting noise, which is not diffusers' for the same number.
        image: an image to improve instead, as a PIL image or a tensor [1, 3, H, W] in [0, 1].
        progress: hears of every step and image, and may raise `sgool.Stop` to end the run with the best image so far.
        settings: names and values of `sgool.Settings`.

    Returns: the first and the best image, their scores, and the latent.

    Raises SgoolError for input that cannot be used. A failure after the first image does not raise: see
    `Improved.result.ending` and `.error`.
    """
    return Improver(pipeline, **settings)(
        prompt, negative_prompt=negative_prompt, seed=seed, image=image, progress=progress
    )


def _pixels(image: Image | Tensor) -> Tensor:
    if isinstance(image, Tensor):
        if image.ndim != 4 or image.shape[:2] != (1, 3) or 0 in image.shape:
            raise SgoolError(f"An image tensor has the shape [1, 3, H, W], not {list(image.shape)}.")
        return image.detach().float().clamp(0, 1)
    if not hasattr(image, "convert"):
        raise SgoolError(f"The initial image must be a PIL image or a tensor, not a {type(image).__name__}.")
    import numpy as np

    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255).permute(2, 0, 1)[None]


def _picture(image: Tensor) -> Image:
    from PIL import Image

    return Image.fromarray(to_uint8(image))


def _improved(result: Result, seed: int, settings: Settings) -> Improved:
    first, best = result.first, result.best
    return Improved(
        _picture(first.image),
        _picture(best.image),
        first.score,
        best.score,
        best.latent,
        first.saliency,
        best.regions,
        seed,
        settings,
        result,
    )
