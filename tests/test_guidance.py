from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from sgool.errors import SgoolError
from sgool.guidance.clip import Clip, load_clip_folder
from sgool.guidance.critic import shifted, spherical_distance
from sgool.guidance.loss import DOODL, SaliencyLoss, Whole, assign, crop, random_cutouts
from sgool.region import Region

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 520, "width": 64, "heads": 2, "layers": 2},
}
RESNET = {**CONFIG, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}
MERGES = "#version: 0.2\nr e\nre d</w>\nc a"


def write_clip(folder: Path, config: dict = CONFIG, *, shared: bool = False) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model = open_clip.CLIP(**config)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    (folder.parent if shared else folder).joinpath("bpe.txt.gz").write_bytes(gzip.compress(MERGES.encode()))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return load_clip_folder(write_clip(tmp_path_factory.mktemp("clip") / "vit"))


def test_image_encoder_matches_the_model_on_pictures_of_its_own_size(clip: Clip) -> None:
    images = torch.rand(2, 3, 32, 32)
    normalized = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    expected = clip.model.visual(normalized)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(clip.encode_image(images), expected)


@pytest.mark.parametrize("config", [CONFIG, RESNET], ids=["vit", "resnet"])
def test_image_gradient_matches_finite_differences(tmp_path: Path, config: dict) -> None:
    clip = load_clip_folder(write_clip(tmp_path / "clip", config, shared=True))
    assert clip.encode_text("red").norm() == pytest.approx(1, abs=1e-5)
    image = torch.rand(1, 3, 50, 40, requires_grad=True)
    loss = SaliencyLoss(clip, "a red car", whole=Whole(cutouts=3))
    regions = [Region(4, 5, 30, 20, 1.0)]

    def value(x: torch.Tensor) -> torch.Tensor:
        return loss(x, regions, torch.Generator().manual_seed(1))

    (gradient,) = torch.autograd.grad(value(image), image)
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())
    way = gradient / gradient.norm()
    with torch.no_grad():
        slope = (value(image + 0.02 * way) - value(image - 0.02 * way)) / 0.04
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_text_is_cleaned_and_long_text_is_averaged(clip: Clip) -> None:
    assert torch.equal(clip.encode_text("a (red:1.4) car"), clip.encode_text("a red car"))
    long, parts = "aaaa bbbb, cccc ddd, eeee", ["aaaa bbbb", "cccc ddd", "eeee"]
    # Without merges every letter is a token, so that a context of 12 holds 10 letters.
    mean = torch.stack([clip.encode_text(p) for p in parts]).mean(0)
    torch.testing.assert_close(clip.encode_text(long), mean / mean.norm())
    with torch.inference_mode():
        text = clip.encode_text("first seen under inference mode")
    assert not text.is_inference()


def test_only_the_image_encoder_takes_the_memory_of_another_device(tmp_path: Path) -> None:
    """On "meta", where tensors have no values, the text encoder could not answer."""
    clip = load_clip_folder(write_clip(tmp_path / "vit"))
    before = clip.encode_text("a red car")
    for moved in (clip.to("meta"), load_clip_folder(tmp_path / "vit", device="meta")):
        devices = {name: weight.device.type for name, weight in moved.model.named_parameters()}
        assert {name for name, kind in devices.items() if kind == "meta"} == {n for n in devices if "visual." in n}
        assert moved.encode_text("a red car").device.type == moved.encode_image(torch.rand(1, 3, 50, 40)).device.type
    clip.device = torch.device("cpu")  # its image encoder is lost, the text encoder as it was
    clip._texts.clear()
    torch.testing.assert_close(clip.encode_text("a red car"), before)


def test_tokens_are_those_of_open_clip(clip: Clip) -> None:
    # 512 bytes, three merges, start, end: "red" is merge 2, "ca" merge 3, "r</w>" byte 'r' as the end of a word.
    r_end = 256 + (ord("r") - 33)
    assert clip.tokenizer(["red car"]).tolist() == [[515, 513, 514, r_end, 516, *[0] * 7]]


