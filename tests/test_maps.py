"""Heat maps against the formulas written out, with whole graphs and in loops; and where they look on known scenes."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sgool.errors import SgoolError
from sgool.guidance import cam, embedded, image_reward, legrad
from sgool.guidance.clip import Clip
from sgool.guidance.critic import EmbeddingCritic
from sgool.guidance.evidence import cut, evidence, merged, parts_of, unlike
from sgool.guidance.maps import MAPS, can_map, heat, suitable
from sgool.guidance.pickscore import to_open_clip
from sgool.guidance.prompt import phrases
from sgool.images import read_image
from sgool.tiny.words import SUBJECTS, unknown_words

SCENES = Path(__file__).parent / "data" / "scenes"
CPU = torch.device("cpu")
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


class Tokens:
    """Enough of a tokenizer for a text to have an embedding."""

    context_length = 8

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 30 + 1 for letter in text[:6]]

    def __call__(self, texts: Any) -> Tensor:
        rows = [(self.encode(text) + [31] + [0] * 8)[:8] for text in texts]
        return torch.tensor(rows)


def moved(network: nn.Module) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for each in network.parameters():
            each.add_(0.1 * torch.randn_like(each))
    return network.eval()


def small(vision: dict[str, Any]) -> Clip:
    torch.manual_seed(0)
    return Clip(moved(open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)), Tokens())


def views(side: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(side)
    return [torch.rand(1, 3, side, side, generator=generator) for _ in range(count)]


def directions(count: int = 2) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(5))


def normalized(clip: Clip, images: list[Tensor]) -> Tensor:
    return (torch.cat(images) - clip._mean) / clip._std


def stage_by_stage(clip: Clip, images: list[Tensor], last: int) -> tuple[Tensor, Tensor]:
    """The output of a stage and the unit features, the ResNet run by hand, with its whole graph."""
    visual = clip.model.visual
    x = visual.stem(normalized(clip, images).requires_grad_())
    for number in range(1, 5):
        x = getattr(visual, f"layer{number}")(x)
        if number == last:
            kept = x
            x = x * 1
    return kept, F.normalize(visual.attnpool(x), dim=-1)


def by_hand(activations: Tensor, gradients: Tensor, name: str) -> Tensor:
    """The papers' sums over channels and places, one by one, of one image [C, h, w]."""
    a, g = activations.double(), gradients.double()
    total = torch.zeros(a.shape[1:], dtype=torch.float64)
    for channel in range(len(a)):
        weight = 0.0
        for row in range(a.shape[1]):
            for column in range(a.shape[2]):
                slope = float(g[channel, row, column])
                if name == "grad-cam":
                    weight += slope / (a.shape[1] * a.shape[2])
                elif slope:
                    alpha = slope**2 / (2 * slope**2 + float(a[channel].sum()) * slope**3)
                    weight += alpha * max(slope, 0.0)
        total += weight * a[channel]
    return total.clamp_min(0)


