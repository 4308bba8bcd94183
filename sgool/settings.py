"""Every setting of a run: typed, checked and described here, once.

The command line's flags, the WebUI's controls, the API's schema, the infotext and the X/Y/Z axes are all drawn from
`Settings`. Two contracts follow:

* A label is the key of an infotext (`SGOOL Candidate seeds: 4`). An image made earlier reads back only while its labels
  stay as they are.
* The order of the fields is the order of the API's positional arguments. A new field goes to the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sgool.checkpointing import MEMORY
from sgool.checks import check_kind
from sgool.checks import shown as short
from sgool.errors import SgoolError
from sgool.guidance import CRITICS, check_critic, check_guide, shared
from sgool.saliency import DETECTORS
from sgool.samplers import SAMPLERS, WAYS_BACK, steps_range
from sgool.update import RULES

CLIPS = ("clip:ViT-L-14/openai", "clip:ViT-L-14/datacomp_xl_s13b_b90k", "clip:ViT-H-14/laion2b_s32b_b79k")
"""Larger ones than the critics' own, by size: 0.9, 0.9 and 3.9 GB."""

BOTH = "clip 1, hps-v2.1 1"
"""A guide of the prompt and of people's taste."""

KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class SettingError(SgoolError):
    """A setting that is unknown, or a value that does not fit; `name` is the setting and `problem` what is wrong."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}.")
        self.name = name
        self.problem = problem


@dataclass(frozen=True)
class About:
    """What a setting says about itself.

    label: its name in the WebUI. help: a phrase that holds on the command line and in the WebUI. group: where the
    accordion shows it; "" is at first sight. low, high: inclusive bounds; above: an exclusive one. choices: all there
    are; suggestions: some of many. slider: from, to, step (bounds may be wider, for the API). webui: whether the WebUI
    offers it; cli: whether the command line does. check: raises SgoolError for a text that does not fit.
    """

    label: str
    help: str
    group: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    slider: tuple[float, float, float] | None = None
    webui: bool = True
    cli: bool = True
    check: Callable[[str], None] | None = None


def setting(default: Any, label: str, help: str, **about: Any) -> Any:
    """A field of `Settings`; see `About`."""
    return field(default=default, metadata={"about": About(label, help, **about)})


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Every instance is valid: a wrong value raises SettingError, which names its field."""

    method: str = setting(
        "sgool",
        "Method",
        "sgool: the whole image and where people look; doodl: DOODL's own loss and update; baseline: the guide pulls "
        "at every sampling step, and no noise is optimized; none: sampling only",
        group="Expert",
        choices=("sgool", "doodl", "baseline", "none"),
    )
    sampler: str = setting(
        "auto",
        "Sampler",
        "auto: in the WebUI your own LCM, Euler, Euler a or DDIM of up to 12 steps; else bdia from a seed (ddim "
        "with method none), o-belm from an image; edict too runs backwards exactly; for models of few steps: lcm, "
        "tcd, euler and ddim-trailing (Lightning, Hyper), euler-a (Turbo)",
        group="Expert",
        choices=(*SAMPLERS, "auto"),
    )
    # With more steps, the schedule's whole numbers of timesteps no longer reach the noise.
    steps: int = setting(
        20,
        "Steps",
        "steps of SGOOL's own sampler; where it samples as you do, your steps count; bdia, o-belm, edict and ddim "
        "take at least 2, lcm and tcd at most 50",
        group="Sampling",
        low=1,
        high=250,
        slider=(1, 100, 1),
    )
    iterations: int = setting(
        4,
        "Iterations",
        "how often the starting noise is improved; 0: never",
        low=0,
        high=1000,
        slider=(0, 100, 1),
    )
    start: str = setting(
        "seed",
        "Start from",
        "seed: the seed's noise; image: the finished image, carried back to noise exactly",
        choices=("seed", "image"),
    )
    strength: float = setting(
        0.8,
        "Start strength",
        "share of the sampling steps that is optimized; less keeps more of the first image",
        group="Sampling",
        above=0.0,
        high=1.0,
        slider=(0.05, 1, 0.05),
    )
    candidates: int = setting(
        1,
        "Candidate seeds",
        "starting noises tried first; only the one whose image the critics like best is improved",
        group="Sampling",
        low=1,
        high=1000,
        slider=(1, 16, 1),
    )
    saliency: str = setting(
        "transalnet-res",
        "Saliency detector",
        "what finds where to look; transalnet and spectral: where people do, spectral without a download; grad-cam, "
        "grad-cam++ and legrad: where a CLIP sees the prompt; mask: where you painted",
        choices=tuple(DETECTORS),
    )
    saliency_weight: float = setting(
        0.5,
        "Saliency weight",
        "0: only the whole image counts; 1: only the regions where people look",
        low=0.0,
        high=1.0,
        slider=(0, 1, 0.05),
    )
    region_prompt: str = setting(
        "",
        "Region prompt",
        "what the regions should show; [SEP] gives each region its own; empty: the main prompt",
    )
    region_match: str = setting(
        "phrases",
        "Match regions to",
        "phrases: each region to the phrase of the prompt that suits it best; weak-phrases: likewise, and each phrase "
        "that the image hardly shows gets a region; prompt: every region to the whole prompt",
        group="Regions",
        choices=("phrases", "weak-phrases", "prompt"),
    )
    max_regions: int = setting(
        3, "Regions", "most regions looked at", group="Regions", low=1, high=16, slider=(1, 16, 1)
    )
    threshold: float = setting(
        0.5,
        "Region threshold",
        "how salient a region must be, as a share of the most salient one",
        group="Regions",
        low=0.01,
        high=0.99,
        slider=(0.05, 0.95, 0.05),
    )
    min_size: float = setting(
        0.2,
        "Smallest region",
        "smaller regions grow to this share of the image's shorter side",
        group="Regions",
        low=0.05,
        high=1.0,
        slider=(0.05, 1, 0.05),
    )
    padding: float = setting(
        0.15,
        "Region padding",
        "margin on each side, as a share of the region",
        group="Expert",
        low=0.0,
        high=1.0,
        slider=(0, 1, 0.05),
    )
    refresh: int = setting(
        3,
        "Region refresh interval",
        "iterations between two searches for regions",
        group="Expert",
        low=1,
        high=1000,
        slider=(1, 50, 1),
    )
    cutouts: int = setting(
        8,
        "Cutouts",
        "random crops of the whole image that the guide also sees",
        group="Expert",
        low=0,
        high=128,
        slider=(0, 64, 1),
    )
    rule: str = setting(
        "momentum",
        "Update rule",
        "momentum: a running mean of the gradients; adam: also evens out large and small changes",
        group="Expert",
        choices=RULES,
    )
    learning_rate: float = setting(
        0.05,
        "Learning rate",
        "how far an iteration moves the noise, as a share of its size",
        group="Expert",
        low=0.0,
        high=10.0,
        slider=(0, 1, 0.01),
    )
    warmup: int = setting(
        2,
        "Warm-up",
        "iterations until the full learning rate is reached",
        group="Expert",
        low=0,
        high=1000,
        slider=(0, 20, 1),
    )
    regularization: float = setting(
        1.0,
        "Noise regularization",
        "how firmly the noise is kept like real noise; lower values risk artifacts",
        group="Expert",
        low=0.0,
        high=1.0,
        slider=(0, 1, 0.05),
    )
    patience: int = setting(
        8,
        "Patience",
        "stop after this many iterations without a better score; 0: never",
        group="Expert",
        low=0,
        high=1000,
        slider=(0, 50, 1),
    )
    guide: str = setting(
        "clip",
        "Guide",
        "the critic that SGOOL optimizes, or several with weights: clip 1, hps-v2.1 5; clip:MODEL/WEIGHTS takes any "
        "model of open_clip; embedded downloads nothing",
        group="Critics",
        suggestions=(*CRITICS, *CLIPS, BOTH),
        check=check_guide,
    )
    selector: str = setting(
        "clip",
        "Selector",
        "another critic, never optimized, which gives the score and picks the best image",
        group="Critics",
        suggestions=(*CRITICS, *CLIPS),
        check=check_critic,
    )
    memory: str = setting(
        "balanced",
        "Memory",
        "fast: keep everything; balanced: compute decoder and guide twice; low: also the UNet, one prompt at a time",
        group="Sampling",
        choices=tuple(MEMORY),
    )
    guidance_scale: float = setting(
        7.5,
        "Guidance scale",
        "how closely the prompt is followed (CFG); 1: no CFG",
        group="Sampling",
        low=1.0,
        high=30.0,
        webui=False,  # the WebUI has its own CFG scale
    )
    zoom: bool = setting(
        False,
        "Zoom",
        "paint small places again at full resolution; each is kept only where the selector finds it better",
        group="Zoom",
    )
    zoom_by: str = setting(
        "attention",
        "Zoom on",
        "attention: where people look; phrases: where each phrase of the prompt is; faces; mask: where you painted",
        group="Zoom",
        choices=("attention", "phrases", "faces", "mask"),
    )
    zoom_places: int = setting(
        2, "Zoom places", "most places painted again", group="Zoom", low=1, high=16, slider=(1, 8, 1)
    )
    zoom_strength: float = setting(
        0.4,
        "Zoom strength",
        "denoising strength; more changes a place more",
        group="Zoom",
        above=0.0,
        high=1.0,
        slider=(0.05, 1, 0.05),
    )
    zoom_iterations: int = setting(
        0,
        "Zoom iterations",
        "how often the noise of a place is improved as well; 0: it is only painted again",
        group="Zoom",
        low=0,
        high=1000,
        slider=(0, 20, 1),
    )
    zoom_order: str = setting(
        "small-first",
        "Zoom order",
        "which places come first where there are more; weakest-first: those least like their text",
        group="Zoom details",
        choices=("salience", "left-to-right", "small-first", "weakest-first"),
    )
    zoom_smallest: float = setting(
        0.3,
        "Smallest zoom place",
        "smaller places grow to this share of the image's shorter side",
        group="Zoom details",
        low=0.05,
        high=1.0,
        slider=(0.05, 1, 0.05),
    )
    zoom_largest: float = setting(
        0.5,
        "Largest zoom place",
        "larger places are left alone, as a share of the image's shorter side",
        group="Zoom details",
        low=0.05,
        high=1.0,
        slider=(0.05, 1, 0.05),
    )
    zoom_padding: float = setting(
        0.1,
        "Zoom padding",
        "margin on each side, as a share of the place",
        group="Zoom details",
        low=0.0,
        high=1.0,
        slider=(0, 1, 0.05),
    )
    zoom_good: float = setting(
        1.0,
        "Good enough",
        "a place whose score reaches this is not painted again; 1: every place is",
        group="Zoom details",
        low=0.0,
        high=1.0,
        slider=(0, 1, 0.01),
    )
    zoom_judge: bool = setting(
        True,
        "Keep only better repaints",
        "off: every repaint is kept",
        group="Zoom details",
    )
    way_back: str = setting(
        "prompt",
        "Way back",
        "what the gradient goes through; prompt: the prompt's half of the guidance alone, which costs a third less",
        group="Expert",
        choices=WAYS_BACK,
    )
    as_uploaded: bool = setting(
        False,
        "Uploaded picture as it is",
        "img2img: improve and zoom into the uploaded picture itself; the WebUI samples nothing first",
        cli=False,  # there an image that is given always is
    )
    render: str = setting(
        "optimized",
        "Final image",
        "optimized: as SGOOL has made it; yours: the noise that was found, sampled once more by your own sampler, "
        "where that is better",
        group="Sampling",
        choices=("optimized", "yours"),
        cli=False,
    )
    best: bool = setting(
        False,
        "Best of the batch",
        "score every image with the selector; the best come first in the gallery",
        group="Batch",
        cli=False,
    )
    best_shown: int = setting(
        0,
        "Best images shown",
        "only so many are shown, the best ones; 0: all",
        group="Batch",
        low=0,
        high=1000,
        slider=(0, 16, 1),
        cli=False,
    )
    best_save_all: bool = setting(
        True,
        "Save the others too",
        "off: only what is shown is saved, once all images are made",
        group="Batch",
        cli=False,
    )
    best_improved: int = setting(
        0,
        "Improve only the best",
        "so many of each batch (batch size) are improved, the best ones; the others stay as they are; 0: all",
        group="Batch",
        low=0,
        high=1000,
        slider=(0, 8, 1),
        cli=False,
    )
    guide_scale: float = setting(
        100.0,
        "Guide scale",
        "method baseline: how strongly the guide pulls at every sampling step; 0: not at all",
        group="Expert",
        low=0.0,
        high=10000.0,
        slider=(0, 500, 10),
    )
    show_phrases: bool = setting(
        True,
        "Show phrases",
        "measure how much of each phrase of the prompt the image shows, before and after, and where",
        group="Sampling",
    )

    def __post_init__(self) -> None:
        for name, about in ABOUT.items():
            object.__setattr__(self, name, _checked(name, about, getattr(self, name)))
        fewest, most = steps_range("leading" if self.sampler == "auto" else SAMPLERS[self.sampler].spacing)
        if not fewest <= self.steps <= most:
            bound = f"at least {fewest}" if self.steps < fewest else f"at most {most}"
            raise SettingError("steps", f"must be {bound} with the sampler {self.sampler}, not {self.steps}")
        if same := shared(self.guide, self.selector):
            both = self.selector if same == self.selector else f"{self.selector} and {same}"
            raise SettingError("selector", f"must be another network than the guide, and {both} is the same in both")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """The defaults, and over them these values. Raises SettingError for an unknown name or a wrong value."""
        check_names(values)
        return cls(**values)

    @property
    def updates(self) -> int:
        """The iterations that the method makes: none where it only samples."""
        return 0 if self.method in ("baseline", "none") else self.iterations

    def changed(self, **values: Any) -> Settings:
        """The same settings but for these. Raises SettingError like `of`."""
        return Settings.of({**self.as_dict(), **values})

    def as_dict(self) -> dict[str, Any]:
        """By name, in the order of the fields."""
        return {name: getattr(self, name) for name in ABOUT}


