"""Painting a place again with a diffusion model of one's own, at the model's full resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sgool.backends import ImageBackend
from sgool.checks import SEEDS
from sgool.errors import SgoolError
from sgool.generate import Critics, Request, generate, kept_noises
from sgool.guidance.loss import crop
from sgool.region import Region
from sgool.result import Progress
from sgool.samplers import SAMPLERS, Trajectory, get_sampler
from sgool.settings import Settings
from sgool.zoom.place import Place

FEATHER = 1 / 10
"""How wide the seam is, as a share of a place's shorter side."""


class Painter:
    """Paints places with a backend: a place is scaled to the model's size, its latent noised to the strength and
    sampled (SDEdit, arXiv 2108.01073), and then improved by SGOOL where the settings say so.

    request: of the image; its prompt is not used. unet_evals, forward_equivalents: what all places have cost so far,
    counted as in `sgool.result.Result`.
    """

    def __init__(
        self,
        backend: ImageBackend,
        critics: Critics,
        request: Request,
        settings: Settings,
        progress: Progress | None = None,
    ) -> None:
        self.backend = backend
        self.critics = critics
        self.request = request
        self.settings = settings
        self.progress = progress or Progress()
        self.unet_evals = 0
        self.forward_equivalents = 0

    def __call__(self, image: Tensor, place: Place, number: int) -> Tensor:
        """See `sgool.zoom.place.Paint`."""
        region = place.region
        scaled = F.interpolate(crop(image, region), self.backend.size, mode="bicubic", antialias=True).clamp(0, 1)
        seed = (self.request.seed + number) % SEEDS
        latent = self._paint(self.backend.encode(scaled), place, seed)
        painted = self.backend.decode(latent.float())
        if not torch.isfinite(painted).all():
            raise SgoolError("The decoder returned NaN or infinite values; use a higher precision.")
        painted = painted.clamp(0, 1)
        small = F.interpolate(painted, (region.height, region.width), mode="bicubic", antialias=True).clamp(0, 1)
        return pasted(image, small.to(image), region)

    def _paint(self, latent: Tensor, place: Place, seed: int) -> Tensor:
        settings = self.settings
        network = self.backend.network(place.prompt, self.request.negative_prompt, settings.guidance_scale)
        # The shears run backwards, which is not needed here, and DDIM is the plainest sampler on their timesteps.
        few = settings.sampler != "auto" and SAMPLERS[settings.sampler].spacing != "leading"
        sampler = get_sampler(settings.sampler if few else "ddim")
        schedule = sampler.schedule(self.backend.alphas_cumprod, settings.steps)
        node = sampler.start_node(schedule, settings.zoom_strength)
        noise = self.backend.noise(seed)
        noises = kept_noises(self.backend, seed, sampler.noises(schedule))
        trajectory = Trajectory(sampler, schedule, network, node, noises)
        noisy = schedule.a[node] * latent + schedule.sigma[node] * noise
        painted = trajectory.image(trajectory.run(trajectory.initial(noisy), self.progress.step))
        self.unet_evals += network.evals_forward
        self.forward_equivalents += network.evals_forward
        if not settings.zoom_iterations:
            return painted
        request = Request(place.prompt, self.request.negative_prompt, seed, painted)
        own = settings.changed(
            start="image",
            candidates=1,
            method="sgool",
            iterations=settings.zoom_iterations,
            sampler=settings.sampler if sampler.invertible else "auto",
            steps=settings.steps if sampler.invertible else max(2, settings.steps),
        )
        with torch.enable_grad():
            result = generate(self.backend, self.critics.inside(place.region), request, own, self.progress)
        self.unet_evals += result.unet_evals
        self.forward_equivalents += result.forward_equivalents
        return result.best.latent


def pasted(image: Tensor, patch: Tensor, region: Region) -> Tensor:
    """The image [1, 3, H, W] with the patch [1, 3, height, width] in the region; the seam lies inside the region,
    except at the image's border. Outside the region the pixels stay exactly as they were.
    """
    alpha = feather(region, *image.shape[-2:]).to(image)
    result = image.clone()
    rows, columns = slice(region.top, region.top + region.height), slice(region.left, region.left + region.width)
    result[..., rows, columns] = torch.lerp(image[..., rows, columns], patch, alpha)
    return result


def feather(region: Region, height: int, width: int) -> Tensor:
    """[region.height, region.width]: 1 inside, falling to the sides that are not the image's border, above 0."""
    seam = max(1.0, FEATHER * min(region.height, region.width))

    def ramp(start: int, length: int, whole: int) -> Tensor:
        at = torch.arange(length, dtype=torch.float32) + 1
        low = at / (seam + 1) if start > 0 else torch.ones(length)
        high = at.flip(0) / (seam + 1) if start + length < whole else torch.ones(length)
        return torch.minimum(low, high).clamp(max=1)

    return torch.minimum(ramp(region.top, region.height, height)[:, None], ramp(region.left, region.width, width)[None])
