"""img2img without its pass: the uploaded picture itself is what SGOOL improves and zooms into.

Where nothing is improved, its very pixels come out, and not what the VAE makes of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from modules import images, processing, shared
from PIL import Image, ImageFilter
from torch import Tensor

from sgool.webui.records import Run

KEEP = 1
"""The WebUI's number for masked content that stays as it is; the others would paint over the picture first."""

LATENT_UPSCALE = 3
"""The WebUI's number for the resize mode that resizes the latent, and not the picture."""


def sample_nothing(p: Any) -> None:
    """In place of the pass over the batch at hand: its latents come out as they were encoded."""
    sampler = p.sampler

    def sample_img2img(p: Any, x: Tensor, *args: Any, image_conditioning: Any = None, **options: Any) -> Tensor:
        sampler.sampler_extra_args = {"image_cond": image_conditioning}
        return x.clone()

    sampler.sample_img2img = sample_img2img


def given(p: Any) -> list[np.ndarray]:
    """The pictures of the batch at hand as the WebUI has encoded them, uint8 [H, W, 3]: at the size of the generation,
    and of "only masked" the part.
    """
    pictures = [np.array(_part(p, _whole(p, image)).convert("RGB")) for image in p.init_images]
    return pictures * p.batch_size if len(pictures) == 1 else pictures


def put_back(p: Any, run: Run, decoded: Tensor) -> None:
    """In the batch's images [B, 3, H, W] in [0, 1], as the VAE has decoded them: the pixels of those not improved."""
    for i in range(len(decoded)):
        outcome = run.outcomes.get(p.iteration * p.batch_size + i)
        if outcome is not None and outcome.improved:
            continue
        pixels = torch.from_numpy(run.uploaded[i].astype(np.float32)).movedim(-1, 0)
        if pixels.shape == decoded[i].shape:
            decoded[i] = ((pixels + 0.25) / 255).clamp(max=1)  # the WebUI cuts off what is behind the point


def composed(p: Any, run: Run, image: Image.Image) -> Image.Image:
    """The image that the WebUI has put together from the picture and the part that was painted.

    What nobody has changed is the picture's own, to the last bit: a part that is scaled there and back is not.
    """
    number = p.iteration * p.batch_size + p.batch_index
    outcome, zoom = run.outcomes.get(number), run.zooms.get(number)
    overlays = getattr(p, "overlay_images", None)
    if (outcome is not None and outcome.improved) or not overlays or not shared.opts.overlay_inpaint:
        return image
    whole = _whole(p, p.init_images[min(p.batch_index, len(p.init_images) - 1)]).convert("RGB")
    part = run.uploaded[p.batch_index]
    painted = zoom.after if zoom is not None and zoom.kept else part
    expected, _ = processing.apply_overlay(Image.fromarray(painted), p.paste_to, overlays[p.batch_index])
    changed = Image.fromarray((painted != part).any(-1).astype(np.uint8) * 255)
    if p.paste_to is not None:
        left, top, width, height = p.paste_to
        inside = changed.resize((width, height), Image.Resampling.BILINEAR).point(lambda value: 255 * (value > 0))
        changed = Image.new("L", whole.size, 0)
        changed.paste(inside.filter(ImageFilter.MaxFilter(7)), (left, top))  # what resampling reaches
    if not image.size == expected.size == whole.size:
        return image
    ours = np.array(image.convert("RGB"))
    others = (ours != np.array(expected.convert("RGB"))).any(-1)
    plain = ~others & (np.array(changed) == 0)
    return Image.fromarray(np.where(plain[..., None], np.array(whole), ours))


def _whole(p: Any, image: Image.Image) -> Image.Image:
    """The picture before a part is cut out of it."""
    image = images.flatten(image, shared.opts.img2img_background_color)
    if getattr(p, "paste_to", None) is not None:
        return image
    mode = 0 if p.resize_mode == LATENT_UPSCALE else p.resize_mode
    return images.resize_image(mode, image, p.width, p.height)


def _part(p: Any, image: Image.Image) -> Image.Image:
    part = getattr(p, "paste_to", None)
    if part is None:
        return image
    left, top, width, height = part
    return images.resize_image(2, image.crop((left, top, left + width, top + height)), p.width, p.height)
