"""How much of each phrase of a prompt an image shows, and the detectors that need the prompt or a mask."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import Rater

from sgool.cli import main
from sgool.detect import MaskDetector, PromptDetector
from sgool.errors import SgoolError
from sgool.generate import Critics, load_critics
from sgool.guidance.blend import Blend
from sgool.guidance.critic import Critic, EmbeddingCritic
from sgool.images import read_image
from sgool.needs import Needs, needs
from sgool.phrase_sheet import MARK, phrase_sheet, spotlight
from sgool.phrases import EVEN, MOST, measure, phrases_of, presence
from sgool.pictures import png
from sgool.presets import resolve
from sgool.result import Presence
from sgool.saliency import load_detector

SCENES = Path(__file__).parent / "data" / "scenes"
CAPTION = "a strawberry and a penguin on a busy purple background"
FAST = ["--steps", "3", "--iterations", "1", "--cutouts", "1"]


@pytest.fixture(scope="module")
def scene() -> Tensor:
    """A strawberry on the left, a penguin on the right."""
    return read_image(SCENES / "02.png")


class Broken(EmbeddingCritic):
    image_size = (8, 8)
    name = "broken"

    def to(self, device: torch.device, half: bool | None = None) -> Broken:
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("no memory")

    def encode_text(self, text: str) -> Tensor:
        return torch.ones(2)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(a frog:1.3), [a car:a boat:0.5] <lora:x:1> BREAK night sky", ["a frog", "a boat", "night sky"]),
        ("a frog and ((a car)), a frog", ["a frog", "a car"]),
        ("a portrait", ["a portrait"]),
        (", ".join(f"thing {number}" for number in range(40)), [f"thing {number}" for number in range(MOST)]),
    ],
)
def test_phrases_are_those_of_the_plain_prompt(prompt: str, expected: list[str]) -> None:
    assert phrases_of(prompt) == expected


def test_presence_is_the_normal_distribution_of_the_strongest_part() -> None:
    strength = torch.tensor([[EVEN, 0.0, 9.0], [0.0, EVEN + 1, -1.0]])
    expected = [0.5, 0.5 * (1 + math.erf(1 / math.sqrt(2))), 1.0]
    assert presence(strength) == pytest.approx(expected, abs=1e-6)


def test_what_is_there_is_found_and_what_is_not_is_not(critics: Critics, scene: Tensor) -> None:
    found = measure([critics.selector, critics.guide], [scene], "a strawberry, a penguin, a frog, a sunflower")
    told = {each.phrase: each for each in found.found}
    assert min(told["a strawberry"].after, told["a penguin"].after) > 0.8
    assert max(told["a frog"].after, told["a sunflower"].after) < 0.4
    assert (found.critic, found.map, found.note) == ("embedded", "legrad", "")
    for each in found.found:
        assert each.before == each.after and torch.equal(each.map_before, each.map_after)
    middles = [int(told[name].map_after.argmax()) % 128 for name in ("a strawberry", "a penguin")]
    assert middles[0] < 64 <= middles[1]


def test_two_images_are_measured_and_their_maps_have_one_scale(critics: Critics, scene: Tensor) -> None:
    """The second has another background where the strawberry was."""
    without = scene.clone()
    without[..., :64] = scene[..., :1, :1]
    found = measure([critics.selector], [scene, without], CAPTION)
    strawberry, penguin = found.found
    assert strawberry.before > 0.8 and strawberry.after < 0.5 and penguin.after > 0.8
    assert strawberry.map_before.max() == 1 and strawberry.map_after.max() < 0.7
    assert strawberry.map_before.shape == (128, 128) and strawberry.map_before.min() >= 0
    assert found.as_list() == [
        {"phrase": each.phrase, "before": round(each.before, 4), "after": round(each.after, 4)} for each in found.found
    ]
    assert json.loads(json.dumps(found.as_list())) == found.as_list()
    assert str(Presence("a frog", 0.342, 0.81)) == "a frog: 34 % -> 81 %"


def test_images_of_a_callers_inference_mode_are_measured(critics: Critics, scene: Tensor) -> None:
    with torch.inference_mode():
        found = measure([critics.selector], [scene * 1.0], CAPTION)
    assert not found.note and found.found[0].map_after is not None


def test_the_first_critic_that_can_is_asked(critics: Critics, scene: Tensor) -> None:
    both = Blend([Rater(), critics.guide], [1.0, 1.0])
    found = measure([Rater(), both], [scene], CAPTION)
    assert found.map == "grad-cam++" and len(found.found) == 2
    assert found.note == "rater cannot tell phrases, so the guide embedded did, which was optimized."


@pytest.mark.parametrize(
    ("critic", "note"),
    [
        (Rater(), "rater cannot compare an image with phrases, as a CLIP can."),
        (Broken(), "no memory"),
    ],
)
def test_what_fails_is_told_and_not_raised(critic: Critic, note: str, scene: Tensor) -> None:
    found = measure([critic], [scene, scene], CAPTION)
    assert not found.found and note in found.note and found.note.startswith("The phrases of the prompt could not be")


class Plain(EmbeddingCritic):
    """Embeds by color, and is no CLIP."""

    image_size = (8, 8)
    name = "plain"
    generic = ("of red", "of green", "of blue")

    def to(self, device: torch.device, half: bool | None = None) -> Plain:
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)

    def encode_text(self, text: str) -> Tensor:
        return torch.eye(3)[["red", "green", "blue"].index(text.split()[-1])]


def test_a_critic_without_maps_still_tells_presence_and_why_there_is_no_map() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, 1] = 1
    image[:, :2, :16, :16] = torch.tensor([1.0, 0.0])[:, None, None]
    found = measure([Plain()], [image], "something red, something blue")
    red, blue = found.found
    assert red.after > 0.9 and blue.after < 0.1 and red.map_after is None
    assert found.note == "The critic plain has no heat maps, because it is no CLIP."


def test_a_prompt_detector_finds_each_phrase(critics: Critics, scene: Tensor) -> None:
    for name in ("legrad", "grad-cam", "grad-cam++"):
        detector = PromptDetector(name, [critics.selector, critics.guide])
        found = detector.of(CAPTION)(scene)
        assert found.shape == (128, 128) and found.min() >= 0 and found.max() == 1
        assert found[:, :64].max() > 0.9 and found[:, 64:].max() > 0.9  # a subject on either side
        assert not torch.equal(found, detector.of("a strawberry")(scene))


def test_a_prompt_detector_without_a_critic_for_it_is_refused(critics: Critics) -> None:
    with pytest.raises(SgoolError, match="grad-cam needs a CLIP with a convolutional network as selector or guide, su"):
        PromptDetector("grad-cam", [critics.selector])
    with pytest.raises(SgoolError, match="The saliency detector legrad needs more than an image"):
        load_detector("legrad")


def test_load_critics_gives_the_detector_the_critics_and_nothing_is_downloaded_for_it(tmp_path: Path) -> None:
    wanted = needs(resolve({"saliency": "legrad"}, model="tiny"))
    assert wanted == Needs("embedded", "embedded", "legrad") and not wanted.weights["detector"]
    detector = load_critics(wanted, tmp_path).detector
    assert isinstance(detector, PromptDetector) and detector.name == "legrad" and not list(tmp_path.iterdir())
    assert needs(resolve({"saliency": "mask"}, model="tiny")).detector == "spectral"


def test_a_mask_is_looked_at_whatever_the_image_shows(scene: Tensor) -> None:
    mask = torch.zeros(64, 64)
    mask[:16, :16] = 1
    found = MaskDetector(mask).of(CAPTION)(scene)
    assert found.shape == (128, 128) and found[:30, :30].min() > 0.99 and found[40:].max() == 0
    for wrong, sentence in (
        (torch.zeros(8, 8), "The mask is empty"),
        (torch.zeros(1, 8, 8), r"A mask has the shape \[H, W\]"),
        (torch.full((8, 8), float("nan")), "finite"),
    ):
        with pytest.raises(SgoolError, match=sentence):
            MaskDetector(wrong)


def marked(picture: np.ndarray) -> bool:
    """Whether the outline's color is in it, to within what smoothing its edges changes."""
    return bool((np.abs(picture.astype(int) - MARK).max(-1) < 40).any())