def test_missing_and_unfit_files_are_named(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    (folder / "bpe.txt.gz").unlink()
    with pytest.raises(SgoolError, match=r"bpe\.txt\.gz is missing"):
        load_clip_folder(folder)
    many = MERGES + "".join(f"\nx {c}" for c in "abcdefgh")
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(many.encode()))
    with pytest.raises(SgoolError, match="525 tokens"):
        load_clip_folder(folder)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(SgoolError, match="could not be loaded"):
        load_clip_folder(folder)


def test_spherical_distance_is_half_the_squared_angle_and_safe_where_it_is_zero() -> None:
    angle = np.array([0.0, 0.3, math.pi / 2, 3.0])
    x = torch.tensor(np.stack([np.cos(angle), np.sin(angle)], 1), requires_grad=True)
    y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    distance = spherical_distance(x, y)
    np.testing.assert_allclose(distance.detach().numpy(), angle**2 / 2, atol=1e-9)
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    # Along the circle the slope is the angle itself; at zero distance there is none.
    tangent = np.stack([-np.sin(angle), np.cos(angle)], 1)
    np.testing.assert_allclose((gradient.numpy() * tangent).sum(1), angle, rtol=1e-6, atol=1e-9)
    assert spherical_distance(y, -y).isfinite() and torch.isfinite(gradient).all()
    opposite = (-y).requires_grad_()
    (steep,) = torch.autograd.grad(spherical_distance(y, opposite), opposite)
    assert steep.isfinite().all()


def test_cutouts_are_pooled_squares_of_the_image() -> None:
    # Pixel (y, x) holds its own coordinates, so that a pooled square tells where it came from and how large it is.
    grid = torch.stack(torch.meshgrid(torch.arange(96.0), torch.arange(64.0), indexing="ij"))
    image = torch.cat([grid, torch.zeros(1, 96, 64)])[None]
    cuts = random_cutouts(image, 300, 16, torch.Generator().manual_seed(0), power=0.3, min_size=16)
    assert cuts.shape == (300, 3, 16, 16)
    sides = (cuts[:, 0, -1, 0] - cuts[:, 0, 0, 0]) * 16 / 15
    torch.testing.assert_close((cuts[:, 1, 0, -1] - cuts[:, 1, 0, 0]) * 16 / 15, sides, rtol=0.1, atol=1)
    assert sides.min() >= 15 and sides.max() <= 65
    # E[u^0.3] = 1 / 1.3
    assert float(sides.mean()) == pytest.approx(16 + 48 / 1.3, abs=2.5)
    top = cuts[:, 0].mean((1, 2)) - sides / 2
    assert top.min() >= -2 and (top + sides).max() <= 97 and top.max() > 30
    again = random_cutouts(image, 300, 16, torch.Generator().manual_seed(0), power=0.3, min_size=16)
    assert torch.equal(cuts, again)


def test_small_images_still_give_different_cutouts() -> None:
    image = torch.rand(1, 3, 20, 20)
    cuts = random_cutouts(image, 4, 32, torch.Generator().manual_seed(0))
    assert cuts.shape == (4, 3, 32, 32) and not torch.allclose(cuts[0], cuts[1])
    assert random_cutouts(image, 0, 32).shape == (0, 3, 32, 32)


def test_the_largest_cutouts_reach_every_border_and_do_not_leave_the_image() -> None:
    """With a power of 0 every square is as large as can be, so it is a part of the image as it is."""
    for height, width in ((66, 64), (64, 66)):
        image = torch.rand(1, 3, height, width)
        cuts = random_cutouts(image, 40, 64, torch.Generator().manual_seed(0), power=0.0)
        places = [(top, left) for top in range(height - 63) for left in range(width - 63)]
        parts = [image[0, :, top : top + 64, left : left + 64] for top, left in places]
        found = [[torch.equal(cut, part) for part in parts].index(True) for cut in cuts]
        assert set(found) == {0, 1, 2}


