"""From settings to a run: which trajectory, loss, update and critics they ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sgool.backends import Backend
from sgool.checkpointing import MEMORY, checkpoint
from sgool.checks import SEEDS, as_folder, check_kind, check_seed, check_tensor, check_text, shown, usable_device
from sgool.detect import Detector, PromptDetector
from sgool.errors import NotRepeatable, SgoolError
from sgool.guidance import Critic, load_critic
from sgool.guidance.loss import DOODL, SaliencyLoss, Whole
from sgool.guidance.maps import MAPS
from sgool.guidance.prompt import clean_prompt
from sgool.needs import Needs
from sgool.optimize import Plan, Problem, Regions, Start, optimize
from sgool.presets import invertible
from sgool.pull import Pull, Pulled
from sgool.region import Region
from sgool.result import Ending, Progress, Result, Stop
from sgool.saliency import load_detector
from sgool.saliency.faces import FaceFinder
from sgool.saliency.regions import find_regions
from sgool.samplers import Sampler, Schedule, Trajectory, bdia, get_sampler
from sgool.settings import SettingError, Settings
from sgool.update import DoodlUpdate, Prior, SgoolUpdate, Update
from sgool.weak import WeakPhrases

CANDIDATE_STRIDE = 1_000_003
"""Between the seeds of the candidates, so that those of neighboring seeds differ. A candidate is that seed's image."""

MOST_TOGETHER = 8
"""Images made at once. More of them hardly save time, and an Interrupt would lose more of them."""

NOISE_STRIDE = 1_000_000_007
"""Between the seeds of the noises that a sampler adds between its steps."""

SMALLEST = 8
"""The shortest side of a latent; its image has 64 pixels. A smaller one has no room for regions and cutouts."""

AUTO = {"seed": "bdia", "image": "o-belm"}
"""The sampler that suits each start. Damping stabilizes sampling but amplifies inversion, so an image start uses an
undamped sampler."""


@dataclass(frozen=True)
class Critics:
    """The frozen networks of a run besides the diffusion model.

    guide: the critic that is optimized. selector: another one, which is not, and picks the best image. detector: finds
    where people look. faces: finds faces, where they are looked for; it stays on the CPU.
    """

    guide: Critic
    selector: Critic
    detector: Detector
    faces: FaceFinder | None = None

    def inside(self, region: Region) -> Critics:
        """The same for a part of the image that is looked at by itself."""
        return replace(self, detector=self.detector.part(region))

    def to(self, device: torch.device, half: bool | None = None) -> Critics:
        """The same networks, moved to another device. half: of the critics, see `Critic.to`."""
        with torch.inference_mode(False):
            self.guide.to(device, half)
            self.selector.to(device, half)
            self.detector.to(device)
        return self


