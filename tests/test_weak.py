"""Regions for the phrases that an image hardly shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import Rater

from sgool.errors import SgoolError
from sgool.generate import Critics, Request, generate, make_regions, region_finder
from sgool.guidance.critic import EmbeddingCritic
from sgool.guidance.loss import SaliencyLoss, Whole, crop
from sgool.images import read_image
from sgool.phrases import phrases_of
from sgool.presets import resolve
from sgool.region import Region
from sgool.saliency.regions import alike
from sgool.settings import Settings
from sgool.weak import WeakPhrases

SCENES = Path(__file__).parent / "data" / "scenes"
LEFT, RIGHT = Region(40, 8, 48, 48, 0.7), Region(40, 72, 48, 48, 0.3)


@pytest.fixture(scope="module")
def scene() -> Tensor:
    """A strawberry on the left, a penguin on the right."""
    return read_image(SCENES / "02.png")


def weak(critics: Critics, prompt: str, most: int = 3) -> WeakPhrases:
    return WeakPhrases([critics.selector, critics.guide], prompt, region_finder(Settings()), most)


def test_where_every_phrase_is_there_the_regions_stay(critics: Critics, scene: Tensor) -> None:
    assert weak(critics, "a strawberry, a penguin")(scene, [LEFT, RIGHT]) == [LEFT, RIGHT]


def test_a_phrase_that_is_missing_gets_a_region_of_its_own(critics: Critics, scene: Tensor) -> None:
    *salient, added = weak(critics, "a strawberry, a penguin, a sunflower")(scene, [LEFT])
    assert added.text == "a sunflower" and added.mass == 1.0
    assert 0 <= added.top < added.top + added.height <= 128 and 0 <= added.left < added.left + added.width <= 128
    assert salient == ([] if alike(LEFT, added) else [LEFT])


def test_what_is_left_of_a_subject_is_where_its_phrase_is_sought(critics: Critics, scene: Tensor) -> None:
    """A penguin so faint that it counts as missing is still what is most like one."""
    faint = scene.clone()
    faint[..., 64:] = 0.45 * scene[..., 64:] + 0.55 * scene[..., :1, 64:65]
    look = weak(critics, "a strawberry, a penguin")
    shares, likest = look._look(faint)
    assert shares[0] > 0.5 > shares[1], "the test needs a faint penguin"
    place = likest(1)
    assert place.left + place.width / 2 > 64
    assert look(faint, [LEFT, RIGHT])[-1].text == "a penguin"


class Table(EmbeddingCritic):
    """Embeds a picture as its mean color, and a text as that color. It is no CLIP, so it has no maps."""

    image_size = (8, 8)
    name = "table"
    generic = ("gray", "yellow", "cyan")

    def to(self, device: torch.device, half: bool | None = None) -> Table:
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    def encode_text(self, text: str) -> Tensor:
        return torch.nn.functional.normalize(torch.tensor(COLORS[text]), dim=0)


COLORS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "gray": (1.0, 1.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
}


def test_without_maps_the_likest_part_is_taken_and_the_weakest_phrase_comes_first() -> None:
    image = torch.full((1, 3, 64, 64), 0.1)
    image[:, 0] = 0.9
    image[:, 2, :32, 32:] = 0.5  # a little blue at the top right, no green anywhere
    look = WeakPhrases([Table()], "red, green, blue", region_finder(Settings()), 2)
    shares, _ = look._look(image)
    assert shares[1] < shares[2] < 0.5
    assert [region.text for region in look(image, [])] == ["green", "blue"]
    blue = look(image, [])[1]
    assert (blue.top, blue.left, blue.height) == (0, 32, 32)


def test_places_come_before_the_least_salient_regions_and_stand_for_those_they_overlap() -> None:
    place = Region(0, 0, 32, 32, 1.0)

    class Chosen(WeakPhrases):
        def __init__(self, shares: Sequence[float], most: int) -> None:
            self.phrases, self.most, self.shares = ["a", "b", "c"], most, list(shares)

        def _look(self, image: Tensor) -> Any:
            return self.shares, lambda number: Region(place.top, place.left + 48 * number, 32, 32, 1.0)

    image = torch.zeros(1, 3, 160, 160)
    one, two, three = Region(90, 0, 32, 32, 0.6), Region(90, 50, 32, 32, 0.3), Region(2, 49, 32, 32, 0.1)
    found = Chosen([0.9, 0.4, 0.2], 3)(image, [one, two, three])
    assert [(region.left, region.text) for region in found] == [(0, ""), (96, "c"), (48, "b")]
    assert [region.mass for region in found] == [0.6, pytest.approx(1 / 3), pytest.approx(1 / 3)]
    assert [region.text for region in Chosen([0.4, 0.3, 0.2], 1)(image, [one])] == ["c"]


def test_a_region_is_compared_with_its_own_text_and_no_other_region_with_that(critics: Critics, scene: Tensor) -> None:
    guide = critics.guide
    loss = SaliencyLoss(
        guide, "a strawberry, a penguin", whole=Whole(cutouts=0), match_phrases=True, saliency_weight=1.0
    )
    swapped = Region(*[getattr(LEFT, name) for name in ("top", "left", "height", "width")], 1.0, "a penguin")
    wanted = [("a penguin", swapped), ("a strawberry", RIGHT)]
    distances = [guide.distance(guide.encode_image(crop(scene, each)), [text]).item() for text, each in wanted]
    weights = [1.0, RIGHT.mass**0.5]
    expected = sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)
    assert loss(scene, [swapped, RIGHT]).item() == pytest.approx(expected, abs=1e-6)
    # With both phrases given away, a region more has nothing left to show.
    full = Region(RIGHT.top, RIGHT.left, RIGHT.height, RIGHT.width, RIGHT.mass, "a strawberry")
    assert loss(scene, [swapped, full, LEFT]).item() == pytest.approx(expected, abs=1e-6)
    # The user's own prompt for a region comes first, and the phrase is then free for another region.
    both = "a strawberry, a penguin"
    own = SaliencyLoss(
        guide, both, whole=Whole(cutouts=0), region_prompts="a frog", match_phrases=True, saliency_weight=1.0
    )
    wanted = [("a frog", swapped), ("a penguin", RIGHT)]
    distances = [guide.distance(guide.encode_image(crop(scene, each)), [text]).item() for text, each in wanted]
    expected = sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)
    assert own(scene, [swapped, RIGHT]).item() == pytest.approx(expected, abs=1e-6)


def test_a_run_looks_where_the_missing_phrase_is_and_says_so(backend: Any, critics: Critics) -> None:
    prompt = "a penguin, a frog, a pizza, a car"
    own = resolve({"steps": 3, "iterations": 1, "cutouts": 1, "region_match": "weak-phrases"}, model="tiny")
    result = generate(backend, critics, Request(prompt, seed=3), own)
    assert result.error is None and len(result.losses) == 2
    shares, _ = weak(critics, prompt)._look(result.first.image)
    missing = {phrase for phrase, share in zip(phrases_of(prompt), shares, strict=True) if share < 0.5}
    told = {region.text for region in result.first.regions if region.text}
    assert 0 < len(missing) <= own.max_regions, "the test needs missing phrases"
    assert told == missing and len(result.first.regions) <= own.max_regions


def test_critics_that_cannot_tell_phrases_are_refused() -> None:
    with pytest.raises(SgoolError, match="rater cannot compare an image with phrases"):
        WeakPhrases([Rater()], "a car, a tree", region_finder(Settings()), 3)


@pytest.mark.parametrize("idle", [{"saliency_weight": 0.0}, {"iterations": 0}, {"method": "doodl", "sampler": "edict"}])
def test_where_no_region_counts_nobody_looks_for_phrases(critics: Critics, idle: dict[str, Any]) -> None:
    wanted = {"region_match": "weak-phrases"}
    assert make_regions(critics, "a car, a tree", resolve(wanted, model="tiny")).complete is not None
    assert make_regions(critics, "a car, a tree", resolve(wanted | idle, model="tiny")).complete is None
