"""Zoom: which texts places get, which repaints are kept, and that nothing else of an image changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from toys import Colors

from sgool.backends.diffusers import load_backend
from sgool.detect import MaskDetector
from sgool.errors import SgoolError
from sgool.generate import Request, generate, load_critics
from sgool.guidance.loss import crop
from sgool.needs import needs
from sgool.presets import resolve
from sgool.region import Region
from sgool.result import Stop
from sgool.weights import default_models_dir
from sgool.zoom import Picture, Place, Verdict, ZoomProgress, zoom, zoom_in
from sgool.zoom.find import find_places
from sgool.zoom.keep import Judge
from sgool.zoom.paint import Painter, feather, pasted
from sgool.zoom.texts import painting_prompt, place_name, subjects, things


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a small frog and a car on a hill", ["a frog on a hill", "a car on a hill"]),
        ("a cat on a sofa and a dog", ["a cat on a sofa", "a dog"]),
        ("a (tiny:1.3) bird, oil painting, <lora:x:1>", ["a bird", "oil painting"]),
        ("a cat", ["a cat"]),
        ("very small", ["very small"]),
        ("a cat and a cat", ["a cat"]),
        ("", []),
    ],
)
def test_each_phrase_becomes_a_text_of_its_own(prompt, expected):
    assert subjects(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat and two dogs, at night, in the style of Monet, oil painting", ["a cat", "two dogs"]),
        ("portrait of a woman, soft light", ["portrait of a woman"]),
        ("1girl, blue hair", ["1girl, blue hair"]),
        ("a black and white photo of a man in a park", ["a black and white photo of a man in a park"]),
        ("a red and white house, the best quality", ["a red and white house"]),
    ],
)
def test_style_is_not_looked_for(prompt, expected):
    assert things(prompt) == expected


def test_a_place_is_named_without_where_it_is():
    assert len(place_name("a very " + 100 * "long " + "thing")) <= 60
    assert place_name("a frog on a hill") == "a frog"
    assert place_name("a cat") == "a cat"


def test_a_place_is_painted_with_its_text_and_what_belongs_to_no_place():
    prompt = "a cat and a dog in a park, oil painting, soft light"
    assert painting_prompt("a dog in a park", prompt) == "a dog in a park, oil painting, soft light"
    assert painting_prompt("a cat", "a cat, a dog, ink") == "a cat, ink"
    assert painting_prompt("1girl, solo", "1girl, solo") == "1girl, solo"
    assert painting_prompt("a red cap", "1girl, solo") == "a red cap, 1girl, solo"


LEFT, RIGHT = Region(0, 0, 8, 8, 0.7), Region(8, 24, 8, 8, 0.3)
PLACES = [Place(region, text, text, f"{text}, ink") for region, text in ((LEFT, "red"), (RIGHT, "green"))]


def filled(color: tuple[float, float, float]):
    """Paints every place in one color."""

    def paint(image, place, number):
        patch = torch.tensor(color, dtype=torch.float32)[None, :, None, None].expand(
            1, 3, place.region.height, place.region.width
        )
        return pasted(image, patch, place.region)

    return paint


@pytest.fixture
def image():
    return torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(1)) * 0.5


def test_only_what_the_judge_prefers_is_kept_and_nothing_else_changes(image):
    done = zoom(image, PLACES, filled((1, 0, 0)), Judge(Colors(), "red"))
    red, green = done.repaints
    assert (red.verdict, green.verdict) == (Verdict.KEPT, Verdict.REFUSED)
    assert red.after > red.before and green.after < green.before
    expected = filled((1, 0, 0))(image, PLACES[0], 0)
    assert torch.equal(done.image, expected) and done.kept == 1
    outside = torch.ones(16, 32, dtype=torch.bool)
    outside[:8, :8] = False
    assert torch.equal(done.image[..., outside], image[..., outside])
    assert torch.equal(red.crop_before, crop(image, LEFT)) and torch.equal(red.crop_after, crop(expected, LEFT))
    assert str(green) == f"green: {green.before:.3f} -> {green.after:.3f}, not better, left as it was"


def test_a_better_place_that_spoils_the_image_is_refused(image):
    done = zoom(image, PLACES[:1], filled((1, 0, 0)), Judge(Colors(), "green"))
    assert done.repaints[0].after > done.repaints[0].before
    assert done.repaints[0].verdict is Verdict.SPOILS
    assert done.image is image


def test_a_place_that_is_good_already_is_not_painted(image):
    red = torch.cat([image[:, :1] + 0.5, image[:, 1:] / 9], 1)
    score = Judge(Colors(), "red").of_place(red, PLACES[0])

    def fails(image, place, number):
        raise AssertionError

    done = zoom(red, PLACES[:1], fails, Judge(Colors(), "red", good=score))
    assert done.image is red and str(done.repaints[0]) == f"red: {score:.3f}, already good, left" and not done.ended
    assert zoom(red, PLACES[:1], fails, Judge(Colors(), "red", good=score + 1e-3)).repaints[0].error


def test_without_a_judge_every_repaint_is_kept(image):
    done = zoom(image, PLACES, filled((0, 0, 1)), None)
    assert done.kept == 2 and done.repaints[0].before is None
    assert str(done.repaints[0]) == "red: kept"


@pytest.mark.parametrize(
    ("error", "verdicts", "told"),
    [
        (SgoolError("Broken."), ["failed", "kept"], "red (Broken.)"),
        (RuntimeError("out of memory"), ["failed", "stopped"], "red (out of memory)"),
        (Stop(), ["stopped", "stopped"], "ended early"),
        (KeyboardInterrupt(), ["stopped", "stopped"], "ended early"),
    ],
)
def test_a_failure_leaves_its_place_as_it_was(image, error, verdicts, told):
    def paint(image, place, number):
        if number == 0:
            raise error
        return filled((0, 1, 0))(image, place, number)

    done = zoom(image, PLACES, paint, Judge(Colors(), "green"))
    assert [each.verdict.name.lower() for each in done.repaints] == verdicts
    assert told in done.ended
    assert torch.equal(crop(done.image, LEFT), crop(image, LEFT))


def test_what_was_kept_stays_when_the_zoom_is_stopped(image):
    class Once(ZoomProgress):
        def begin(self, number, count, place):
            if number == 1:
                raise Stop

    done = zoom(image, PLACES, filled((1, 0, 0)), Judge(Colors(), "red"), Once())
    assert [each.verdict for each in done.repaints] == [Verdict.KEPT, Verdict.STOPPED]
    assert torch.equal(done.image, filled((1, 0, 0))(image, PLACES[0], 0))


def test_no_place_is_told(image):
    done = zoom(image, [], filled((1, 0, 0)), Judge(Colors(), "red"))
    assert done.image is image and done.ended == "Zoom found no place to paint again."


@pytest.mark.parametrize("region", [LEFT, RIGHT, Region(3, 5, 9, 20, 1.0), Region(0, 0, 16, 32, 1.0)])
def test_the_seam_lies_inside_the_place(image, region):
    white = torch.ones(1, 3, region.height, region.width)
    done = pasted(image, white, region)
    changed = (done != image).any(1)[0]
    inside = torch.zeros(16, 32, dtype=torch.bool)
    inside[region.top : region.top + region.height, region.left : region.left + region.width] = True
    assert torch.equal(changed, inside), "all of the place changes, and nothing else"
    alpha = feather(region, 16, 32)
    assert alpha.max() == 1 and alpha.min() > 0
    # At the image's border there is nothing to blend with.
    assert bool((alpha[0] == 1).any()) == (region.top == 0)
    assert bool((alpha[:, -1] == 1).any()) == (region.left + region.width == 32)


class Looked:
    """Critics whose detector must not be asked."""

    guide = Colors()

    def detector(self, image):
        raise AssertionError


def test_a_mask_says_where(image):
    settings = resolve({"zoom": True, "zoom_by": "mask", "zoom_padding": 0.0, "zoom_smallest": 0.05})
    mask = torch.zeros(16, 32)
    mask[2:7, 20:25] = 1
    (place,) = find_places(Picture(image, "red, green", mask), Looked(), settings)
    region = place.region
    assert (region.top, region.left, region.height, region.width) == (2, 20, 5, 5)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (None, "needs a mask"),
        (torch.zeros(16, 32), "empty"),
        (torch.ones(16, 16), "16x16 pixels, but the image 32x16"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(image, mask, told):
    with pytest.raises(SgoolError, match=told):
        find_places(Picture(image, "red", mask), Looked(), resolve({"zoom": True, "zoom_by": "mask"}))


def test_a_region_prompt_goes_before_the_phrases(image):
    settings = resolve({"zoom": True, "zoom_by": "mask", "region_prompt": "green (thing:1.2)", "zoom_largest": 1.0})
    mask = torch.zeros(16, 32)
    mask[2:7, 20:25] = 1
    (place,) = find_places(Picture(image, "red, blue", mask), Looked(), settings)
    assert (place.text, place.prompt) == ("green thing", "green (thing:1.2)")


@pytest.fixture(scope="module")
def tiny():
    """The embedded model and its critics."""
    settings = resolve({}, model="tiny")
    return load_backend("tiny"), load_critics(needs(settings), default_models_dir())


def textbook_img2img(backend, latent, prompt, strength, noise):
    """Deterministic DDIM of ten steps from a noised latent, written out with diffusers' own networks."""
    steps, scale = 10, 4.0
    alphabar = backend.alphas_cumprod
    times = [1 + i * (1000 // steps) for i in reversed(range(steps))][-round(strength * steps) :]
    tokens = backend.tokenizer(["", prompt], padding="max_length", max_length=77, return_tensors="pt").input_ids
    states = backend.text_encoder(tokens)[0]
    x = alphabar[times[0]].sqrt() * latent + (1 - alphabar[times[0]]).sqrt() * noise
    for t, to in zip(times, [*times[1:], 0], strict=True):
        both = backend.unet(torch.cat([x, x]).float(), t, encoder_hidden_states=states).sample.double()
        eps = both[:1] + scale * (both[1:] - both[:1])
        x0 = (x - (1 - alphabar[t]).sqrt() * eps) / alphabar[t].sqrt()
        x = alphabar[to].sqrt() * x0 + (1 - alphabar[to]).sqrt() * eps
    return x


@torch.no_grad()
def test_a_place_is_painted_by_plain_ddim_at_the_models_size(tiny):
    backend, critics = tiny
    settings = resolve({"zoom": True, "zoom_strength": 0.5}, model="tiny")
    picture = torch.rand(1, 3, 200, 300, generator=torch.Generator().manual_seed(2))
    place = Place(Region(30, 100, 64, 64, 1.0), "a frog", "a frog", "a frog on a red background")
    painter = Painter(backend, critics, Request("unused", seed=7), settings)
    painted = painter(picture, place, 3)
    scaled = F.interpolate(crop(picture, place.region), (128, 128), mode="bicubic", antialias=True).clamp(0, 1)
    latent = textbook_img2img(backend, backend.encode(scaled), place.prompt, 0.5, backend.noise(10))
    expected = F.interpolate(backend.decode(latent).clamp(0, 1), (64, 64), mode="bicubic", antialias=True)
    middle = (..., slice(40, 84), slice(110, 154))  # without the seam
    assert torch.allclose(painted[middle], expected[..., 10:54, 10:54].clamp(0, 1), atol=1e-4)
    outside = torch.ones(200, 300, dtype=torch.bool)
    outside[30:94, 100:164] = False
    assert torch.equal(painted[..., outside], picture[..., outside])
    assert painter.unet_evals == painter.forward_equivalents == 2 * 5


def test_zoom_iterations_improve_the_painted_place(tiny):
    backend, critics = tiny
    settings = resolve({"zoom": True, "steps": 4}, model="tiny")
    request = Request("unused", seed=3)
    picture = generate(backend, critics, Request("a small frog on a red background", seed=3), settings).first.image
    place = Place(Region(30, 30, 64, 64, 1.0), "a frog", "a frog", "a frog on a red background")

    def painted(iterations):
        painter = Painter(backend, critics, request, settings.changed(zoom_iterations=iterations))
        return crop(painter(picture, place, 0), place.region), painter

    (plain, once), (improved, often) = painted(0), painted(3)
    assert often.forward_equivalents > once.forward_equivalents
    assert critics.selector.judge(improved, place.prompt) > critics.selector.judge(plain, place.prompt)


def test_inside_a_place_counts_what_of_a_mask_lies_there(tiny, monkeypatch):
    """And all of the place where nothing does."""
    backend, critics = tiny
    mask = torch.zeros(128, 128)
    mask[30:62, 30:94] = 1
    seen, of = [], MaskDetector.of
    monkeypatch.setattr(MaskDetector, "of", lambda self, prompt: seen.append(self.mask) or of(self, prompt))
    settings = resolve({"zoom": True, "steps": 2, "zoom_iterations": 1, "zoom_strength": 1.0}, model="tiny")
    painter = Painter(backend, replace(critics, detector=MaskDetector(mask)), Request("unused"), settings)
    for region in (Region(30, 30, 64, 64, 1.0), Region(64, 64, 64, 64, 1.0)):
        painter(torch.rand(1, 3, 128, 128), Place(region, "a frog", "a frog", "a frog"), 0)
    half, other = seen
    assert torch.equal(half, mask[30:94, 30:94]) and other.shape == (64, 64) and other.all()


def test_a_decoder_that_breaks_is_an_error(tiny, monkeypatch):
    backend, critics = tiny
    monkeypatch.setattr(backend, "decode", lambda latent: torch.full((1, 3, 128, 128), float("nan")))
    place = Place(Region(0, 0, 64, 64, 1.0), "a frog", "a frog", "a frog")
    picture = torch.zeros(1, 3, 128, 128)
    painter = Painter(backend, critics, Request("unused"), resolve({"zoom": True, "steps": 2}, model="tiny"))
    done = zoom(picture, [place], painter, None)
    assert done.image is picture and "NaN" in done.ended


@pytest.mark.parametrize("sampler", ["lcm", "euler", "edict"])
def test_a_model_of_few_steps_paints_with_its_own_sampler(tiny, sampler):
    """And a painted place is improved by a sampler that has an inverse."""
    backend, critics = tiny
    own = {"sampler": sampler, "steps": 4, "guidance_scale": 1.0, "zoom_strength": 0.5, "zoom": True}
    settings = resolve({**own, "zoom_iterations": 1}, model="tiny")
    place = Place(Region(30, 30, 64, 64, 1.0), "a frog", "a frog", "a frog on a red background")
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    images = []
    for each in (settings, settings.changed(sampler="ddim"), settings.changed(zoom_iterations=0)):
        painter = Painter(backend, critics, Request("unused", seed=7), each)
        images.append(painter(picture, place, 0))
    assert painter.unet_evals == 2 and torch.isfinite(images[0]).all()
    assert torch.equal(images[0], images[1]) == (sampler == "ddim") and not torch.equal(images[2], picture)


def test_nothing_outside_the_mask_changes(image):
    """Two parts: one of a single pixel, and one that is wider than any place that zoom finds by itself."""
    mask = torch.zeros(16, 32)
    mask[3, 3] = 1
    mask[2:14, 12:28] = 1
    mask[2, 12:28] = 0.25
    settings = resolve({"zoom": True, "zoom_by": "mask", "zoom_judge": False})
    critics = SimpleNamespace(guide=Colors(), selector=Colors(), faces=None)
    done = zoom_in(Picture(image, "red", mask), critics, settings, filled((1, 0, 0)))
    assert done.kept == 2
    changed = (done.image != image).any(1)[0]
    assert torch.equal(changed, mask > 0)
    solid = done.image[0, :, 4:12, 16:24]
    assert torch.equal(solid, torch.tensor([1.0, 0, 0])[:, None, None].expand_as(solid))


def test_a_failure_before_the_first_place_leaves_the_image(image):
    def of(prompt):
        raise RuntimeError("out of memory")

    fails = SimpleNamespace(faces=None, detector=SimpleNamespace(of=of))
    done = zoom_in(Picture(image, "red"), fails, resolve({"zoom": True}), filled((1, 0, 0)))
    assert done.image is image and done.ended == "Zoom left the image as it was. out of memory"