ABOUT: dict[str, About] = {each.name: each.metadata["about"] for each in dataclasses.fields(Settings)}
"""What each setting says about itself, in the order of the fields."""

DEFAULTS: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(Settings)}


def check_names(values: Mapping[str, Any]) -> None:
    """Raises SettingError where a name is none of `Settings`, SgoolError for what holds no names."""
    check_kind(values, Mapping, "The settings are given by name, in a dict")
    for name in values:
        if name not in ABOUT:
            raise SettingError(repr(name), f"is no setting; the settings are {', '.join(ABOUT)}")


def _checked(name: str, about: About, value: Any) -> Any:
    """The value in the setting's own type."""
    kind = type(DEFAULTS[name])
    shown = short(value)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise SettingError(name, f"must be {KINDS[kind]}, not {shown}")
    if kind is str and not _is_text(value):
        raise SettingError(name, "holds bytes that are not text (UTF-8)")
    if about.choices and value not in about.choices:
        raise SettingError(name, f"must be one of {', '.join(about.choices)}, not {shown}")
    # Written so that NaN fails too.
    if about.low is not None and not value >= about.low:
        raise SettingError(name, f"must be at least {about.low:g}, not {shown}")
    if about.above is not None and not value > about.above:
        raise SettingError(name, f"must be above {about.above:g}, not {shown}")
    if about.high is not None and not value <= about.high:
        raise SettingError(name, f"must be at most {about.high:g}, not {shown}")
    if about.check is not None:
        try:
            about.check(value)
        except SgoolError as error:
            raise invalid(name, error) from error
    return kind(value)


def invalid(name: str, error: SgoolError) -> SettingError:
    """The setting is not valid, because of this error."""
    told = str(error).removesuffix(".")
    return SettingError(name, f"is not valid: {told[:1].lower()}{told[1:]}")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