def test_a_spotlight_leaves_what_is_shown_and_darkens_the_rest() -> None:
    image = np.full((120, 120, 3), (200, 40, 40), np.uint8)
    heat = torch.zeros(120, 120)
    heat[30:90, 30:90] = 1
    lit = spotlight(image, heat)
    assert (lit[60, 60] == image[60, 60]).all()
    assert lit[5, 5].max() < 40 and np.ptp(lit[5, 5]) < 3
    assert marked(lit)
    nothing = spotlight(image, torch.zeros(120, 120))
    assert not marked(nothing) and nothing.max() < 40


def test_the_sheet_has_a_row_for_each_phrase_and_maps_or_none() -> None:
    image = np.full((100, 200, 3), 128, np.uint8)
    heat = torch.ones(100, 200)
    rows = [Presence("a frog", 0.3, 0.8, heat, heat), Presence("a very long phrase " * 10, 0.1, 0.2)]
    one, two = phrase_sheet(image, image, rows[:1]), phrase_sheet(image, image, rows)
    assert two.shape[0] > one.shape[0] and two.shape[1] == one.shape[1] and two.dtype == np.uint8


def test_the_command_line_tells_phrases_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *FAST, "--json", "--out", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [each["phrase"] for each in figures["phrases"]] == ["a small frog", "a car on a yellow background"]
    assert all(0 <= each[when] <= 1 for each in figures["phrases"] for when in ("before", "after"))
    assert read_image(tmp_path / "phrases.png").shape[-2] > 500
    assert main(["demo", *FAST, "--no-show-phrases", "--json", "--out", str(tmp_path)]) == 0
    assert "phrases" not in json.loads(capsys.readouterr().out) and not (tmp_path / "phrases.png").exists()