@dataclass(frozen=True)
class Sampling:
    """How a host has sampled an image: noises as `Trajectory` takes them."""

    sampler: Sampler
    schedule: Schedule
    noises: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Request:
    """What an image is made from. init_latent: [1, 4, h, w], the latent to start from, for the start "image".

    sampling: what to sample with instead of the settings' sampler and steps.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    init_latent: Tensor | None = None
    sampling: Sampling | None = None

    def check(self, settings: Settings) -> None:
        """Raises SgoolError for prompts that cannot be read or say nothing, for a seed out of range, for a latent that
        is none, and where start and init_latent do not fit.
        """
        check_kind(settings, Settings, "The settings must be a sgool.Settings")
        check_prompts(self.prompt, self.negative_prompt)
        check_seed(self.seed)
        check_start(settings, self.init_latent is not None)
        if self.init_latent is not None and settings.method == "baseline":
            raise _only_from_a_seed()
        if self.init_latent is not None:
            check_tensor(self.init_latent, 4, "The initial latent")
            if min(self.init_latent.shape[2:]) < SMALLEST:
                raise SgoolError(f"The initial latent's sides must be at least {SMALLEST}.")


def check_prompts(prompt: str, negative_prompt: str) -> None:
    """Raises SgoolError for prompts that cannot be read or say nothing."""
    check_text(prompt, "The prompt")
    check_text(negative_prompt, "The negative prompt")
    if not clean_prompt(prompt):
        raise SgoolError("The prompt is empty: say what the image should show.")


def check_progress(progress: object) -> None:
    """Raises SgoolError for what is neither a Progress nor None."""
    if progress is not None:
        check_kind(progress, Progress, "The progress must be a sgool.Progress or None")


def check_start(settings: Settings, image: bool) -> None:
    """Raises SgoolError where the start is an image and there is none, or the other way round."""
    if (settings.start == "image") != image:
        raise SettingError("start", "image and an initial image go together: give both or neither")
    if image and settings.method == "baseline" and not settings.zoom:
        raise _only_from_a_seed()
    if image and not invertible(settings):
        raise SettingError(
            "sampler",
            f"{settings.sampler} draws noise between its steps, so it cannot carry an image back: start from an image "
            "with o-belm or ddim",
        )


def _only_from_a_seed() -> SettingError:
    return SettingError("method", "baseline pulls while a seed is sampled, so it cannot start from an image")


def load_critics(
    wanted: Needs, models_dir: str | os.PathLike[str], device: torch.device | str = "cpu", half: bool | None = None
) -> Critics:
    """The critics and the detectors that are wanted; weights that `sgool.needs.fetch` has not are downloaded now,
    except the face detector's, see `FaceFinder.note`. half: see `Critics.to`.

    Raises SgoolError where the weights cannot be had, and for a folder or a device that cannot be one.
    """
    kept, place = as_folder(models_dir), usable_device(device)
    with torch.inference_mode(False):  # a caller's would make tensors that no gradient can go through
        guide = load_critic(wanted.guide, "guide", kept)
        selector = load_critic(wanted.selector, "selector", kept)
        by_prompt = wanted.detector in MAPS
        detector: Detector = (
            PromptDetector(wanted.detector, [selector, guide])
            if by_prompt
            else load_detector(wanted.detector, kept, place)
        )
        return Critics(guide, selector, detector, FaceFinder(kept) if wanted.faces else None).to(place, half)


def generate(
    backend: Backend, critics: Critics, request: Request, settings: Settings, progress: Progress | None = None
) -> Result:
    """Make one image and optimize its starting latent as the settings say.

    Where a network turns out not to repeat its predictions, a run from a seed begins again with DDIM and stored
    latents. Raises SgoolError for a request that does not fit; see `sgool.optimize.optimize` for failures on the way.
    """
    check_kind(request, Request, "The request must be a Request")
    request.check(settings)
    if not hasattr(backend, "network"):
        raise SgoolError(f"The backend must be a Backend, as DiffusersBackend is, not {shown(backend)}.")
    check_kind(critics, Critics, "The critics must be Critics, as load_critics makes them")
    check_progress(progress)
    attempt = partial(_attempt, backend, critics, request, progress)
    result = attempt(settings)
    if not isinstance(result.error, NotRepeatable) or request.init_latent is not None:
        return result
    begun = result
    try:
        result = attempt(settings.changed(sampler="ddim"))
    except (Stop, KeyboardInterrupt):
        begun.error, begun.ending = None, Ending.INTERRUPTED
        return begun
    except SgoolError:
        return begun
    result.unet_evals += begun.unet_evals
    result.unet_gradients += begun.unet_gradients
    result.seconds += begun.seconds
    result.stored_latents = True
    return result


def _attempt(
    backend: Backend, critics: Critics, request: Request, progress: Progress | None, settings: Settings
) -> Result:
    guide = critics.guide.fresh()
    loss = make_loss(guide, request.prompt, settings)
    trajectory = make_trajectory(backend, request, settings)
    if settings.method == "baseline":
        trajectory.network = pulled(backend, trajectory, loss, request, settings)
    problem = Problem(
        backend,
        trajectory,
        loss,
        make_regions(replace(critics, guide=guide), request.prompt, settings),
        critics.selector,
    )
    plan = Plan(
        settings.updates,
        make_update(trajectory, request, settings),
        settings.patience,
        request.seed,
        1 if request.init_latent is not None else settings.candidates,
        together(backend, settings),
    )
    undo = checkpoint(list(guide.blocks()) if MEMORY[settings.memory].decoder else [])
    try:
        return optimize(problem, _start(backend, trajectory, request, progress or Progress()), plan, progress)
    finally:
        undo()


def make_trajectory(backend: Backend, request: Request, settings: Settings) -> Trajectory:
    """The request's sampling, or the settings' sampler, on the backend's network, from where the strength says.

    Noises between the steps come from the request's seed.
    """
    network = backend.network(request.prompt, request.negative_prompt, settings.guidance_scale)
    own = request.sampling or make_sampling(backend, request.seed, settings)
    start = own.sampler.start_node(own.schedule, settings.strength)
    return Trajectory(own.sampler, own.schedule, network, start, own.noises, settings.way_back)


def make_sampling(backend: Backend, seed: int, settings: Settings) -> Sampling:
    """The sampler of the settings on its own schedule, with the noises of the seed."""
    sampler = make_sampler(settings)
    schedule = sampler.schedule(backend.alphas_cumprod, settings.steps)
    return Sampling(sampler, schedule, kept_noises(backend, seed, sampler.noises(schedule)))


def kept_noises(backend: Backend, seed: int, count: int) -> list[Tensor]:
    """So many noises between the steps of a seed's run, each [1, 4, h, w]."""
    return [backend.noise((seed + NOISE_STRIDE * number) % SEEDS) for number in range(1, count + 1)]