def test_the_smallest_side_of_a_cutout_is_what_is_asked_for() -> None:
    grid = torch.arange(64.0).expand(1, 3, 64, 64)

    def sides(**options: int) -> torch.Tensor:
        cuts = random_cutouts(grid, 200, 16, torch.Generator().manual_seed(0), power=3.0, **options)
        return (cuts[:, 0, 0, -1] - cuts[:, 0, 0, 0]) * 16 / 15

    assert 39 <= sides(min_size=40).min() <= 42
    assert sides(min_size=99).min() == pytest.approx(64)
    assert 15 <= sides().min() <= 18


def test_a_cutout_smaller_than_what_the_guide_sees_is_interpolated_between_the_centers_of_its_pixels() -> None:
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    cut = random_cutouts(ramp, 1, 32, power=0.0)[0, 0]
    torch.testing.assert_close(cut[0, :5], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75]))


def test_loss_is_the_weighted_sum_of_single_distances(clip: Clip) -> None:
    image = torch.rand(1, 3, 64, 48)
    regions = [Region(0, 0, 20, 20, 0.1), Region(1, 1, 9, 9, 0.0), Region(10, 8, 40, 32, 0.9)]  # roots of 1 to 3
    texts = " [SEP] a dog [SEP] a tree"
    loss = SaliencyLoss(clip, "a red car", whole=Whole(cutouts=5), region_prompts=texts, saliency_weight=0.3)

    def distance(picture: torch.Tensor, prompt: str) -> float:
        cosine = (clip.encode_image(picture)[0] @ clip.encode_text(prompt)).item()
        return math.acos(cosine) ** 2 / 2

    cuts = random_cutouts(image, 5, 32, torch.Generator().manual_seed(7), 0.3)
    overall = [distance(p, "a red car") for p in (image, *cuts[:, None])]
    first = distance(image[..., 0:20, 0:20], "a red car")
    second = distance(image[..., 10:50, 8:40], "a tree")
    expected = 0.7 * np.mean(overall) + 0.3 * (0.25 * first + 0.75 * second)
    assert float(loss(image, regions, torch.Generator().manual_seed(7))) == pytest.approx(expected, rel=1e-4)

    def at(weight: float, regions: list[Region]) -> torch.Tensor:
        one = SaliencyLoss(clip, "a red car", whole=Whole(cutouts=5), saliency_weight=weight)
        return one(image, regions, torch.Generator().manual_seed(7))

    assert torch.equal(at(0.0, regions), at(0.0, [])) and torch.equal(at(0.5, []), at(0.0, regions))
    assert float(at(0.0, regions)) == pytest.approx(np.mean(overall), rel=1e-4)
    published = random_cutouts(image, 16, 32, torch.Generator().manual_seed(7), 0.3)
    smallest = min(distance(cut[None], "a red car") for cut in published)
    doodl = SaliencyLoss(clip, "a red car", whole=DOODL, saliency_weight=0.0)
    assert float(doodl(image, regions, torch.Generator().manual_seed(7))) == pytest.approx(smallest, rel=1e-4)


def test_each_region_is_compared_with_the_phrase_that_suits_it(clip: Clip) -> None:
    image = torch.rand(1, 3, 64, 64)
    regions = [Region(0, 0, 30, 30, 0.5), Region(34, 34, 30, 30, 0.5)]
    prompt = "a (red:1.2) car, a dog and a tree <lora:x:1>"
    alone = {"whole": Whole(cutouts=0), "match_phrases": True, "saliency_weight": 1.0}
    loss = SaliencyLoss(clip, prompt, **alone)
    assert loss.phrases == ["a red car", "a dog", "a tree"]
    crops = [clip.encode_image(image[..., r.top : r.top + 30, r.left : r.left + 30])[0] for r in regions]
    cosines = [[float(c @ clip.encode_text(phrase)) for phrase in loss.phrases] for c in crops]
    # The greedy rule by hand: the largest of all six, then the largest of the other region and the other phrases.
    value, first, phrase = max((cosines[r][p], r, p) for r in range(2) for p in range(3))
    other = max(cosines[1 - first][p] for p in range(3) if p != phrase)
    expected = (math.acos(value) ** 2 + math.acos(other) ** 2) / 4
    assert float(loss(image, regions)) == pytest.approx(expected, rel=1e-4)
    # More regions than phrases: the last do not count, however heavy, unless they have a text of their own.
    few = SaliencyLoss(clip, "a red car and a dog", **alone)
    assert torch.equal(few(image, regions), few(image, [*regions, Region(20, 0, 20, 20, 0.9)]))
    last = SaliencyLoss(clip, "a car and a dog", region_prompts="[SEP][SEP]sea", **alone)
    assert last(image, [*regions, Region(20, 0, 20, 20, 0.9)]) != last(image, regions)
    told = SaliencyLoss(clip, prompt, region_prompts="sea [SEP]", **alone)
    sea = math.acos(float(crops[0] @ clip.encode_text("sea"))) ** 2 / 4
    assert float(told(image, regions)) == pytest.approx(sea + math.acos(max(cosines[1])) ** 2 / 4, rel=1e-4)


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        ([[0.9, 0.8], [0.85, 0.1]], [0, 1]),  # the second region prefers what the first has, and gets what is missing
        ([[0.1, 0.3]], [1]),
        ([[-0.1, -0.2, -0.9], [-0.3, -0.1, -0.8], [-0.2, -0.2, -0.7]], [0, 1, 2]),
    ],
)
def test_assignment_of_phrases(similarity: list[list[float]], expected: list[int]) -> None:
    assert assign(torch.tensor(similarity)) == expected


