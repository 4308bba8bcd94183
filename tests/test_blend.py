"""Several critics as one guide, and the rule that no network both guides and judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sgool.errors import SgoolError
from sgool.generate import CANDIDATE_STRIDE, Critics, Request, generate
from sgool.guidance import CRITICS, check_critic, critic_weights, load_critic, parse_sum
from sgool.guidance.blend import Blend, favorite
from sgool.guidance.critic import Critic, shifted
from sgool.guidance.half import LARGE, in_precision, is_half, precision
from sgool.guidance.loss import SaliencyLoss, Whole
from sgool.presets import resolve
from sgool.region import Region
from sgool.result import Ending
from sgool.settings import SettingError, Settings
from sgool.zoom.keep import Judge

PROMPT = "a small penguin and a pizza on a green background"


class Reds(Critic):
    """How red an image is, on a scale of its own; `bias` for each letter of the text. Sees images at a size of its own.

    Its features have a shape of their own: [N, 1, side].
    """

    def __init__(self, scale: float = 1.0, side: int = 4, channel: int = 0, bias: float = 0.0) -> None:
        self.scale, self.side, self.channel, self.bias = scale, side, channel, bias
        self.image_size = side, side
        self.unit = f"reds {scale}"
        self.seen: list[int] = []

    def to(self, device: torch.device, half: bool | None = None) -> Reds:
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return self.resize(images)[:, self.channel : self.channel + 1].mean(-1)

    def rate(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        assert features.shape[1:] == (1, self.side)
        letters = torch.tensor([len(text) for text in texts], dtype=torch.float32)
        return self.scale * (features.mean((1, 2)) + self.bias * letters)


def images(count: int, side: int = 12) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(7))


def scores(critic: Critic, pictures: Tensor, text: str = "x") -> Tensor:
    return critic.rate(critic.encode_image(pictures), [text] * len(pictures))


def blend() -> tuple[Blend, Reds, Reds]:
    red, green = Reds(1.0, 4), Reds(50.0, 6, channel=1)
    return Blend([red, green], [1.0, 3.0]), red, green


def test_a_blend_is_the_weighted_mean_of_scores_by_what_they_vary() -> None:
    both, red, green = blend()
    seen, others = images(6), images(3, 20)
    both.settle(both.parts(both.encode([seen]), ["x"] * 6))
    spreads = [scores(each, seen).std(correction=0) for each in (red, green)]
    expected = (scores(red, others) / spreads[0] + 3 * scores(green, others) / spreads[1]) / 4
    torch.testing.assert_close(scores(both, others), expected)
    features = both.encode([others])
    torch.testing.assert_close(both.distance(features, ["x"] * 3), -expected)
    torch.testing.assert_close(both.table(features, ["x", "y"]), expected[:, None].expand(-1, 2))
    torch.testing.assert_close(both.score(others, "x"), expected)


def test_a_critics_scale_changes_nothing_and_its_weight_does() -> None:
    seen = images(6)
    found = []
    for scale, weight in ((1.0, 1.0), (1000.0, 1.0), (1.0, 5.0)):
        both = Blend([Reds(), Reds(scale, 6, channel=1)], [1.0, weight])
        found.append(both.settle(both.parts(both.encode([seen]), ["x"] * 6)))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_each_critic_of_a_blend_prepares_the_views_in_its_own_way() -> None:
    both, red, green = blend()
    views = [images(1, 30), images(2, 9), images(1, 6)]
    features = both.encode(views)
    torch.testing.assert_close(features, torch.cat([each.encode(views).flatten(1) for each in (red, green)], 1))
    assert red.seen == green.seen == [4, 4]


def test_unsettled_scores_are_measured_among_themselves() -> None:
    both, _, _ = blend()
    assert not both.settled and both.fresh() is not both
    features = both.encode([images(5)])
    table = both.table(features, ["a", "bb"])
    both.settle(both.parts(features, ["a"] * 5))
    assert both.settled and not both.fresh().settled
    torch.testing.assert_close(table, both.table(features, ["a", "bb"]))


def test_a_critic_that_rates_all_alike_is_not_divided_by_zero() -> None:
    both = Blend([Reds(), Reds(0.0)], [1.0, 1.0])
    found = both.settle(both.parts(both.encode([images(4)]), ["x"] * 4))
    assert found.isfinite().all() and found.std() > 0
    single = Blend([Reds(), Reds(2.0)], [1.0, 1.0])
    assert single.settle(torch.tensor([[0.5, 2.0]])).tolist() == [1.25]


def test_the_loss_settles_a_blend_by_the_first_image_and_cutouts_of_it() -> None:
    """Also without cutouts of its own, and once."""
    both, red, _ = blend()
    loss = SaliencyLoss(both, "a car", whole=Whole(cutouts=0), saliency_weight=0.3)
    first = loss(images(1, 40), [Region(2, 3, 20, 24, 1.0)])
    assert both.settled and first.isfinite() and red.seen == [17, 2]
    spreads = both._spreads
    assert spreads is not None and (spreads > 0).all() and spreads[1] > 10 * spreads[0]
    loss(images(1, 40).flip(1))
    assert both._spreads is spreads and red.seen == [17, 2, 1]


def test_the_gradient_of_a_blend_is_the_sum_of_its_critics() -> None:
    both, red, green = blend()
    both.settle(torch.tensor([[0.0, 0.0], [2.0, 8.0]]))  # spreads 1 and 4
    image = images(1, 20).requires_grad_()
    (found,) = torch.autograd.grad(both.score(image, "x").sum(), image)
    (one,) = torch.autograd.grad(scores(red, image).sum(), image)
    (other,) = torch.autograd.grad(scores(green, image).sum(), image)
    torch.testing.assert_close(found, (one + 3 * other / 4) / 4)


@pytest.mark.parametrize(("units", "liked"), [(("cosine", "cosine"), 1), (("cosine", "rating"), 0)])
def test_of_two_scales_neither_decides_by_its_size(units: tuple[str, str], liked: int) -> None:
    """The second critic's scores are large, and differ by little where the first one's differ by much."""
    guide, selector = Reds(), Reds()
    guide.unit, selector.unit = units
    parts, chosen = torch.tensor([[0.9], [0.1], [0.1]]), [5.0, 6.0, 7.0 - 2.5]
    assert favorite(guide, selector, parts, chosen) == liked
    assert favorite(guide, selector, torch.zeros(3, 1), [1.0, 1.0, 1.0]) == 0  # the first of equals


def test_a_blend_is_settled_by_the_starts_that_are_tried(backend, critics: Critics) -> None:
    """And the start it chooses is the one that a sum by hand chooses."""
    settings = resolve({"steps": 4, "iterations": 1, "candidates": 3, "cutouts": 2}, model="tiny")
    guide = Blend([critics.guide, Reds(1000.0)], [1.0, 2.0], "embedded 1, reds 2")
    seen: list[Tensor] = []

    class Heard(Reds):
        """The selector: it sees every start."""

        def judge(self, image: Tensor, text: str) -> float:
            seen.append(image)
            return float(self.score(shifted(image), text).mean())

    selector = Heard(0.001, 8, channel=2)
    result = generate(backend, replace(critics, guide=guide, selector=selector), Request(PROMPT, seed=1), settings)
    assert result.ending is Ending.DONE and not guide.settled  # the run has one of its own
    tried = seen[:3]
    parts = torch.tensor([[each.judge(image, PROMPT) for each in guide.critics] for image in tried])
    both = (parts / parts.std(0, correction=0)) @ torch.tensor([1.0, 2.0]) / 3
    own = torch.tensor([selector.judge(image, PROMPT) for image in tried])
    total = sum((each - each.mean()) / each.std(correction=0) for each in (both, own))
    best = int(torch.as_tensor(total).argmax())
    again = generate(
        backend,
        replace(critics, guide=guide, selector=selector),
        Request(PROMPT, seed=1 + CANDIDATE_STRIDE * best),
        settings.changed(candidates=1),
    )
    assert result.scores[0] == pytest.approx(again.scores[0], abs=1e-6)


def test_a_run_is_guided_by_a_blend(backend, critics: Critics) -> None:
    few = {"steps": 4, "strength": 1.0, "iterations": 3, "patience": 0, "cutouts": 0, "saliency_weight": 0.0}
    settings = resolve({**few, "learning_rate": 0.003, "memory": "low"}, model="tiny")
    guide = Blend([critics.guide, Reds()], [1.0, 1.0], "embedded 1, reds 1")
    result = generate(backend, replace(critics, guide=guide), Request(PROMPT, seed=1), settings)
    assert result.ending is Ending.DONE and min(result.losses[1:]) < result.losses[0] - 0.01


@pytest.mark.parametrize(("memory", "again"), [("fast", 1), ("balanced", 2), ("low", 2)])
def test_the_guides_blocks_are_computed_again_where_memory_is_short(backend, critics: Critics, memory, again) -> None:
    class Deep(Reds):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1).requires_grad_(False)
            self.calls = 0
            self.layer.register_forward_pre_hook(self.count)

        def count(self, *_: object) -> None:
            self.calls += 1

        def blocks(self) -> list[nn.Module]:
            return [self.layer]

        def encode_image(self, images: Tensor) -> Tensor:
            return super().encode_image(self.layer(images))

    guide = Deep()
    calls = []
    forward = guide.layer.forward
    guide.layer.forward = lambda x: calls.append(1) or forward(x)  # type: ignore[func-returns-value]
    settings = resolve({"steps": 4, "iterations": 1, "cutouts": 1, "memory": memory}, model="tiny")
    result = generate(backend, replace(critics, guide=guide), Request(PROMPT, seed=1), settings)
    assert result.ending is Ending.DONE
    assert len(calls) == again + 1  # the last image has no gradient
    assert "_wrapped_" not in str(guide.layer.forward)


SUMS = {
    "clip": {"clip": 1.0},
    "clip 1, hps-v2.1 5": {"clip": 1.0, "hps-v2.1": 5.0},
    "clip:RN50/openai 0.5,pickscore": {"clip:RN50/openai": 0.5, "pickscore": 1.0},
    " clip  2 , image-reward .25 ": {"clip": 2.0, "image-reward": 0.25},
}


@pytest.mark.parametrize("text", SUMS)
def test_a_guide_names_its_critics_and_their_weights(text: str) -> None:
    assert parse_sum(text) == SUMS[text]
    assert Settings(guide=text, selector="embedded").guide == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clip 1, hps 5", "there is no critic 'hps'"),
        ("clip 1,", "there is no critic ''"),
        ("clip 2", "there is no critic 'clip 2'"),
        ("clip 1, clip 2", "critic clip is named twice"),
        *((f"clip 1, pickscore {weight}", "weight of pickscore must be a number above 0, at most 100") for weight in
          ("0", "-1", "nan", "inf", "1e3", "100.1", "1 2", "x", "00000000001")),
        ("clip 1, clip:../x 2", "a CLIP is named clip:MODEL/WEIGHTS"),
    ],
)  # fmt: skip
def test_a_sum_that_cannot_be_is_told_in_one_sentence(text: str, told: str) -> None:
    with pytest.raises(SettingError, match=r"^guide is not valid: ") as caught:
        Settings(guide=text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_the_selector_is_one_critic() -> None:
    with pytest.raises(SettingError, match="selector is not valid: it takes one critic, not a sum"):
        Settings(selector="clip 1, hps-v2.1 1")
    with pytest.raises(SgoolError):
        check_critic("clip, pickscore")


@pytest.mark.parametrize(
    ("guide", "selector"),
    [
        ("hps-v2.1", "hps-v2.1"),
        ("clip 1, hps-v2.1 5", "hps-v2.1"),
        ("clip:ViT-L-14/openai", "clip:ViT-L-14/openai"),
        ("clip", "clip:ViT-B-32/laion2b_s34b_b79k"),
        ("clip", "clip:ViT-B-32-quickgelu/LAION2B-s34b-b79k"),
        ("clip:ViT-B-16/laion2b_s34b_b88k", "clip"),
        ("aesthetic", "clip:ViT-L-14/openai"),
        ("clip:ViT-L-14-quickgelu/openai 2, pickscore 1", "aesthetic"),
    ],
)
def test_a_selector_that_is_among_the_guides_networks_is_refused(guide: str, selector: str) -> None:
    with pytest.raises(SettingError, match=r"^selector must be another network than the guide, and ") as caught:
        Settings(guide=guide, selector=selector)
    assert caught.value.name == "selector" and selector in str(caught.value)


@pytest.mark.parametrize(
    ("guide", "selector"),
    [("clip", "clip"), ("embedded", "embedded"), ("clip, hps-v2.1", "clip"), ("pickscore", "hps-v2.1"),
     ("clip:ViT-L-14/openai", "clip:ViT-L-14/datacomp_xl_s13b_b90k"), ("aesthetic", "clip")],
)  # fmt: skip
def test_two_networks_may_guide_and_judge(guide: str, selector: str) -> None:
    assert Settings(guide=guide, selector=selector).selector == selector


def test_a_sum_needs_the_files_of_all_its_critics_once() -> None:
    both = critic_weights("clip:ViT-L-14/openai 1, aesthetic 2", "guide")
    assert [weight.file for weight in both[1:]] == ["sac+logos+ava1-l14-linearMSE.pth"] and len(both) == 2
    assert len(critic_weights("hps-v2.1, image-reward", "guide")) == 3


def test_a_sum_is_loaded_as_a_blend_and_every_critic_has_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(CRITICS, "reds", replace(CRITICS["embedded"], load=lambda *_: Reds()))
    both = load_critic("embedded 1, reds 2.5", "guide", tmp_path)
    assert isinstance(both, Blend) and both.weights == (1.0, 2.5) and both.name == "embedded 1, reds 2.5"
    assert [each.name for each in both.critics] == ["embedded", "reds"]
    assert load_critic("reds", "selector", tmp_path).name == "reds"


def test_good_enough_holds_for_cosines_only() -> None:
    cosine, other = Reds(), Reds()
    cosine.unit = "cosine"
    assert Judge(cosine, PROMPT, 0.8).good == 0.8 and Judge(other, PROMPT, 0.8).good == float("inf")


def test_only_a_large_network_on_a_gpu_is_halved() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert precision(LARGE, cuda, True) == torch.float16
    halved = [torch.float16, torch.bfloat16]
    assert [each for each in (*halved, torch.float32, torch.float64) if is_half(each)] == halved
    assert {precision(*each) for each in ((LARGE, cpu, True), (LARGE, cuda, False), (LARGE - 1, cuda, True))} == {
        torch.float32
    }


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9])
def test_a_gradient_of_any_size_goes_through_half_precision(size: float) -> None:
    """By itself float16 would lose the smallest of these, and overflow at the largest."""
    x = torch.linspace(0.1, 0.9, 5).requires_grad_()
    weights = torch.tensor([0.5, 1.5, -2.0, 0.25, 3.0])

    def squares(given: Tensor) -> Tensor:
        return given * given * weights.to(given.dtype)

    gradients = []
    for dtype in (torch.float16, torch.float32):
        (gradient,) = torch.autograd.grad(size * in_precision(squares, x, dtype).sum(), x)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=5e-3, atol=0.0)
    if size != 1.0:
        (bare,) = torch.autograd.grad(size * squares(x.half()).float().sum(), x)
        assert not torch.allclose(bare, gradients[1], rtol=0.1, atol=0.0)
    # What else x is used for gets its own gradient, unscaled; and a loss that does not depend on it gives none.
    (both,) = torch.autograd.grad(in_precision(squares, x, torch.float16).sum() + (7 * x).sum(), x)
    torch.testing.assert_close(both, 2 * x.detach() * weights + 7, rtol=5e-3, atol=0.0)
    (nothing,) = torch.autograd.grad(0.0 * in_precision(squares, x, torch.float16).sum(), x)
    assert torch.equal(nothing, torch.zeros(5))