def make_sampler(settings: Settings) -> Sampler:
    """The sampler that the settings ask for, "auto" resolved; BDIA is undamped from an image (see `AUTO`).

    Where a method only samples, nothing goes back from a seed, and DDIM does; an image is still carried back, to come
    out as it is.
    """
    plain = settings.method in ("baseline", "none") and settings.start == "seed"
    auto = "ddim" if plain else AUTO[settings.start]
    name = auto if settings.sampler == "auto" else settings.sampler
    return bdia.sampler(gamma=1.0) if (name, settings.start) == ("bdia", "image") else get_sampler(name)


def make_loss(guide: Critic, prompt: str, settings: Settings) -> SaliencyLoss:
    """The loss of the settings' method."""
    if settings.method == "doodl":
        return SaliencyLoss(guide, prompt, whole=DOODL, saliency_weight=0.0)
    if settings.method == "baseline":
        return SaliencyLoss(guide, prompt, whole=Whole(settings.cutouts), saliency_weight=0.0)
    return SaliencyLoss(
        guide,
        prompt,
        whole=Whole(settings.cutouts),
        region_prompts=settings.region_prompt,
        match_phrases=settings.region_match != "prompt",
        saliency_weight=settings.saliency_weight,
    )


def pulled(
    backend: Backend, trajectory: Trajectory, loss: SaliencyLoss, request: Request, settings: Settings
) -> Pulled:
    """The trajectory's network, whose predictions the guide pulls at every step (the method baseline)."""
    pull = Pull(loss, backend.decode, settings.guide_scale, settings.way_back, request.seed)
    return Pulled(trajectory.network, trajectory.schedule, pull)


def make_update(trajectory: Trajectory, request: Request, settings: Settings) -> Update:
    """The update of the settings' method. White noise is the prior only where the state is the seed's own noise."""
    from_image = request.init_latent is not None
    if settings.method == "doodl":
        generator = torch.Generator().manual_seed(~request.seed)  # not the starting noise once more
        return DoodlUpdate(renormalize=not from_image, generator=generator)
    return SgoolUpdate(
        None if from_image or trajectory.start_node else Prior.gaussian(),
        learning_rate=settings.learning_rate,
        rule=settings.rule,
        warmup=settings.warmup,
        regularization=settings.regularization,
    )


def together(backend: Backend, settings: Settings) -> int:
    """How many candidates are made at once: one, where each needs a graph of its decoder."""
    if settings.method == "baseline":
        return 1
    height, width = backend.size
    return max(1, min(MOST_TOGETHER, MEMORY[settings.memory].pixels // (height * width)))


def abreast(size: tuple[int, int], settings: Settings) -> int:
    """How many images of this size (height, width) are improved at once."""
    return max(1, min(MOST_TOGETHER, MEMORY[settings.memory].graphs // (size[0] * size[1])))


def _start(backend: Backend, trajectory: Trajectory, request: Request, progress: Progress) -> Start:
    def from_image(numbers: Sequence[int]) -> tuple[Trajectory, list[Tensor]]:
        assert request.init_latent is not None
        return trajectory, trajectory.invert(request.init_latent.to(backend.device), progress.step)

    def from_seeds(numbers: Sequence[int]) -> tuple[Trajectory, list[Tensor]]:
        seeds = [(request.seed + CANDIDATE_STRIDE * number) % SEEDS for number in numbers]
        noises = torch.cat([backend.noise(seed) for seed in seeds])
        count = len(trajectory.noises)
        kept = [
            kept_noises(backend, seed, count) if number else trajectory.noises
            for number, seed in zip(numbers, seeds, strict=True)
        ]
        own = trajectory.with_noises([torch.cat(each) for each in zip(*kept, strict=True)])
        return own, own.from_noise(noises, progress.step)

    return from_seeds if request.init_latent is None else from_image


def make_regions(critics: Critics, prompt: str, settings: Settings) -> Regions:
    """Where the method looks. Raises SgoolError where weak phrases are asked for and no critic can tell them."""
    find = region_finder(settings)
    counted = settings.method == "sgool" and settings.updates > 0 and settings.saliency_weight > 0
    weak = settings.region_match == "weak-phrases" and counted
    complete = WeakPhrases([critics.selector, critics.guide], prompt, find, settings.max_regions) if weak else None
    return Regions(critics.detector.of(prompt), find, settings.refresh, complete)


def region_finder(settings: Settings) -> Callable[[Tensor], Sequence[Region]]:
    """From a saliency map [H, W] to its regions, as the settings ask."""
    return partial(
        find_regions,
        max_regions=settings.max_regions,
        threshold=settings.threshold,
        min_size=settings.min_size,
        padding=settings.padding,
    )