def test_one_batch_goes_through_clip_and_every_cutout_has_gradient(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[torch.Tensor] = []
    encode = clip.encode_image

    def watched(images: torch.Tensor) -> torch.Tensor:
        images.retain_grad()
        batches.append(images)
        return encode(images)

    monkeypatch.setattr(clip, "encode_image", watched)
    loss = SaliencyLoss(clip, "a red car", whole=Whole(cutouts=4))
    image = torch.rand(1, 3, 48, 48, requires_grad=True)
    loss(image, [Region(0, 0, 24, 24, 1.0)], torch.Generator().manual_seed(0)).backward()
    assert [len(b) for b in batches] == [1 + 4 + 1]
    assert batches[0].grad is not None and batches[0].grad.abs().amax((1, 2, 3)).min() > 0


def test_bad_regions_and_weights_are_refused(clip: Clip) -> None:
    image = torch.rand(1, 3, 32, 32)
    for box in (Region(0, 0, 0, 5, 1.0), Region(20, 0, 20, 5, 1.0), Region(0, -1, 5, 5, 1.0)):
        with pytest.raises(SgoolError, match="region"):
            crop(image, box)
    wide = torch.rand(1, 3, 32, 48)
    assert torch.equal(crop(wide, Region(2, 40, 30, 8, 1.0)), wide[..., 2:32, 40:48])
    with pytest.raises(SgoolError, match="does not lie within the image of 48x32"):
        crop(wide, Region(2, 41, 30, 8, 1.0))
    for weight in (1.5, -0.1):
        with pytest.raises(SgoolError, match="between 0 and 1"):
            SaliencyLoss(clip, "x", saliency_weight=weight)
    with pytest.raises(SgoolError, match="at least one cutout"):
        Whole(cutouts=0, itself=False)


def test_an_image_is_judged_by_the_mean_over_shifted_copies(clip: Clip) -> None:
    image = torch.rand(1, 3, 64, 96)
    copies = shifted(image)
    assert copies.shape == (5, 3, 64, 96) and torch.equal(copies[0], image[0])
    assert torch.equal(copies[1][:, 2:, 3:], image[0][:, :-2, :-3])  # down and to the right by a 32nd
    assert torch.equal(copies[2][:, 2:, :-3], image[0][:, :-2, 3:])
    assert torch.equal(copies[3][:, :-2, 3:], image[0][:, 2:, :-3])
    assert torch.equal(copies[4][:, :-2, :-3], image[0][:, 2:, 3:])
    # What comes in from outside is the border once more.
    assert torch.equal(copies[1][:, :2, 3:], image[0][:, :1, :-3].expand(3, 2, 93))
    single = [float(clip.encode_image(copy[None])[0] @ clip.encode_text("a red car")) for copy in copies]
    assert clip.judge(image, "a red car") == pytest.approx(np.mean(single), abs=1e-5)
