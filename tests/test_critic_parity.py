"""Each critic against another implementation, at a small size, from random weights in the published file's layout.

The published files themselves are not here; docs/critics.md says what follows from that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import functional as vision
from transformers import CLIPConfig, CLIPModel

from sgool.errors import SgoolError
from sgool.guidance import aesthetic, clip, hps, image_reward, pickscore
from sgool.guidance.clip import OPENAI_MEAN, OPENAI_STD
from sgool.guidance.critic import Critic
from sgool.weights import Weight

CPU = torch.device("cpu")
NAME = "sgool-small-preference"
SIDE = 32
TEXTS = ["a photo of a red car", "two (small:1.3) frogs"]
PLAIN = ["a photo of a red car", "two small frogs"]
LONG = "red car, blue house, green tree, " * 9 + "a frog"
"""More than 77 tokens, so that its end does not count."""


def clip_model(act: str = "gelu", head: int = 16) -> CLIPModel:
    """transformers' CLIP, small, with random weights that do not vanish. head: the width of the vision's heads."""
    torch.manual_seed(0)
    text = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, hidden_act=act)
    seen = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=64 // head)
    config = CLIPConfig(
        text_config={**text, "vocab_size": 49408, "eos_token_id": 49407, "projection_dim": 16},
        vision_config={**seen, "hidden_act": act, "image_size": SIDE, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )
    return moved(CLIPModel(config).eval())


def moved(network: nn.Module) -> Any:
    """Its parameters moved off what they begin with, so that none can be mistaken for another or left out."""
    torch.manual_seed(1)
    with torch.no_grad():
        for each in network.parameters():
            each.add_(0.1 * torch.randn_like(each))
    return network


@pytest.fixture(autouse=True)
def small_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's model of the same size, under a name of its own, in place of the large ones."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
    }
    (tmp_path / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{NAME}.json")
    for module in (hps, pickscore, aesthetic):
        monkeypatch.setattr(module, "MODEL", NAME)


def cosines(model: CLIPModel, pixels: Tensor, texts: list[str]) -> Tensor:
    """[N, T], of images that are normalized already."""
    tokens = torch.as_tensor(open_clip.tokenize(texts))
    image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    text = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def normalized(pixels: Tensor) -> Tensor:
    return vision.normalize(pixels, list(OPENAI_MEAN), list(OPENAI_STD))


def letterbox(images: Tensor) -> Tensor:
    """As HPSv2's code does it with torchvision (0.17 and newer, where tensors are antialiased)."""
    height, width = images.shape[-2:]
    scale = SIDE / max(height, width)
    size = [round(height * scale), round(width * scale)]
    images = vision.resize(images, size, vision.InterpolationMode.BICUBIC, antialias=True)
    down, right = SIDE - size[0], SIDE - size[1]
    return vision.pad(images, [right // 2, down // 2, right - right // 2, down - down // 2])


def crop(images: Tensor) -> Tensor:
    """As CLIP's, PickScore's and ImageReward's code does it."""
    return vision.center_crop(vision.resize(images, [SIDE], vision.InterpolationMode.BICUBIC, antialias=True), [SIDE])


def pictures(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))


SHAPES = [(SIDE, SIDE), (64, 64), (80, 50), (45, 67), (20, 26)]


def agree(critic: Critic, expected: Callable[[Tensor], Tensor]) -> None:
    """Scores and the gradient are those that the other implementation has. expected: from images to scores [N, 2]."""
    for shape in SHAPES:
        images = pictures(*shape).requires_grad_()
        found = critic.table(critic.encode_image(images), TEXTS)
        wanted = expected(images)
        assert wanted.std() > 1e-3
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
        (mine,), (theirs,) = (torch.autograd.grad((each * weights).sum(), images) for each in (found, wanted))
        assert (mine - theirs).norm() < 1e-4 * theirs.norm()
        rated = critic.rate(critic.encode_image(images), TEXTS)
        torch.testing.assert_close(rated, found.diagonal(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(critic.encode([images[:1], images[1:]]), critic.encode_image(images))


def written_hps(folder: Path, monkeypatch: pytest.MonkeyPatch, model: CLIPModel) -> Path:
    """As it is published: a training run's checkpoint."""
    state = pickscore.to_open_clip(model.state_dict())
    path = folder / hps.WEIGHT[1]
    torch.save({"epoch": 1, "state_dict": state}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(hps, "WEIGHT", (*hps.WEIGHT[:2], digest))
    return path


def test_hps_is_transformers_clip_on_the_letterboxed_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clip_model()
    written_hps(tmp_path, monkeypatch, model)
    critic = hps.load("", "guide", tmp_path, CPU)
    agree(critic, lambda images: cosines(model, normalized(letterbox(images)), PLAIN))
    assert critic.image_size == (SIDE, SIDE)
    images = pictures(SIDE, SIDE)
    torch.testing.assert_close(critic.score(images, LONG), cosines(model, normalized(images), [LONG])[:, 0])


def test_another_file_is_not_taken_for_hps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hps.WEIGHT[2]
    written_hps(tmp_path, monkeypatch, clip_model())
    monkeypatch.setattr(hps, "WEIGHT", (*hps.WEIGHT[:2], digest))
    with pytest.raises(SgoolError, match="is not the published file"):
        hps.load("", "guide", tmp_path, CPU)


def test_pickscore_is_transformers_clip_times_its_scale_on_the_middle_square(tmp_path: Path) -> None:
    model = clip_model()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    # Files of older versions hold the positions, too.
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, tmp_path / "PickScore_v1.safetensors")
    critic = pickscore.load("", "selector", tmp_path, CPU)
    scale = model.logit_scale.exp()
    assert scale > 10
    agree(critic, lambda images: scale * cosines(model, normalized(crop(images)), PLAIN))
    images = pictures(SIDE, SIDE)
    torch.testing.assert_close(critic.score(images, LONG), scale * cosines(model, normalized(images), [LONG])[:, 0])


def test_pickscores_plain_file_serves_as_well(tmp_path: Path) -> None:
    torch.save(clip_model().state_dict(), tmp_path / "PickScore_v1.bin")
    assert pickscore.load("", "guide", tmp_path, CPU).image_size == (SIDE, SIDE)


def test_every_weight_of_transformers_clip_has_a_name_in_open_clip() -> None:
    model = clip_model()
    own = open_clip.create_model(NAME).state_dict()
    found = pickscore.to_open_clip(model.state_dict())
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}
    strange = {**model.state_dict(), "vision_model.embeddings.register_tokens": torch.zeros(1)}
    with pytest.raises(SgoolError, match=r"not the weights of a CLIPModel: vision_model\.embeddings\.register_tokens"):
        pickscore.to_open_clip(strange)


def head_weights() -> dict[str, Tensor]:
    """Five layers, dropout between them, as LAION publishes them."""
    torch.manual_seed(2)
    widths = [16, 12, 8, 6, 5, 1]
    return {
        f"layers.{number}.{kind}": torch.randn(*shape)
        for number, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False)
        for kind, shape in (("weight", (after, before)), ("bias", (after,)))
    }


def test_aesthetic_is_the_published_head_on_openais_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, head = clip_model("quick_gelu"), head_weights()
    torch.save(pickscore.to_open_clip(model.state_dict()), tmp_path / "clip.pt")
    torch.save(head, tmp_path / "head.pth")
    monkeypatch.setattr(aesthetic, "weights", lambda *_: (Weight("clip.pt", ""), Weight("head.pth", "")))
    critic = aesthetic.load("", "guide", tmp_path, CPU)

    def expected(images: Tensor) -> Tensor:
        features = model.visual_projection(model.vision_model(pixel_values=normalized(crop(images))).pooler_output)
        x = features / features.norm(dim=-1, keepdim=True)
        for number in (0, 2, 4, 6, 7):
            x = x @ head[f"layers.{number}.weight"].T + head[f"layers.{number}.bias"]
        return x.expand(-1, 2)

    agree(critic, expected)
    features = critic.encode_image(pictures(SIDE, SIDE))
    assert torch.equal(critic.distance(features, TEXTS), -critic.rate(features, TEXTS))
    del head["layers.4.bias"]
    torch.save(head, tmp_path / "head.pth")
    (tmp_path / "head.pth.sha256").unlink()
    with pytest.raises(SgoolError, match="does not hold the aesthetic predictor's layers"):
        aesthetic.load("", "guide", tmp_path, CPU)


def test_aesthetic_shares_its_clip_with_the_clip_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """One download for both, and never one for the guide and the other for the selector."""
    monkeypatch.setattr(aesthetic, "MODEL", "ViT-L-14")
    below, head = aesthetic.weights("", "guide")
    assert (below,) == clip.weights("ViT-L-14/openai", "selector") and head.pinned
    assert aesthetic.network("", "guide") == clip.network("ViT-L-14-quickgelu/OpenAI", "selector")


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "photo",
    "of",
    "red",
    "car",
    "two",
    "small",
    "frog",
    "##s",
    ",",
    "tree",
]
IDS = {
    TEXTS[0]: [2, 4, 5, 6, 4, 7, 8, 3],
    TEXTS[1]: [2, 9, 10, 11, 12, 3],
    "a red car, " * 20: [2, *([4, 7, 8, 13] * 20)[:33], 3],
}
"""Texts as ImageReward reads them: at most 35 tokens, the last of them the end."""

