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
from sgool.checks import check_seed, check_tensor
from sgool.detect import MaskDetector
from sgool.errors import SgoolError, brief
from sgool.generate import Critics, Request, check_progress, check_prompts, generate, load_critics
from sgool.guidance.half import is_half
from sgool.needs import fetch, needs
from sgool.phrases import measure
from sgool.pictures import to_uint8
from sgool.presets import only_zooms, resolve
from sgool.region import Region
from sgool.result import Progress, Result
from sgool.settings import ABOUT, SettingError, Settings
from sgool.weights import default_models_dir
from sgool.zoom import Picture, Zoomed, zoom_in
from sgool.zoom.given import as_given, at_size, check_look, check_zoom, mask_at_size, zooms_on_mask
from sgool.zoom.paint import Painter

BEYOND = 0.5
"""How far the values of an image tensor may lie outside [0, 1], as a decoder's do; more is another scale."""

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Improved:
    """What `improve` returns. Scores are the selector's, the higher the better; `result` holds all images and losses.

    before, image: the seed's (or the given) image as SGOOL's sampler makes it, and the best one. latent: [1, 4, h, w],
    float64, of the best image before any zoom; empty where a given image was only zoomed into. saliency: [H, W] in
    [0, 1], where people look in the first image, or None. regions: of the best image. seed, settings: what the run was
    made with. zoomed: the places that were painted again; None without zoom. How much of each phrase of the prompt the
    two show is in `result.phrases`.
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
        if names := [name for name in settings if name in ABOUT and not ABOUT[name].cli]:
            raise SettingError(names[0], "belongs to the WebUI alone")
        own = str(getattr(pipeline, "name_or_path", "")) == str(tiny.MODEL)
        self.settings = resolve(settings, model="tiny" if own else "")
        self.backend = DiffusersBackend(pipeline, self.settings.memory)
        wanted = needs(self.settings)
        fetch(wanted, default_models_dir())
        self.critics: Critics = load_critics(
            wanted, default_models_dir(), self.backend.device, is_half(self.backend.dtype)
        )

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

        mask: an image of the same size, white where to zoom in (zoom=True and zoom_by="mask") or where to look
        (saliency="mask").
        """
        settings = self.settings if image is None else self.settings.changed(start="image")
        restore = self.backend.prepare()
        try:
            # A caller's no_grad or inference mode must not reach the run.
            with torch.inference_mode(False), torch.enable_grad():
                given = _checked(prompt, negative_prompt, seed, image, progress)
                where = self._where(mask, given, settings)
                critics = self.critics
                if where is not None and settings.saliency == "mask":
                    critics = replace(critics, detector=MaskDetector(where))
                request = Request(prompt, negative_prompt, seed)
                result = self._made(critics, request, at_size(given, settings, self.backend.size), settings, progress)
                improved, after = _improved(result, seed, settings), result.best.image
                if settings.zoom:
                    painter = Painter(self.backend, critics, request, settings, progress)
                    own = where if zooms_on_mask(settings) else None
                    zoomed = zoom_in(Picture(after, prompt, own), critics, settings, painter)
                    score, after = critics.selector.judge(zoomed.image, prompt), zoomed.image
                    improved = replace(improved, image=_picture(after), score_after=score, zoomed=zoomed)
                if settings.show_phrases:
                    result.phrases = measure([critics.selector, critics.guide], [result.first.image, after], prompt)
                return improved
        finally:
            restore()

    def _where(self, mask: Image | Tensor | None, image: Tensor | None, settings: Settings) -> Tensor | None:
        """The mask [H, W] at the size of the image to be. Raises SgoolError where settings and mask do not fit."""
        check = check_look if settings.saliency == "mask" else check_zoom
        check(settings, mask is not None)
        if mask is None:
            return None
        return mask_at_size(_pixels(mask, "mask").mean(1)[0], image, settings, self.backend.size)

    def _made(
        self,
        critics: Critics,
        request: Request,
        image: Tensor | None,
        settings: Settings,
        progress: Progress | None,
    ) -> Result:
        """The image, or the given one, improved as a whole."""
        if image is not None and only_zooms(settings):
            return as_given(image, critics, request.prompt, settings)
        latent = None if image is None else self.backend.encode(image)
        return generate(self.backend, critics, replace(request, init_latent=latent), settings, progress)


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
    _checked(prompt, negative_prompt, seed, image, progress)  # before anything is downloaded
    return Improver(pipeline, **settings)(
        prompt, negative_prompt=negative_prompt, seed=seed, image=image, progress=progress
    )


def _checked(prompt: str, negative_prompt: str, seed: int, image: Any, progress: Any) -> Tensor | None:
    """The image's pixels [1, 3, H, W], or None without one. Raises SgoolError for input that cannot be used."""
    check_prompts(prompt, negative_prompt)
    check_seed(seed)
    check_progress(progress)
    return None if image is None else _pixels(image)


def _pixels(image: Image | Tensor, what: str = "initial image") -> Tensor:
    import numpy as np
    from PIL import Image as pil
    from PIL import ImageOps as pil_ops

    if isinstance(image, Tensor):
        check_tensor(image, 3, "An image tensor")
        low, high = image.min().item(), image.max().item()
        if low < -BEYOND or high > 1 + BEYOND:
            raise SgoolError(f"An image tensor lies in [0, 1], and this one in [{low:.3g}, {high:.3g}].")
        return image.detach().float().clamp(0, 1)
    if not isinstance(image, pil.Image):
        raise SgoolError(f"The {what} must be a PIL image or a tensor, not a {type(image).__name__}.")
    try:
        rgb = pil_ops.exif_transpose(image).convert("RGB")
    except Exception as error:  # a file that is cut short is read only now, and a closed one not at all
        raise SgoolError(f"The {what} cannot be read: {brief(error)}") from error
    return torch.from_numpy(np.asarray(rgb, np.float32) / 255).permute(2, 0, 1)[None]


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
