"""From parameters to a run: which trajectory, loss, update and selector the settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgool import tiny
from sgool.backends import Backend
from sgool.errors import NotRepeatable, SgoolError
from sgool.guidance.clip import Clip, load_clip, load_clip_folder
from sgool.guidance.loss import SaliencyLoss, doodl_loss
from sgool.guidance.prompt import clean_prompt
from sgool.optimize import INTERRUPTED, Regions, Result, Snapshot, Stop, optimise
from sgool.saliency import LoadedDetector, load_detector
from sgool.saliency.regions import Region, find_regions
from sgool.samplers import Trajectory, bdia, get_sampler, make_schedule
from sgool.update import DoodlUpdate, Prior, SgoolUpdate, Update

SEEDS = 2**63
"""Seeds lie below this."""

CANDIDATE_STRIDE = 1_000_003
"""Between the seeds of the candidates, so that those of neighbouring seeds differ."""

AUTO = {"noise": "bdia", "image": "o-belm"}
"""The sampler that suits each start: what damps the way to the image would amplify the way back from one."""


@dataclass(frozen=True)
class Guides:
    """The frozen networks of a run besides the diffusion model."""

    clip: Clip
    selector: Clip
    detect: LoadedDetector

    def to(self, device: torch.device) -> Guides:
        """The same, moved to another device."""
        for network in (self.clip, self.selector, self.detect):
            network.to(device)
        return self


def load_guides(values: Mapping[str, Any], models_dir: Path, device: torch.device | str = "cpu") -> Guides:
    """The CLIPs and the detector that the settings name; weights that are missing are downloaded into models_dir.

    Without saliency in the loss (method doodl or none, or weight 0) no saliency weights are needed for the crops, but
    the map is still drawn, by the detector that needs none.
    """

    def clip(model: str, tag: str, embedded: str) -> Clip:
        if model == "embedded":
            return load_clip_folder(tiny.CLIPS[embedded], device=device)
        return load_clip(model, tag, models_dir=models_dir, device=device)

    salient = values["method"] == "sgool" and values["saliency_weight"] > 0
    return Guides(
        clip(values["clip_model"], values["clip_tag"], "guide"),
        clip(values["selector_model"], values["selector_tag"], "selector"),
        load_detector(values["saliency"] if salient else "spectral", models_dir, device),
    )


def check(prompt: str, negative_prompt: str, values: Mapping[str, Any], image: bool) -> None:
    """Raises SgoolError for prompts that cannot be read or say nothing, and where start and image do not fit.

    image: whether there is one to start from.
    """
    try:
        (prompt + negative_prompt).encode()
    except UnicodeEncodeError as error:
        raise SgoolError("The prompt holds bytes that are no text (UTF-8).") from error
    if not clean_prompt(prompt):
        raise SgoolError("The prompt is empty: say what the image shall show.")
    if (values["start"] == "image") != image:
        raise SgoolError("The start from an image and an initial image go together: give both or neither.")


def generate(
    backend: Backend,
    guides: Guides,
    prompt: str,
    values: Mapping[str, Any],
    *,
    negative_prompt: str = "",
    seed: int = 0,
    init_latent: Tensor | None = None,
    on_image: Callable[[Result, Snapshot], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Result:
    """One image from a prompt, its starting latent optimised as `values` (of `sgool.settings.settings`) say.

    init_latent: [1, 4, h, w], the latent of the image to start from, for the start "image". Where a network turns out
    not to repeat its predictions, a run from noise begins again with DDIM and stored latents. Raises SgoolError for an
    empty prompt and where the start does not fit; see `sgool.optimize.optimise` for failures on the way.
    """
    attempt = partial(_attempt, backend, guides, prompt, negative_prompt, seed, init_latent, on_image, on_step)
    result = attempt(values)
    if isinstance(result.error, NotRepeatable) and values["start"] == "noise":
        begun = result
        try:
            result = attempt({**values, "sampler": "ddim"})
        except (Stop, KeyboardInterrupt):
            begun.error, begun.ended = None, INTERRUPTED
            return begun
        except SgoolError:
            return begun
        result.unet_evals, result.seconds = result.unet_evals + begun.unet_evals, result.seconds + begun.seconds
        told = "The network does not repeat its predictions exactly, so the latents of all steps were stored."
        result.ended = f"{result.ended} {told}".strip()
    return result


def _attempt(
    backend: Backend,
    guides: Guides,
    prompt: str,
    negative_prompt: str,
    seed: int,
    init_latent: Tensor | None,
    on_image: Callable[[Result, Snapshot], None] | None,
    on_step: Callable[[int, int], None] | None,
    values: Mapping[str, Any],
) -> Result:
    check(prompt, negative_prompt, values, init_latent is not None)
    method = values["method"]
    network = backend.network(prompt, negative_prompt, values["guidance_scale"])
    schedule = make_schedule(backend.alphas_cumprod, values["steps"])
    sampler = get_sampler(sampler_name(values))
    if sampler.name == "bdia" and init_latent is not None:
        sampler = bdia.sampler(gamma=1.0)  # what damps the way to the image would amplify the way back from it
    generator = torch.Generator().manual_seed(~seed)  # not the starting noise once more
    trajectory = Trajectory(sampler, schedule, network, sampler.start_node(schedule, values["strength"]))
    update: Update = SgoolUpdate(
        Prior.gaussian() if init_latent is None and trajectory.start_node == 0 else None,
        learning_rate=values["learning_rate"],
        rule=values["rule"],
        warmup=values["warmup"],
        regularisation=values["regularisation"],
    )
    loss = SaliencyLoss(
        guides.clip,
        prompt,
        region_prompts=values["region_prompt"],
        match_phrases=values["region_match"] == "phrases",
        saliency_weight=values["saliency_weight"],
        cutouts=values["cutouts"],
    )
    if method == "doodl":
        update = DoodlUpdate(renormalise=init_latent is None, generator=generator)
        loss = doodl_loss(guides.clip, prompt)

    def start(number: int) -> list[Tensor]:
        if init_latent is not None:
            return trajectory.invert(init_latent, on_step)
        return trajectory.from_noise(backend.noise((seed + CANDIDATE_STRIDE * number) % SEEDS), on_step)

    return optimise(
        backend,
        trajectory,
        [partial(start, number) for number in range(values["candidates"] if init_latent is None else 1)],
        iterations=0 if method == "none" else values["iterations"],
        loss=loss,
        regions=Regions(guides.detect, region_finder(values), values["refresh"]),
        select=lambda image: guides.selector.similarity(image, prompt),
        guide=lambda image: guides.clip.similarity(image, prompt),
        update=update,
        patience=values["patience"],
        seed=seed,
        on_image=on_image,
        on_step=on_step,
    )


def sampler_name(values: Mapping[str, Any]) -> str:
    """The sampler that the settings ask for, "auto" resolved."""
    return AUTO[values["start"]] if values["sampler"] == "auto" else values["sampler"]


def region_finder(values: Mapping[str, Any]) -> Callable[[Tensor], Sequence[Region]]:
    """From a saliency map [H, W] to its regions, as the settings ask."""
    names = ("max_regions", "threshold", "min_size", "padding")
    return partial(find_regions, **{name: values[name] for name in names})
