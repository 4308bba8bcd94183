from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sgool.errors import SgoolError
from sgool.pictures import BLUE, GREEN, ORANGE, _ticks, comparison, loss_curve, overlay, png, to_uint8, wrap


@dataclass(frozen=True)
class Box:
    top: int
    left: int
    height: int
    width: int
    mass: float = 1.0


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture.astype(int) - color).max(-1) == 0).any())


def test_pixels_are_rounded_and_clipped() -> None:
    image = torch.tensor([-0.5, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 5).requires_grad_(True)
    array = to_uint8(image)
    assert array.shape == (2, 5, 3) and array.dtype == np.uint8
    assert (array == [0, 128, 255]).all() and (to_uint8(image[0]) == array).all()
    with pytest.raises(SgoolError, match="shape"):
        to_uint8(torch.zeros(2, 3, 4, 4))


def test_png_keeps_the_colors() -> None:
    import cv2

    array = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    read = cv2.imdecode(np.frombuffer(png(array), np.uint8), cv2.IMREAD_COLOR)
    assert (read[..., ::-1] == array).all()


@pytest.mark.parametrize(("size", "factor"), [(64, 4), (128, 4), (512, 1), (700, 1)])
def test_overlay_enlarges_small_images_and_marks_only_what_is_salient(size: int, factor: int) -> None:
    image = np.full((size, size, 3), 90, np.uint8)
    saliency = torch.zeros(1, 1, size, size)
    half = size // 2
    saliency[..., half:, half:] = 1e-3
    picture = overlay(image, saliency, [])
    assert picture.shape == (size * factor, size * factor, 3)
    middle = half * factor
    quarter = middle // 2
    assert (picture[:quarter, :quarter] == 90).all()
    # The peak, whatever the scale of the map, is the red end of the scale.
    red, green, blue = picture[-1, -1].tolist()
    assert red > green + 20 and red > blue + 20
    boxed = overlay(image, saliency, [Box(half, half, half, half), Box(2, 2, half, half)])
    differs = (boxed != picture).any(-1)
    edge = differs[middle : middle + 3 * factor, middle + quarter : middle + quarter + 5]
    assert edge.any() and not differs[middle + quarter : -quarter // 2, middle + quarter : -quarter // 2].any()


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.27, 0.334), (-3.0, 1234.5), (5.0, 5.0), (0.0, 0.0), (0, 1), (1e-7, 9e-7)]
)
def test_ticks_are_few_round_and_cover_the_values(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 8 and ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** np.floor(np.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6
    np.testing.assert_allclose(np.diff(ticks), step)


def across(panel: np.ndarray, color: tuple[int, int, int], curve: tuple[int, int, int]) -> float:
    """Where the middle of a color lies between the ends of the curve, 0 to 1; the axes' own texts are left out."""
    shown = panel[60:300]
    ends = np.nonzero((shown == curve).all(-1))[1]
    return (np.nonzero((shown == color).all(-1))[1].mean() - ends.min()) / (ends.max() - ends.min())


def test_curve_falls_where_the_loss_falls() -> None:
    picture = loss_curve([1.0, 0.9, 0.4, 0.5], [], 2)
    rows, columns = np.nonzero((picture == BLUE).all(-1))
    assert rows[columns < columns.min() + 4].mean() < rows[columns > columns.max() - 4].mean()
    assert not has_color(picture, ORANGE)
    for values in ([0.5], [0.0, float("nan"), 0.0], list(np.arange(200) / 7)):
        assert loss_curve(values, values, 0).dtype == np.uint8
    with pytest.raises(SgoolError, match="at least one value"):
        loss_curve([], [], 0)


def test_the_best_is_marked_among_the_scores_and_not_among_the_losses() -> None:
    """The best score of the README's own demo has nearly the highest loss."""
    losses, scores = [0.4, 0.9, 1.0, 0.5], [0.1, 0.2, 0.3, 0.2]
    left, right = np.hsplit(loss_curve(losses, scores, 2), 2)
    assert has_color(left, BLUE) and not has_color(left, GREEN) and not has_color(left, ORANGE)
    assert has_color(right, ORANGE) and across(right, GREEN, ORANGE) == pytest.approx(2 / 3, abs=0.02)
    assert not has_color(loss_curve(losses, scores, -1), GREEN)
    assert not has_color(loss_curve(losses, [], 2), GREEN)


def test_the_panels_say_what_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sgool.pictures.write", lambda canvas, text, *rest: said.append(text))
    loss_curve([0.4, 0.9], [0.1, 0.2], 1)
    for words in ("of the guide, lower is better", "of the selector, higher is better", "best: 0.2000 at 1"):
        assert said.count(words) == 1


def test_comparison_shows_its_three_pictures_in_order() -> None:
    shades = [np.full((512, 384, 3), shade, np.uint8) for shade in (40, 90, 150)]
    picture = comparison(*shades, 0.2, 0.3, "a prompt")  # type: ignore[call-arg]
    row = picture[picture.shape[0] // 2, :, 0].astype(int)
    changes = row[np.flatnonzero(np.diff(row, prepend=-1))]
    assert changes.tolist() == [255, 40, 255, 90, 255, 150, 255]
    assert (row == 40).sum() == (row == 90).sum() == (row == 150).sum() == 384
    assert has_color(picture, GREEN)
    assert not has_color(comparison(*shades, 0.3, 0.2, "a prompt"), GREEN)  # type: ignore[call-arg]
    longer = comparison(*shades, 0.2, 0.3, "many words " * 60)  # type: ignore[call-arg]
    assert longer.shape[0] > picture.shape[0] and longer.shape[1] == picture.shape[1]


def test_long_text_is_wrapped_within_its_width_without_losing_words() -> None:
    text = "an über long prompt, 日本 " + "with many words " * 20
    lines = wrap(text, 300, 16)
    assert " ".join(lines) == " ".join(text.split()) and len(lines) > 5
