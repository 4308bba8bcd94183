"""What a run does and costs, counted in images, told before it is paid. javascript/sgool.js says the same."""

from __future__ import annotations

from sgool.samplers import SAMPLERS
from sgool.settings import Settings

UPDATE = {"full": 3, "prompt": 2}
"""Network evaluations of an update for each one of rendering, by its way back: to render its image, to recompute it on
the way back, and for its gradient. Without the negative half, the latter two cost half as much; at guidance scale 1
there is none to leave out."""

IMAGE_STEPS = 20
"""The WebUI's own default for its sampling steps."""

SLOW = 100
"""From so many images on, a run is called slow."""

EVALUATIONS = {"auto": 1, **{name: sampler.evals_per_step for name, sampler in SAMPLERS.items()}}
"""Of the network, for a step of each sampler. Both samplers that auto stands for need one."""

FOLLOWED = ("LCM", "Euler", "Euler a", "DDIM")
"""The WebUI's samplers that SGOOL can follow, where its own sampler is "auto" and starts from the seed's noise."""

MOST_STEPS = 12
"""Up to so many of the WebUI's steps it does. With more, and guidance, its own reversible sampler is the better one."""

DOES = {
    "whole": "Improves the image's starting noise",
    "zoom": "Paints small places again",
    "both": "Improves the image's starting noise and paints small places again",
    "best": "Scores the images; the best come first",
    "nothing": "Has nothing to do: 0 iterations, and no zoom",
}
"""What a run does."""


def renders(settings: Settings, sampler: str, image_steps: int) -> bool:
    """Whether the noise that is found is then sampled by the user's sampler: where it is noise."""
    from_noise = settings.start == "seed" and int(settings.steps * settings.strength + 0.5) >= settings.steps
    return settings.render == "yours" and from_noise and not follows(settings, sampler, image_steps)


def follows(settings: Settings, sampler: str, image_steps: int) -> bool:
    """Whether SGOOL samples as the user does, with this sampler of the WebUI and so many steps."""
    auto = settings.sampler == "auto" and settings.start == "seed"
    return auto and sampler in FOLLOWED and image_steps <= MOST_STEPS


def images(settings: Settings, image_steps: int = IMAGE_STEPS, sampler: str = "") -> float:
    """How many images of so many steps take as long as a run, by counting the evaluations of the network.

    sampler: the WebUI's, which SGOOL may follow.

    At the default strength, where 0.8 of the steps are improved, an update costs 1.6 samplings. A zoom is counted with
    as many places as it may have. Not counted: the critics and the decoder; the memory setting "low"; patience, which
    may end a run early; places that are too large or already good.
    """
    return whole(settings, image_steps, sampler) + zoom(settings, image_steps)


def whole(settings: Settings, image_steps: int = IMAGE_STEPS, sampler: str = "") -> float:
    """Of the image as a whole, 0 where nothing is done to it."""
    if not improves(settings):
        return 0.0
    updates = settings.updates * update(settings) * _way(settings)
    sampled = begin(settings, image_steps) + updates * settings.steps / image_steps
    if follows(settings, sampler, image_steps):
        return sampled * image_steps / settings.steps
    return sampled + (1 if renders(settings, sampler, image_steps) else 0)


def improves(settings: Settings) -> bool:
    """Whether these settings do anything to the image as a whole."""
    from_seed = settings.start == "seed" and (settings.candidates > 1 or settings.method == "baseline")
    return settings.updates > 0 or from_seed


def begin(settings: Settings, image_steps: int = IMAGE_STEPS) -> float:
    """Of a run until the updates begin: the candidates, or an image carried back and rendered again.

    With the method baseline every step of a candidate has a gradient, and costs as much as an update's.
    """
    way = _way(settings)
    passes = update(settings) if settings.method == "baseline" else 1
    from_seeds = settings.candidates * (1 - settings.strength + way) * passes
    return (2 * way if settings.start == "image" else from_seeds) * settings.steps / image_steps


def update(settings: Settings) -> int:
    """Of an update, in runs of the part that is improved."""
    return UPDATE["full" if settings.guidance_scale == 1 else settings.way_back]


def _way(settings: Settings) -> float:
    """One run of the part that is improved, in samplings."""
    return settings.strength * EVALUATIONS[settings.sampler]


def zoom(settings: Settings, image_steps: int = IMAGE_STEPS) -> float:
    """Of the zoom: each place is painted again from its strength on, and then improved as an image is."""
    if not settings.zoom:
        return 0.0
    passes = 2 + settings.zoom_iterations * update(settings)
    updates = passes * _way(settings) * settings.steps / image_steps
    return settings.zoom_places * (settings.zoom_strength + (updates if settings.zoom_iterations else 0))


def spent(forward_equivalents: int, settings: Settings) -> float:
    """How many plain images of the settings' own steps and guidance scale as many evaluations make."""
    return forward_equivalents / (settings.steps * halves(settings))


def halves(settings: Settings) -> int:
    """Evaluations of a noise prediction: of both halves of the guidance, where there is any."""
    return 2 if settings.guidance_scale > 1 else 1


def in_words(count: float) -> str:
    """Rounded: to whole images, and where they are many to two figures."""
    whole = int(count + 0.5)
    if whole >= SLOW:
        unit = 10 ** (len(str(whole)) - 2)
        return f"slow: about {int(whole / unit + 0.5) * unit} times an image's time"
    return f"about {whole} times an image's time" if whole > 1 else "about an image's time"


def line(settings: Settings) -> tuple[str, str]:
    """What a run does, and what it costs: "" where it makes nothing."""
    parts = (whole(settings) > 0, settings.zoom)
    neither = "best" if settings.best else "nothing"
    does = {(True, True): "both", (True, False): "whole", (False, True): "zoom", (False, False): neither}[parts]
    return DOES[does], in_words(images(settings)) if any(parts) else ""
