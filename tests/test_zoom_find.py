"""Which places are found in a picture, what they should show, and in which order they come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.generate import Critics, load_critics
from sgool.guidance.critic import Critic
from sgool.images import read_image
from sgool.needs import Needs, needs
from sgool.region import Region
from sgool.saliency.faces import FaceFinder
from sgool.saliency.regions import alike
from sgool.settings import ABOUT, Settings
from sgool.zoom import find_places
from sgool.zoom.find import FINDERS, ORDERS, WINDOWS, windows
from sgool.zoom.place import Picture

FIXED = {
    "zoom": True,
    "zoom_places": 8,
    "zoom_order": "salience",
    "zoom_smallest": 0.3,
    "zoom_largest": 0.7,
    "zoom_padding": 0.25,
}
"""What the tests count with, whatever the defaults are."""

COLORS = {"red": 0, "green": 1, "blue": 2}


class Colors(Critic):
    """Scores how much of an image is of the color that the text names, as no other color is; counts what it encodes."""

    image_size = (8, 8)

    def __init__(self) -> None:
        self.encoded = 0

    def to(self, device: torch.device, half: bool | None = None) -> Colors:
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        pure = images - (images.sum(1, keepdim=True) - images) / 2
        return pure.clamp(min=0).mean((2, 3))

    def rate(self, features: Tensor, texts: Any) -> Tensor:
        channels = [next((at for word, at in COLORS.items() if word in text), None) for text in texts]
        return torch.stack(
            [row[at] if at is not None else row.new_zeros(()) for row, at in zip(features, channels, strict=True)]
        )


class Faces(FaceFinder):
    """Finds what it is told to."""

    def __init__(self, *found: Region) -> None:
        self.found = list(found)

    def __call__(self, image: Tensor) -> list[Region]:
        return self.found


def painted(size: tuple[int, int], **squares: tuple[int, int, int]) -> Tensor:
    """A gray image with squares by their color: top, left, side."""
    image = torch.full((1, 3, *size), 0.5)
    for color, (top, left, side) in squares.items():
        image[..., top : top + side, left : left + side] = 0
        image[:, COLORS[color], top : top + side, left : left + side] = 1
    return image


@pytest.fixture
def own(critics: Critics) -> Critics:
    return Critics(Colors(), Colors(), critics.detector)


def settings(**values: Any) -> Settings:
    return Settings.of({**FIXED, **values})


def center(region: Region) -> tuple[float, float]:
    return region.top + region.height / 2, region.left + region.width / 2


def holds(region: Region, top: int, left: int, side: int) -> bool:
    y, x = top + side / 2, left + side / 2
    return region.top <= y < region.top + region.height and region.left <= x < region.left + region.width


def test_every_choice_has_its_finder_and_its_order() -> None:
    assert set(ABOUT["zoom_by"].choices) == set(FINDERS)
    assert set(ABOUT["zoom_order"].choices) == {*ORDERS, "weakest-first"}


@pytest.mark.parametrize("size", [(128, 128), (128, 224), (224, 128)])
def test_each_phrase_has_its_place(own: Critics, size: tuple[int, int]) -> None:
    red, blue = (8, 8, 48), (size[0] - 48, size[1] - 48, 40)
    image = painted(size, red=red, blue=blue)
    places = find_places(
        Picture(image, "a small red box and a blue ball on a table"),
        own,
        settings(zoom_by="phrases", zoom_order="left-to-right"),
    )
    assert [place.text for place in places] == ["a red box on a table", "a blue ball on a table"]
    assert [place.name for place in places] == ["a red box", "a blue ball"]
    for place, square in zip(places, (red, blue), strict=True):
        assert holds(place.region, *square)
    assert sum(place.region.mass for place in places) == pytest.approx(1)
    assert not alike(places[0].region, places[1].region)


def test_a_phrase_that_is_nowhere_gets_no_place(own: Critics) -> None:
    image = painted((128, 128), red=(40, 60, 40))
    prompt = "a red box, a green ball, best quality"
    (place,) = find_places(Picture(image, prompt), own, settings(zoom_by="phrases"))
    assert place.text == "a red box" and place.prompt == "a red box, best quality"
    assert find_places(Picture(torch.full((1, 3, 64, 64), 0.5), prompt), own, settings(zoom_by="phrases")) == []


def test_phrases_cost_at_most_sixty_four_windows(own: Critics) -> None:
    assert len(windows(512, 512, settings())) == 61
    assert all(len(windows(512, width, settings())) <= WINDOWS for width in range(512, 1025, 32))
    guide = Colors()
    picture = Picture(painted((128, 128), red=(8, 8, 40)), "a red box and a blue ball")
    find_places(picture, replace(own, guide=guide), settings(zoom_by="phrases"))
    assert guide.encoded == 61


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 33), (64, 256), (512, 2048), (513, 769)])
@pytest.mark.parametrize("values", [{}, {"zoom_smallest": 1.0}, {"zoom_smallest": 0.05, "zoom_largest": 0.05}])
def test_windows_lie_within_the_image_and_cover_it(size: tuple[int, int], values: dict[str, float]) -> None:
    found = windows(*size, settings(**values))
    covered = torch.zeros(size)
    for region in found:
        assert region.top >= 0 and region.top + region.height <= size[0] and region.height > 0
        assert region.left >= 0 and region.left + region.width <= size[1] and region.width > 0
        covered[region.top : region.top + region.height, region.left : region.left + region.width] = 1
    assert covered.all()


def test_phrases_of_the_embedded_world(critics: Critics) -> None:
    """Their centers, seen in the picture: the panda's in row 79 and column 32, the whale's in row 98 and column 91."""
    image = read_image(Path(__file__).parent / "data" / "scenes" / "15.png")
    prompt = "a small panda and a small whale on a green background"
    for order, left in (("left-to-right", "a panda"), ("salience", "")):
        places = find_places(Picture(image, prompt), critics, settings(zoom_by="phrases", zoom_order=order))
        assert {place.name for place in places} == {"a panda", "a whale"}
        assert left in ("", places[0].name)
        where = {place.name: place.region for place in places}
        assert holds(where["a panda"], 79, 32, 0) and holds(where["a whale"], 98, 91, 0)


def test_no_face_no_place(own: Critics) -> None:
    picture = Picture(painted((128, 128), red=(8, 8, 40)), "a red box")
    assert find_places(picture, replace(own, faces=Faces()), settings(zoom_by="faces")) == []


def test_faces_are_padded_squared_and_called_faces(own: Critics) -> None:
    image = painted((512, 512), red=(0, 0, 160), blue=(300, 300, 100))
    found = Faces(Region(310, 320, 80, 60, 0.4), Region(0, 0, 120, 100, 0.35), Region(40, 400, 10, 8, 0.25))
    picture = Picture(image, "a red cap and a blue hat, at night")
    places = find_places(picture, replace(own, faces=found), settings(zoom_by="faces"))
    assert [place.name for place in places] == ["face"] * 3
    assert [place.text for place in places[:2]] == ["a blue hat", "a red cap"]
    assert places[0].prompt == "a blue hat, at night"
    # Padded by a quarter of the longer side; shifted at the border; a tiny one has 64 pixels.
    assert [place.region for place in places] == [
        Region(290, 290, 120, 120, 0.4),
        Region(0, 0, 180, 180, 0.35),
        Region(13, 372, 64, 64, 0.25),
    ]


def test_a_face_that_fills_the_image_is_left_alone(own: Critics) -> None:
    picture = Picture(painted((128, 128), red=(0, 0, 128)), "a red face")
    own = replace(own, faces=Faces(Region(10, 10, 110, 100, 1.0)))
    assert find_places(picture, own, settings(zoom_by="faces")) == []


def test_weakest_first(own: Critics) -> None:
    """The one that shows least of what it should comes first; the clearest may fall away."""
    image = painted((512, 512), red=(0, 0, 100), blue=(200, 200, 60))
    faces = Faces(Region(20, 20, 60, 60, 0.3), Region(200, 200, 60, 60, 0.5), Region(380, 380, 90, 90, 0.2))
    picture, own = Picture(image, "a red cap and a blue hat"), replace(own, faces=faces)
    values = {"zoom_by": "faces", "zoom_padding": 0.0}
    places = find_places(picture, own, settings(**values, zoom_order="weakest-first"))
    scores = [own.guide.judge(image[..., r.top : r.top + r.height, r.left : r.left + r.width], place.text)
              for place in places for r in [place.region]]  # fmt: skip
    assert len(places) == 3 and scores == sorted(scores)
    assert center(places[0].region) == (425, 425)
    two = find_places(picture, own, settings(**values, zoom_order="weakest-first", zoom_places=2))
    assert two == places[:2]


@pytest.mark.parametrize(
    ("order", "tops"),
    [("salience", [200, 20, 380]), ("left-to-right", [380, 20, 200]), ("small-first", [200, 20, 380])],
)
def test_orders_by_the_region(own: Critics, order: str, tops: list[int]) -> None:
    faces = Faces(Region(20, 120, 80, 80, 0.3), Region(200, 200, 70, 70, 0.5), Region(380, 10, 90, 90, 0.2))
    picture = Picture(painted((512, 512), red=(0, 0, 100)), "a red cap")
    values = {"zoom_by": "faces", "zoom_padding": 0.0, "zoom_order": order}
    places = find_places(picture, replace(own, faces=faces), settings(**values))
    assert [place.region.top for place in places] == tops


def test_places_too_large_go_before_those_beyond_the_most(own: Critics) -> None:
    faces = Faces(Region(0, 0, 200, 200, 0.5), Region(0, 300, 80, 80, 0.1), Region(300, 0, 120, 120, 0.4))
    picture, own = Picture(painted((512, 512), red=(0, 0, 100)), "a red cap"), replace(own, faces=faces)
    for largest, places, tops in ((0.3, 2, [300, 0]), (0.3, 1, [300]), (0.5, 2, [0, 300])):
        values = {"zoom_by": "faces", "zoom_padding": 0.0, "zoom_largest": largest, "zoom_places": places}
        assert [place.region.top for place in find_places(picture, own, settings(**values))] == tops


def test_region_prompts_come_before_what_the_finder_knows(own: Critics) -> None:
    image = painted((128, 128), red=(8, 8, 40), blue=(72, 78, 44))
    picture = Picture(image, "a red box and a blue ball, at night")
    values = {"zoom_by": "phrases", "region_prompt": " [SEP] a (green:1.2) egg"}
    places = find_places(picture, own, settings(**values, zoom_order="left-to-right"))
    assert [place.text for place in places] == ["a red box", "a green egg"]
    assert places[1].prompt == "a (green:1.2) egg"


def test_masks_give_their_parts(own: Critics) -> None:
    picture = Picture(painted((128, 128), red=(8, 8, 40)), "a red box and a blue ball")
    mask = torch.zeros(128, 128)
    mask[10:40, 10:40] = 1
    mask[90:110, 90:110] = 1
    places = find_places(replace(picture, mask=mask), own, settings(zoom_by="mask", zoom_order="left-to-right"))
    assert len(places) == 2 and places[0].text == "a red box"
    for bad, told in ((None, "needs a mask"), (mask[:64], "has 128x64 pixels"), (mask * 0, "is empty")):
        with pytest.raises(SgoolError, match=told):
            find_places(replace(picture, mask=bad), own, settings(zoom_by="mask"))


def test_critics_hold_a_face_finder_only_where_faces_are_looked_for(tmp_path: Path) -> None:
    wanted = needs(settings(zoom_by="faces", guide="embedded", selector="embedded", saliency_weight=0.0))
    assert wanted == Needs("embedded", "embedded", "spectral", faces=True)
    loaded = load_critics(wanted, tmp_path)
    assert loaded.faces is not None and str(tmp_path) in loaded.faces.note
    assert load_critics(replace(wanted, faces=False), tmp_path).faces is None
    assert loaded.to(torch.device("cpu")) is loaded


def test_no_phrase_is_given_to_two_places_before_all_are_used(own: Critics) -> None:
    """Both places are red, the left one more so."""
    image = painted((300, 300), red=(20, 20, 60))
    image[:, 0, 200:260, 200:260] = 0.7
    mask = torch.zeros(300, 300)
    mask[20:80, 20:80] = mask[200:260, 200:260] = 1
    picture = Picture(image, "a red cap and a blue hat", mask)
    places = find_places(picture, own, settings(zoom_by="mask", zoom_order="left-to-right", zoom_smallest=0.1))
    assert [place.text for place in places] == ["a red cap", "a blue hat"]
