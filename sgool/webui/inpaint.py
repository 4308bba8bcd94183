"""The WebUI's own inpainting of "only masked", in a pass of its own on one finished image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import devices, extra_networks, processing
from PIL import Image, ImageDraw
from torch import Tensor

from sgool.errors import SgoolError
from sgool.region import Region
from sgool.webui import interrupts
from sgool.webui.hosts import host
from sgool.webui.innerpass import inner_pass
from sgool.zoom.paint import FEATHER


@dataclass(frozen=True)
class Area:
    """What is painted again. mask: a picture "L" of the image's size, white is painted. blur: how far its edge is
    softened, in pixels (a Gaussian's sigma). padding: pixels around it that the model also sees.
    """

    mask: Image.Image
    blur: int = 0
    padding: int = 0

    @classmethod
    def of(cls, region: Region, size: tuple[int, int]) -> Area:
        """The area whose softened edge ends where the region ends. size: the image's width and height."""
        blur = max(1, round(FEATHER * min(region.height, region.width) / 2.5))
        if min(region.height, region.width) <= 2 * _reach(blur) + 2:
            blur = 0
        seam = _reach(blur)
        bottom, right = region.top + region.height, region.left + region.width
        left, top = region.left and region.left + seam, region.top and region.top + seam
        right, bottom = right - seam * (right < size[0]), bottom - seam * (bottom < size[1])
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
        return cls(mask, blur)


class Inpainter:
    """Paints areas of one image of p's batch again, with p's own sampler, steps, seed and size.

    number: the image's number within the generation. strength: the denoising strength. count: hears of every step.
    """

    def __init__(self, p: Any, number: int, strength: float, count: Callable[[int], None]) -> None:
        self.p = p
        self.number = number
        self.strength = strength
        self.count = count

    def paint(
        self,
        image: Image.Image,
        area: Area,
        prompt: str,
        offset: int = 0,
        improve: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> Image.Image:
        """The image (RGB) with the area painted again, of the same size. offset: of the image's seed.

        improve: gets the pass's own processing object and its latent [1, 4, h, w], and gives a better one. Raises Stop
        where the user stops it, and SgoolError where nothing comes out.
        """
        inner = self._processing(image, area, prompt, offset)
        if improve:
            _improve_after(inner, improve)
        with inner_pass(self.p, inner, self.count):
            try:
                painted = processing.process_images_inner(inner).images
            except devices.NansException as error:
                flag = host().full_precision
                raise SgoolError(f"The model paints it as NaN; use a higher precision ({flag}).") from error
        interrupts.check()
        if not painted or painted[0].size != image.size:
            raise SgoolError("The WebUI's inpainting gave no picture.")
        return painted[0].convert("RGB")

    def _processing(self, image: Image.Image, area: Area, prompt: str, offset: int) -> Any:
        """Without scripts: no other extension takes part."""
        p, number = self.p, self.number
        inner = processing.StableDiffusionProcessingImg2Img(
            sd_model=p.sd_model,
            outpath_samples=p.outpath_samples,
            outpath_grids=p.outpath_grids,
            prompt=with_networks(prompt, p.all_prompts[number]),
            negative_prompt=p.all_negative_prompts[number],
            seed=int(p.all_seeds[number]) + offset,
            subseed=int(p.all_subseeds[number]) + offset,
            subseed_strength=p.subseed_strength,
            seed_resize_from_h=p.seed_resize_from_h,
            seed_resize_from_w=p.seed_resize_from_w,
            sampler_name=p.sampler_name,
            scheduler=p.scheduler,
            steps=p.steps,
            cfg_scale=p.cfg_scale,
            eta=p.eta,
            width=p.width,
            height=p.height,
            restore_faces=False,
            tiling=False,
            do_not_save_samples=True,
            do_not_save_grid=True,
            do_not_reload_embeddings=True,
            disable_extra_networks=p.disable_extra_networks,
            init_images=[image],
            denoising_strength=self.strength,
            mask=area.mask,
            mask_blur=area.blur,
            inpainting_fill=1,  # begin with what is there
            inpaint_full_res=True,
            inpaint_full_res_padding=area.padding,
        )
        inner.scripts = host().no_scripts()
        inner.cached_c, inner.cached_uc = [None, None], [None, None]  # not those of the class
        return inner


def with_networks(prompt: str, whole: str) -> str:
    """The prompt with the extra networks (`<lora:name:1>`) of the image's whole prompt that it does not name itself."""
    own = {_network(tag) for tag in extra_networks.re_extra_net.finditer(prompt)}
    others = [tag for tag in extra_networks.re_extra_net.finditer(whole) if _network(tag) not in own]
    return prompt + "".join(tag[0] for tag in others)


def _network(tag: Any) -> tuple[str, str]:
    return tag[1], tag[2].partition(":")[0]


def _reach(blur: int) -> int:
    """How many pixels the WebUI's blur of a mask reaches."""
    return int(2.5 * blur + 0.5) if blur else 0


def _improve_after(inner: Any, improve: Callable[[Any, Tensor], Tensor]) -> None:
    sample = inner.sample
    inner.sample = lambda *args, **kwargs: improve(inner, sample(*args, **kwargs))
