"""The seam between a critic and the rest: any frozen network that rates an image for a text will do."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgool.errors import SgoolError
from sgool.generate import Critics, Request, generate, load_critics
from sgool.guidance import CRITICS, check_critic, load_critic
from sgool.guidance.clip import VARIANTS
from sgool.guidance.critic import Critic, CriticKind, EmbeddingCritic, shifted, spherical_distance
from sgool.guidance.loss import DOODL, SaliencyLoss, Whole, crop, random_cutouts
from sgool.needs import needs
from sgool.presets import resolve
from sgool.region import Region
from sgool.result import Ending
from sgool.settings import Settings

PROMPT = "a small penguin and a pizza on a green background"


class Painter(Critic):
    """Wants a color of its own for each text, and knows no embeddings: features are small pictures."""

    def __init__(self, size: tuple[int, int] = (16, 24)) -> None:
        self.image_size = size
        self.device = torch.device("cpu")
        self.seen: list[int] = []

    def to(self, device: torch.device, half: bool | None = None) -> Painter:
        self.device = torch.device(device)
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return F.adaptive_avg_pool2d(self.resize(images.to(self.device, torch.float32)), 4)

    def rate(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        wanted = torch.stack([color(text) for text in texts])
        # Not linear, and not the same everywhere in the image.
        places = torch.linspace(0.5, 1.5, 16).view(4, 4)
        return (places * torch.cos(3 * (features - wanted[:, :, None, None])).mean(1)).mean((1, 2))


def color(text: str) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    return torch.rand(3, generator=generator)


def pictures(count: int = 1, side: int = 40) -> Tensor:
    return torch.rand(count, 3, side, 48, generator=torch.Generator().manual_seed(5))


def test_without_embeddings_distance_and_table_follow_from_the_rating() -> None:
    critic, texts = Painter(), ["a car", "a tree", "the sea"]
    features = critic.encode_image(pictures(3))
    ratings = critic.rate(features, texts)
    assert ratings.shape == (3,) and ratings.unique().numel() == 3
    assert torch.equal(critic.distance(features, texts), -ratings)
    table = critic.table(features[:2], texts)
    assert table.shape == (2, 3)
    pairs = [[critic.rate(features[i : i + 1], [text]).item() for text in texts] for i in range(2)]
    torch.testing.assert_close(table, torch.tensor(pairs))
    torch.testing.assert_close(table[0, 0], ratings[0])
    torch.testing.assert_close(critic.score(pictures(3), "a tree"), critic.table(features, texts)[:, 1])


def test_the_network_sees_a_picture_of_its_own_size_with_every_pixel_in_its_place() -> None:
    ramp = torch.arange(12.0).expand(1, 3, 8, 12)
    seen = Painter((16, 24)).resize(ramp)
    assert seen.shape == (1, 3, 16, 24) and Painter((8, 12)).resize(ramp) is ramp
    # Twice as many pixels, each with its center a quarter beside the old one's.
    torch.testing.assert_close(seen[0, 0, 3, 8:12], torch.tensor([3.75, 4.25, 4.75, 5.25]))


def test_an_image_is_judged_by_the_mean_of_five_views_without_a_graph() -> None:
    critic, image = Painter(), pictures().requires_grad_()
    single = [critic.score(view[None], "a car").item() for view in shifted(image.detach())]
    assert critic.judge(image, "a car") == pytest.approx(sum(single) / 5, abs=1e-6)
    assert critic.seen[-1] == 5


REGIONS = [Region(2, 3, 20, 24, 0.8), Region(18, 10, 20, 20, 0.2)]


def test_the_loss_is_that_of_the_critics_own_distances() -> None:
    critic, image = Painter(), pictures()
    loss = SaliencyLoss(critic, "a car", whole=Whole(cutouts=4), region_prompts="[SEP]a tree", saliency_weight=0.3)

    def distance(picture: Tensor, text: str) -> float:
        return -critic.rate(critic.encode_image(picture), [text]).item()

    cutouts = random_cutouts(image, 4, 16, torch.Generator().manual_seed(7))
    whole = [distance(view, "a car") for view in (image, *cutouts.split(1))]
    local = [distance(crop(image, region), text) for region, text in zip(REGIONS, ("a car", "a tree"), strict=True)]
    # The roots of 0.8 and 0.2 are as two to one.
    expected = 0.7 * sum(whole) / 5 + 0.3 * (2 * local[0] + local[1]) / 3
    assert loss(image, REGIONS, torch.Generator().manual_seed(7)).item() == pytest.approx(expected, rel=1e-5)
    cutouts = random_cutouts(image, 16, 16, torch.Generator().manual_seed(7))
    smallest = min(distance(cutout, "a car") for cutout in cutouts.split(1))
    doodl = SaliencyLoss(critic, "a car", whole=DOODL, saliency_weight=0.0)
    assert doodl(image, REGIONS, torch.Generator().manual_seed(7)).item() == pytest.approx(smallest, rel=1e-5)


def test_all_views_and_crops_go_through_the_critic_in_one_batch() -> None:
    critic = Painter()
    SaliencyLoss(critic, PROMPT, whole=Whole(cutouts=4), match_phrases=True)(pictures(), REGIONS)
    assert critic.seen == [1 + 4 + 2]


@pytest.mark.parametrize(("prompt", "match_phrases"), [("a car.", True), ("a car and a tree", False)])
def test_without_phrases_to_choose_from_every_region_is_compared_with_the_prompt(
    prompt: str, match_phrases: bool
) -> None:
    critic, image = Painter(), pictures()
    loss = SaliencyLoss(critic, prompt, whole=Whole(cutouts=0), match_phrases=match_phrases, saliency_weight=1.0)
    first, second = (-critic.score(critic.resize(crop(image, region)), prompt).item() for region in REGIONS)
    assert loss(image, REGIONS).item() == pytest.approx((2 * first + second) / 3, rel=1e-5)


@pytest.mark.parametrize("match_phrases", [False, True])
def test_the_gradient_of_the_loss_matches_finite_differences(match_phrases: bool) -> None:
    loss = SaliencyLoss(Painter(), PROMPT, whole=Whole(cutouts=3), match_phrases=match_phrases)

    def value(image: Tensor) -> Tensor:
        return loss(image, REGIONS, torch.Generator().manual_seed(1))

    image = pictures().requires_grad_()
    (gradient,) = torch.autograd.grad(value(image), image)
    for seed in range(3):
        way = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            slope = (value(image + 0.02 * way) - value(image - 0.02 * way)) / 0.04
        assert slope.item() == pytest.approx((gradient * way).sum().item(), rel=0.02, abs=1e-5)


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_a_run_is_guided_by_a_critic_without_embeddings(backend, critics: Critics, memory: str) -> None:
    """Its own image is rated higher by small steps along the whole gradient. Neither cutouts nor regions move it."""
    few = {"steps": 4, "strength": 1.0, "iterations": 3, "patience": 0, "memory": memory, "way_back": "full"}
    settings = resolve({**few, "cutouts": 0, "saliency_weight": 0.0, "learning_rate": 0.01}, model="tiny")
    painter = Painter()
    result = generate(backend, replace(critics, guide=painter), Request(PROMPT, seed=1), settings)
    assert result.ending is Ending.DONE and result.error is None
    assert result.losses[3] < result.losses[2] < result.losses[1] < result.losses[0]
    first = painter.score(result.first.image, PROMPT).item()
    assert result.losses[0] == pytest.approx(-first, abs=1e-5)


def test_guide_and_selector_may_both_be_without_embeddings(backend, critics: Critics) -> None:
    """With regions, phrases, cutouts and several starts: everything that asks a critic."""
    settings = resolve({"steps": 4, "iterations": 2, "candidates": 2, "cutouts": 2}, model="tiny")
    own = Critics(Painter(), Painter((8, 8)), critics.detector)
    result = generate(backend, own, Request(PROMPT, seed=1), settings)
    assert result.ending is Ending.DONE and len(result.losses) == 3
    assert result.best.regions and result.best.score == max(*result.scores, result.first.score)
    assert result.best.score == pytest.approx(own.selector.judge(result.best.image, PROMPT), abs=1e-6)


def test_an_embedding_critic_rates_by_the_diagonal_of_its_table(critics: Critics) -> None:
    guide = critics.guide
    assert isinstance(guide, EmbeddingCritic)
    texts = ["a car on a red background", "a frog", "two pizzas"]
    features = guide.encode_image(torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(2)))
    assert features.norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    table = guide.table(features, texts)
    torch.testing.assert_close(guide.rate(features, texts), table.diagonal())
    torch.testing.assert_close(table, Critic.table(guide, features, texts))
    embeddings = torch.stack([guide.encode_text(text) for text in texts])
    torch.testing.assert_close(guide.distance(features, texts), spherical_distance(features, embeddings))
    # The angle falls where the cosine rises.
    assert torch.equal(guide.distance(features, texts).argsort(), guide.rate(features, texts).argsort(descending=True))


def test_moving_the_critics_moves_each_of_them(critics: Critics) -> None:
    own = Critics(Painter(), Painter(), critics.detector)
    before = critics.detector.device
    try:
        assert own.to(torch.device("meta")) is own
        assert {each.device.type for each in (own.guide, own.selector, own.detector)} == {"meta"}
    finally:
        critics.detector.to(before)


def test_a_new_kind_is_loaded_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load(variant: str, role: str, models_dir: Path, device: torch.device) -> Critic:
        asked.append((variant, role, models_dir, device))
        return Painter()

    def check(variant: str) -> None:
        if variant not in ("", "oil"):
            raise SgoolError(f"There is no paint {variant!r}.")

    monkeypatch.setitem(CRITICS, "painter", CriticKind("wants a color", load, check))
    settings = Settings(guide="painter:oil", selector="painter", saliency="spectral")
    own = load_critics(needs(settings), tmp_path)
    assert isinstance(own.guide, Painter) and isinstance(own.selector, Painter) and own.guide is not own.selector
    cpu = torch.device("cpu")
    assert asked == [("oil", "guide", tmp_path, cpu), ("", "selector", tmp_path, cpu)]
    with pytest.raises(SgoolError, match="guide is not valid: there is no paint 'water'"):
        Settings(guide="painter:water")
    with pytest.raises(SgoolError, match="no paint"):
        load_critic("painter:water", "guide", tmp_path)
    assert len(asked) == 2


UNKNOWN = ["", ":", "clap", "Clip", "clip/x", ":ViT-B-32/openai", "embedded model"]
PATHS = ["../x/y", "a/b/c", "/etc/passwd", "a/", "/a", "a", "a/..", "../a", "a/b:c", "a\\b/c", "a/b\n", "~/x", "a/.b"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_kind_is_refused_and_the_known_are_listed(name: str, tmp_path: Path) -> None:
    for check in (check_critic, lambda name: load_critic(name, "guide", tmp_path)):
        with pytest.raises(SgoolError, match="There is no critic") as caught:
            check(name)
        assert all(kind in str(caught.value) for kind in CRITICS)


@pytest.mark.parametrize("variant", PATHS)
def test_no_variant_of_clip_is_a_path(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (check_critic, lambda name: load_critic(name, "guide", tmp_path)):
        with pytest.raises(SgoolError, match=re.escape("clip:MODEL/WEIGHTS")):
            check(f"clip:{variant}")


def test_a_file_of_that_name_is_not_taken_for_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a name that open_clip does not know would open any file below the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(b"anything")
    with pytest.raises(SgoolError, match="has no pretrained weights 'weights'"):
        load_critic("clip:ViT-B-32/weights", "guide", tmp_path)
    with pytest.raises(SgoolError, match="no CLIP model named 'ViT-Z-99'"):
        load_critic("clip:ViT-Z-99/weights", "guide", tmp_path)


def test_what_comes_in_one_variant_only_takes_no_other() -> None:
    with pytest.raises(SgoolError, match="has no variants, and 'x' names one"):
        check_critic("embedded:x")


def test_the_embedded_critics_of_the_two_roles_differ(tmp_path: Path) -> None:
    guide, selector = (load_critic("embedded", role, tmp_path) for role in ("guide", "selector"))
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert guide.judge(image, "a frog") != selector.judge(image, "a frog")
    assert not list(tmp_path.iterdir())


def test_the_clips_of_the_two_roles_differ_and_any_other_can_be_named(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def load(name: str, tag: str, **options: object) -> Critic:
        asked.append((name, tag, options))
        return Painter()

    monkeypatch.setattr("sgool.guidance.clip.load_clip", load)
    load_critic("clip", "guide", tmp_path)
    load_critic("clip", "selector", str(tmp_path), "meta")
    load_critic("clip:RN50/openai", "selector", tmp_path)
    names = [f"{name}/{tag}" for name, tag, _ in asked]
    assert names == [VARIANTS["guide"], VARIANTS["selector"], "RN50/openai"] and len(set(names)) == 3
    assert [options["models_dir"] for *_, options in asked] == [tmp_path] * 3
    assert [options["device"].type for *_, options in asked] == ["cpu", "meta", "cpu"]