def test_the_command_line_looks_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((128, 128, 3), np.uint8)
    mask[70:120, 70:120] = 255
    (tmp_path / "here.png").write_bytes(png(mask))
    run = ["demo", *FAST, "--no-show-phrases", "--json", "--out", str(tmp_path / "out"), "--look-at"]
    assert main([*run, str(tmp_path / "here.png")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["saliency"] == "mask"
    (region,) = figures["regions"]
    assert region["top"] <= 70 and region["top"] + region["height"] >= 120 and region["left"] > 40
    (tmp_path / "small.png").write_bytes(png(mask[:64]))
    for arguments, sentence in (
        ([str(tmp_path / "small.png")], "The mask has 128x64 pixels, but the image 128x128."),
        ([str(tmp_path / "none.png")], "cannot be read"),
        ([str(tmp_path / "here.png"), "--saliency", "spectral"], "--saliency mask and a mask to look at go together"),
    ):
        assert main([*run, *arguments]) == 2
        assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert main(["demo", *FAST, "--saliency", "mask", "--out", str(tmp_path / "out")]) == 2
    assert "--saliency mask and a mask to look at go together" in capsys.readouterr().err


def test_a_run_looks_where_the_critic_sees_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *FAST, "--no-show-phrases", "--saliency", "legrad", "--json", "--out", str(tmp_path)]) == 0
    assert len(json.loads(capsys.readouterr().out)["regions"]) >= 1


def test_an_image_comes_out_although_phrases_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the maps are broken")

    monkeypatch.setattr("sgool.phrases.heat", fail)
    assert main(["demo", *FAST, "--json", "--out", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["phrases"] == [] and "could not be measured: the maps are broken" in figures["ended"]
    assert (tmp_path / "after.png").exists() and not (tmp_path / "phrases.png").exists()