IMAGE_WIDTH, TEXT_WIDTH, HEADS = 24, 32, (3, 4)


def blip_weights() -> dict[str, Tensor]:
    """ImageReward.pt at a small size: BLIP's own names, two layers each, and the head's."""
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, IMAGE_WIDTH),
        "blip.visual_encoder.pos_embed": (1, 17, IMAGE_WIDTH),
        "blip.visual_encoder.patch_embed.proj.weight": (IMAGE_WIDTH, 3, 8, 8),
        "blip.visual_encoder.patch_embed.proj.bias": (IMAGE_WIDTH,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (len(WORDS), TEXT_WIDTH),
        "blip.text_encoder.embeddings.position_embeddings.weight": (64, TEXT_WIDTH),
        "blip.vision_proj.weight": (8, IMAGE_WIDTH),  # of the training, and not used
    }

    def linear(name: str, before: int, after: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (after, before), (after,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    norm("blip.visual_encoder.norm", IMAGE_WIDTH)
    norm("blip.text_encoder.embeddings.LayerNorm", TEXT_WIDTH)
    for layer in range(2):
        block = f"blip.visual_encoder.blocks.{layer}"
        norm(f"{block}.norm1", IMAGE_WIDTH)
        norm(f"{block}.norm2", IMAGE_WIDTH)
        linear(f"{block}.attn.qkv", IMAGE_WIDTH, 3 * IMAGE_WIDTH)
        linear(f"{block}.attn.proj", IMAGE_WIDTH, IMAGE_WIDTH)
        linear(f"{block}.mlp.fc1", IMAGE_WIDTH, 96)
        linear(f"{block}.mlp.fc2", 96, IMAGE_WIDTH)
        block = f"blip.text_encoder.encoder.layer.{layer}"
        for kind, width in (("attention", TEXT_WIDTH), ("crossattention", IMAGE_WIDTH)):
            linear(f"{block}.{kind}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{block}.{kind}.self.key", width, TEXT_WIDTH)
            linear(f"{block}.{kind}.self.value", width, TEXT_WIDTH)
            linear(f"{block}.{kind}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{block}.{kind}.output.LayerNorm", TEXT_WIDTH)
        linear(f"{block}.intermediate.dense", TEXT_WIDTH, 80)
        linear(f"{block}.output.dense", 80, TEXT_WIDTH)
        norm(f"{block}.output.LayerNorm", TEXT_WIDTH)
    widths = [TEXT_WIDTH, 12, 8, 6, 5, 1]
    for number, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        linear(f"mlp.layers.{number}", before, after)
    generator = torch.Generator().manual_seed(4)
    state = {}
    for name, shape in shapes.items():
        about = 1.0 if name.endswith(".weight") and len(shape) == 1 else 0.0  # of what normalizes
        state[name] = about + 0.3 * torch.randn(*shape, generator=generator)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    return state


class Blip:
    """BLIP's image encoder and its text encoder, and ImageReward's head, from the papers' formulas and published names.

    Vaswani et al. 2017 for attention; the image encoder normalizes before a layer (ViT), the text encoder after (BERT).
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        found = []
        for own in zip(*(each.chunk(heads, -1) for each in (q, k, v)), strict=True):
            logits = own[0] @ own[1].transpose(1, 2) / math.sqrt(own[0].shape[-1])
            logits = logits if mask is None else logits.masked_fill(~mask[:, None], -math.inf)
            found.append(logits.softmax(-1) @ own[2])
        return torch.cat(found, -1)

    def image(self, pixels: Tensor) -> Tensor:
        top = "blip.visual_encoder"
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        embedded = patches @ self.state[f"{top}.patch_embed.proj.weight"].flatten(1).T
        embedded = embedded + self.state[f"{top}.patch_embed.proj.bias"]
        first = self.state[f"{top}.cls_token"].expand(len(pixels), -1, -1)
        x = torch.cat([first, embedded], 1) + self.state[f"{top}.pos_embed"]
        for layer in range(2):
            block = f"{top}.blocks.{layer}"
            qkv = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.linear(f"{block}.attn.proj", self.attention(*qkv, HEADS[0]))
            h = F.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", h)
        return self.norm(f"{top}.norm", x, 1e-6)

    def score(self, pixels: Tensor, ids: list[int]) -> Tensor:
        seen, top = self.image(pixels), "blip.text_encoder"
        tokens = torch.tensor([ids + [0] * (35 - len(ids))]).expand(len(pixels), -1)
        mask = torch.arange(35)[None] < len(ids)
        x = self.state[f"{top}.embeddings.word_embeddings.weight"][tokens]
        x = x + self.state[f"{top}.embeddings.position_embeddings.weight"][:35]
        x = self.norm(f"{top}.embeddings.LayerNorm", x, 1e-12)
        for layer in range(2):
            block = f"{top}.encoder.layer.{layer}"
            for kind, other, own in (("attention", None, mask), ("crossattention", seen, None)):
                source = x if other is None else other
                q = self.linear(f"{block}.{kind}.self.query", x)
                k, v = (self.linear(f"{block}.{kind}.self.{each}", source) for each in ("key", "value"))
                h = self.linear(f"{block}.{kind}.output.dense", self.attention(q, k, v, HEADS[1], own))
                x = self.norm(f"{block}.{kind}.output.LayerNorm", x + h, 1e-12)
            h = self.linear(f"{block}.output.dense", F.gelu(self.linear(f"{block}.intermediate.dense", x)))
            x = self.norm(f"{block}.output.LayerNorm", x + h, 1e-12)
        x = x[:, 0]
        for number in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{number}", x)
        return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> image_reward.ImageReward:
    torch.save(blip_weights(), tmp_path / "ImageReward.pt")
    words = "\n".join(WORDS).encode() + b"\n"
    (tmp_path / image_reward.VOCABULARY[2]).write_bytes(words)
    digest = hashlib.sha256(words).hexdigest()
    monkeypatch.setattr(image_reward, "VOCABULARY", (*image_reward.VOCABULARY[:3], digest))
    monkeypatch.setattr(image_reward, "HEADS", HEADS)
    return image_reward.load("", "guide", tmp_path, CPU)


def test_image_reward_is_the_papers_formulas_on_the_published_names(reward: image_reward.ImageReward) -> None:
    textbook = Blip(blip_weights())

    def expected(images: Tensor) -> Tensor:
        pixels = normalized(crop(images))
        return torch.stack([textbook.score(pixels, IDS[text]) for text in TEXTS], 1)

    agree(reward, expected)


def test_image_reward_reads_35_tokens_of_a_text(reward: image_reward.ImageReward) -> None:
    images = pictures(SIDE, SIDE)
    for text, ids in IDS.items():
        assert len(ids) <= 35
        expected = Blip(blip_weights()).score(normalized(images), ids)
        torch.testing.assert_close(reward.score(images, text), expected, rtol=1e-5, atol=1e-5)
    # A padded text and a full one in one batch.
    both = reward.rate(reward.encode_image(images), [TEXTS[0], "a red car, " * 20])
    single = [reward.score(images, text)[row] for row, text in enumerate([TEXTS[0], "a red car, " * 20])]
    torch.testing.assert_close(both, torch.stack(single), rtol=1e-5, atol=1e-5)


def test_weights_that_lack_something_are_not_image_rewards(tmp_path: Path, reward: image_reward.ImageReward) -> None:
    vocabulary = tmp_path / image_reward.VOCABULARY[2]
    for name in (
        "blip.visual_encoder.blocks.1.attn.proj.bias",
        "blip.text_encoder.encoder.layer.1.output.dense.weight",
    ):
        state = blip_weights()
        del state[name]
        with pytest.raises(SgoolError, match=r"These are not the weights of ImageReward: .* is missing"):
            image_reward.build(state, vocabulary, HEADS)


@pytest.mark.parametrize("name", ["hps", "pickscore", "reward"])
def test_half_precision_gives_nearly_the_same_scores_and_gradients(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Of a loss whose gradient float16 could not hold. (Before 2.3, torch has no convolution in float16 on a CPU.)"""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 3):
        pytest.skip("needs torch 2.3")
    critic: Any
    if name == "reward":
        critic = request.getfixturevalue("reward")
    elif name == "hps":
        written_hps(tmp_path, monkeypatch, clip_model())
        critic = hps.load("", "guide", tmp_path, CPU)
    else:
        torch.save(clip_model().state_dict(), tmp_path / "PickScore_v1.bin")
        critic = pickscore.load("", "guide", tmp_path, CPU)
    images = pictures(64, 64).requires_grad_()

    def scored() -> tuple[Tensor, Tensor]:
        found = critic.rate(critic.encode_image(images), TEXTS)
        (gradient,) = torch.autograd.grad(1e-7 * found.sum(), images)
        return found.detach(), gradient

    full, gradient = scored()
    module = "image_reward" if name == "reward" else "clip"
    monkeypatch.setattr(f"sgool.guidance.{module}.precision", lambda *_: torch.float16)
    critic.to(CPU, True)
    assert critic.dtype == torch.float16
    half, rounded = scored()
    torch.testing.assert_close(half, full, rtol=2e-2, atol=2e-2)
    assert not torch.equal(half, full)
    assert F.cosine_similarity(rounded.flatten(), gradient.flatten(), dim=0) > 0.995
    assert 0.9 < rounded.norm() / gradient.norm() < 1.1
