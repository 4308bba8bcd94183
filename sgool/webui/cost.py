"""What a run costs, counted in images: for the words in the accordion. javascript/sgool.js counts the same way."""

from __future__ import annotations

from sgool.samplers import SAMPLERS
from sgool.settings import Settings

UPDATE = 3
"""Network evaluations of an update for each one of rendering: to render its image, to recompute it on the way back, and
for its gradient."""

IMAGE_STEPS = 20
"""The WebUI's own default for its sampling steps."""

SLOW = 100
"""From so many images on, a run is called slow."""

EVALUATIONS = {"auto": 1, **{name: sampler.evals_per_step for name, sampler in SAMPLERS.items()}}
"""Of the network, for a step of each sampler. Both samplers that auto stands for need one."""


def images(settings: Settings, image_steps: int = IMAGE_STEPS) -> float:
    """How many images of so many steps take as long as a run, by counting the evaluations of the network.

    At the default strength, where 0.8 of the steps are improved, an update costs 2.4 samplings. Not counted: the
    critics and the decoder; the memory setting "low"; patience, which may end a run early.
    """
    way = settings.strength * EVALUATIONS[settings.sampler]  # one run of the part that is improved, in samplings
    from_seeds = settings.candidates * (1 - settings.strength + way)
    begin = 2 * way if settings.start == "image" else from_seeds  # an image is carried back, and rendered again
    iterations = 0 if settings.method == "none" else settings.iterations
    return (begin + iterations * UPDATE * way) * settings.steps / image_steps


def in_words(count: float) -> str:
    """Rounded: to whole images, and where they are many to two figures."""
    whole = int(count + 0.5)
    if whole >= SLOW:
        unit = 10 ** (len(str(whole)) - 2)
        return f"slow: about {int(whole / unit + 0.5) * unit} times an image's time"
    return f"about {whole} times an image's time" if whole > 1 else "about an image's time"