@pytest.mark.parametrize("name", ["grad-cam", "grad-cam++"])
def test_grad_cam_is_the_papers_sum_of_a_whole_graph(name: str) -> None:
    clip, images, texts = small({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}), views(64), directions()
    found = MAPS[name].maps(clip, images, texts)
    # The last stage of 7 cells or more has 8 here.
    activations, features = stage_by_stage(clip, images, 2)
    assert found.shape == (2, 3, 8, 8) and found.std() > 0
    for number, text in enumerate(texts):
        (gradients,) = torch.autograd.grad((features @ text).sum(), activations, retain_graph=True)
        for image in range(len(images)):
            expected = by_hand(activations[image].detach(), gradients[image], name)
            torch.testing.assert_close(found[number, image].double(), expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_grad_cam_takes_the_last_stage_where_that_is_fine_enough() -> None:
    clip = small({"image_size": 224, "layers": [1, 1, 1, 1], "width": 8})
    assert cam.maps(clip, views(224, 1), directions()).shape == (2, 1, 7, 7)


def test_legrad_is_that_of_transformers_attentions_with_the_whole_graph() -> None:
    torch.manual_seed(0)
    options = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2)
    config = CLIPVisionConfig(**options, image_size=32, patch_size=8, projection_dim=16, hidden_act="gelu")
    config._attn_implementation = "eager"
    theirs = moved(CLIPVisionModelWithProjection(config))
    clip = small({"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8})
    state = to_open_clip(theirs.state_dict())
    left = clip.model.load_state_dict({key: value for key, value in state.items() if "logit" not in key}, strict=False)
    assert not left.unexpected_keys and not [key for key in left.missing_keys if key.startswith("visual")]
    images, texts = views(32), directions()
    out = theirs(pixel_values=normalized(clip, images), output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(clip.encode(images), F.normalize(out.image_embeds, dim=-1), rtol=1e-4, atol=1e-5)
    found = legrad.maps(clip, images, texts)
    assert found.shape == (2, 3, 4, 4)
    for number, text in enumerate(texts):
        total = torch.zeros(3, 16)
        for layer, attention in enumerate(out.attentions):
            pooled = theirs.vision_model.post_layernorm(out.hidden_states[layer + 1][:, 0])
            score = (F.normalize(theirs.visual_projection(pooled), dim=-1) @ text).sum()
            (gradient,) = torch.autograd.grad(score, attention, retain_graph=True)
            total += gradient.clamp_min(0).mean((1, 2))[:, 1:]
        torch.testing.assert_close(found[number].flatten(1), total, rtol=1e-3, atol=1e-5 * float(total.max()))


def test_maps_leave_the_network_as_it_was() -> None:
    for vision, maps in (
        ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, cam.maps),
        ({"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}, legrad.maps),
    ):
        clip = small(vision)
        images = views(clip.image_size[0], 1)
        before = clip.encode(images)
        maps(clip, images, directions())
        assert torch.equal(clip.encode(images), before)
        hooks = [each for each in clip.model.modules() if each._forward_hooks or each._forward_pre_hooks]
        assert not hooks and not any(each.requires_grad or each.grad is not None for each in clip.model.parameters())


def test_a_failing_network_keeps_no_hook() -> None:
    clip = small({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8})
    with pytest.raises(RuntimeError):
        cam.maps(clip, [torch.rand(1, 4, 64, 64)], directions())
    assert not [each for each in clip.model.modules() if each._forward_hooks]


def test_a_convolutional_network_of_timm_has_grad_cam() -> None:
    pytest.importorskip("timm")
    vision = {"timm_model_name": "convnext_atto", "timm_proj": "linear", "timm_pool": "", "image_size": 224}
    clip = small({**vision, "timm_model_pretrained": False})
    assert suitable(clip) == "grad-cam++" and not can_map(clip, "legrad")
    assert cam.maps(clip, views(224, 1), directions()).shape == (2, 1, 7, 7)


def test_a_transformer_of_timm_has_no_maps_and_says_so() -> None:
    pytest.importorskip("timm")
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "timm_pool": "", "image_size": 224}
    clip = small({**vision, "timm_model_pretrained": False})
    clip.name = "clip:some"
    with pytest.raises(SgoolError, match=r"^The critic clip:some has no heat maps, because its image encoder is of an"):
        suitable(clip)


def test_a_critic_that_is_no_clip_says_so() -> None:
    with pytest.raises(SgoolError, match=r"^The critic ImageReward has no heat maps, because it is no CLIP\.$"):
        suitable(image_reward.ImageReward.__new__(image_reward.ImageReward))


@pytest.fixture(scope="module", params=list(MAPS))
def looking(request: pytest.FixtureRequest) -> tuple[str, Clip]:
    clips = [embedded.load("", role, Path(), CPU) for role in ("guide", "selector")]
    return request.param, next(clip for clip in clips if can_map(clip, request.param))


def test_the_peak_lies_on_the_side_of_the_subject_that_is_named(looking: tuple[str, Clip]) -> None:
    """The first subject of a caption is on the left."""
    name, clip = looking
    with open(SCENES / "captions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if " and " in row["caption"] and not unknown_words(row["caption"])]
    right = []
    for row in rows:
        image = read_image(SCENES / row["file"])
        maps, _ = heat(clip, image, [re.sub(" on a .*", "", phrase) for phrase in phrases(row["caption"])], name)
        assert maps.shape == (2, *image.shape[-2:]) and maps.min() >= 0
        columns = maps.flatten(1).argmax(1) % image.shape[-1]
        right += [int(columns[0]) < image.shape[-1] / 2, int(columns[1]) >= image.shape[-1] / 2]
    assert len(right) >= 16 and sum(right) >= 0.9 * len(right)


def test_a_phrase_that_no_part_speaks_for_has_an_empty_map(looking: tuple[str, Clip]) -> None:
    """Of the embedded subjects, there is one for each flat picture."""
    name, clip = looking
    image = torch.full((1, 3, 64, 64), 0.5)
    texts = [f"a {word}" for word in SUBJECTS]
    maps, seen = heat(clip, image, texts, name)
    silent = (seen.found <= 0).all(0)
    assert silent.any() and not maps[silent].any()


class Colors(EmbeddingCritic):
    """Embeds an image as its mean color, a text as the color it names."""

    image_size = (4, 4)
    generic = ("of red", "of green", "of blue")

    def to(self, device: torch.device, half: bool | None = None) -> Colors:
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        return F.normalize(images.mean((2, 3)), dim=-1)

    def encode_text(self, text: str) -> Tensor:
        return torch.eye(3)[["red", "green", "blue"].index(text.split()[-1])]


def test_evidence_is_the_cosine_beyond_that_of_generic_phrases_in_units_of_their_spread() -> None:
    image = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    critic = Colors()
    seen = evidence(critic, image, ["red", "a blue"])
    for number, region in enumerate(seen.regions):
        part = image[..., region.top : region.top + region.height, region.left : region.left + region.width]
        color = critic.encode([part])[0]
        others = color[[1, 2]], color[[0, 1]]  # but for the one that names the same
        for column, (own, rest) in enumerate(zip((color[0], color[2]), others, strict=True)):
            torch.testing.assert_close(seen.found[number, column], own - rest.mean())
            torch.testing.assert_close(seen.strength[number, column], (own - rest.mean()) / rest.std().clamp_min(1e-4))


def test_generic_phrases_of_the_same_noun_do_not_count() -> None:
    assert unlike("a small frog", ["a frog", "a car"]) == ["a car"]
    assert unlike("a frog", ["a frog"]) == ["a frog"]


@pytest.mark.parametrize(("height", "width", "count"), [(64, 64, 10), (64, 128, 24), (100, 64, 21), (64, 256, 38)])
def test_parts_are_squares_that_cover_the_image(height: int, width: int, count: int) -> None:
    parts = parts_of(height, width)
    seen = torch.zeros(height, width)
    for part, piece in zip(parts, cut(torch.zeros(1, 3, height, width), parts), strict=True):
        assert part.height == part.width and piece.shape[-2:] == (part.height, part.width)
        seen[part.top : part.top + part.height, part.left : part.left + part.width] += 1
    assert seen.min() >= 1 and len(parts) == count
    assert {part.height for part in parts} == {64, 32}


def test_parts_count_by_their_evidence_and_leave_no_seam() -> None:
    seen = evidence(Colors(), torch.full((1, 3, 64, 64), 0.5), ["red"])
    ones = torch.ones(1, len(seen.regions), 2, 2)
    even = replace(seen, found=torch.full_like(seen.found, 0.5))
    torch.testing.assert_close(merged(ones, even, (64, 64)), torch.full((1, 64, 64), 0.5**2))
    corner = [region.height == 32 and region.top == region.left == 0 for region in seen.regions]
    only = replace(seen, found=torch.where(torch.tensor(corner), 1.0, -1.0)[:, None])
    found = merged(ones, only, (64, 64))[0]
    # In the corner it meets the image as a whole, which says nothing; towards its own border it fades.
    assert found[0, 0] == 0.5 and found[:, 32:].abs().max() == 0 and found[32:].abs().max() == 0
    assert found[0].diff().abs().max() < 0.15 and found.min() >= 0
