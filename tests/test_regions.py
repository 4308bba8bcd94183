from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.region import Region
from sgool.saliency.regions import MAX_INSIDE, MAX_IOU, _Box, find_regions


def blobs(height: int, width: int, *spots: tuple[float, float, float, float]) -> Tensor:
    """Sum of Gaussians, each (row, column, sigma, peak), on an empty map."""
    yy, xx = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    total = torch.zeros(height, width)
    for row, column, sigma, peak in spots:
        total += peak * torch.exp(-((yy - row) ** 2 + (xx - column) ** 2) / (2 * sigma**2))
    return total


def pixels(region: Region) -> set[tuple[int, int]]:
    return {
        (y, x)
        for y in range(region.top, region.top + region.height)
        for x in range(region.left, region.left + region.width)
    }


def peaks(values: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Positions at least as high as all their neighbors and as `least`."""
    wide = np.pad(values, 1, constant_values=-1)
    return [
        (y, x)
        for y, x in np.ndindex(values.shape)
        if values[y, x] >= least and values[y, x] >= wide[y : y + 3, x : x + 3].max()
    ]


def test_two_blobs_give_two_squares_heavier_first() -> None:
    saliency = blobs(128, 128, (30, 30, 6, 0.8), (90, 95, 10, 1.0))
    first, second = find_regions(saliency)
    for region, (row, column) in ((first, (90, 95)), (second, (30, 30))):
        assert region.height == region.width
        assert abs(region.top + region.height / 2 - row) <= 1 and abs(region.left + region.width / 2 - column) <= 1
    # A Gaussian falls to half its peak at 1.18 sigma on each side. The padding adds 15 % on each side.
    assert first.height == pytest.approx(2 * 1.18 * 10 * 1.3, abs=3)
    assert first.mass > second.mass and first.mass + second.mass == pytest.approx(1)


def test_mass_is_the_share_of_saliency_inside_the_crop() -> None:
    saliency = blobs(100, 140, (30, 30, 6, 0.8), (70, 100, 9, 1.0))
    regions = find_regions(saliency)
    sums = [sum(float(saliency[y, x]) for y, x in pixels(region)) for region in regions]
    assert [region.mass for region in regions] == pytest.approx([s / sum(sums) for s in sums], rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.37, 1.0])
def test_flat_map_gives_the_whole_image(value: float) -> None:
    noise = 1e-4 * value * torch.rand(60, 80, generator=torch.Generator().manual_seed(0))
    assert find_regions(torch.full((60, 80), value) + noise) == [Region(0, 0, 60, 80, 1.0)]


def test_small_component_is_grown_to_the_smallest_size_and_specks_are_dropped() -> None:
    saliency = torch.zeros(100, 200)
    saliency[50:54, 60:64] = 1
    saliency[10, 180] = 0.6  # 4 % of the other component's mass
    (region,) = find_regions(saliency, min_size=0.3)
    assert (region.height, region.width) == (30, 30)
    assert pixels(region) >= {(y, x) for y in range(50, 54) for x in range(60, 64)}
    assert region.mass == 1
    saliency[10:13, 180] = 0.6
    assert len(find_regions(saliency, min_size=0.3)) == 2


def test_threshold_is_relative_to_the_peak() -> None:
    saliency = blobs(128, 128, (30, 30, 6, 0.02), (90, 95, 6, 0.009))
    assert len(find_regions(saliency, threshold=0.5)) == 1
    assert len(find_regions(saliency, threshold=0.4)) == 2
    assert find_regions(saliency * 30, threshold=0.4)[0].top == find_regions(saliency, threshold=0.4)[0].top


def test_a_faint_place_beside_a_bright_one_keeps_its_full_extent() -> None:
    """If places were cut at a share of the highest peak, a faint place would be a few pixels, or nothing."""
    saliency = blobs(128, 128, (30, 30, 9, 1.0), (90, 95, 12, 0.3))
    first, second = sorted(find_regions(saliency, threshold=0.25), key=lambda region: region.top)
    assert first.height == pytest.approx(2 * 1.18 * 9 * 1.3, abs=3)
    assert second.height == pytest.approx(2 * 1.18 * 12 * 1.3, abs=3)
    assert (90, 95) in pixels(second) and (30, 30) in pixels(first)


def test_a_slope_is_not_a_separate_place() -> None:
    """A ridge that falls steadily has its only peak at one end, even if all of the ridge is above the threshold."""
    saliency = torch.zeros(60, 200)
    saliency[28:32] = torch.linspace(1, 0.3, 200)
    (region,) = find_regions(saliency, threshold=0.25)
    assert region.left == 0 and region.width < 200


def test_a_place_does_not_reach_around_a_higher_one() -> None:
    """The foot of the higher place is at least half as salient as the faint peak, all around the higher place."""
    saliency = blobs(128, 128, (60, 40, 12, 1.0), (60, 86, 6, 0.3))
    faint = min(find_regions(saliency, threshold=0.25, padding=0), key=lambda region: region.mass)
    assert faint.left > 40 and faint.width < 50


@pytest.mark.parametrize("seed", range(20))
def test_regions_of_a_turned_map_are_turned(seed: int) -> None:
    """Rows and columns count alike."""
    rng = np.random.default_rng(seed)
    spots = [(rng.uniform(0, 70), rng.uniform(0, 90), rng.uniform(3, 14), rng.uniform(0.3, 1)) for _ in range(6)]
    saliency = blobs(70, 90, *spots)
    regions = find_regions(saliency, max_regions=9, threshold=0.25, min_size=0.1, padding=0.1)
    turned = find_regions(saliency.T, max_regions=9, threshold=0.25, min_size=0.1, padding=0.1)
    assert [(r.top, r.left, r.height, r.width) for r in regions] == [(r.left, r.top, r.width, r.height) for r in turned]


def test_boxes_overlap_from_more_than_the_limits_on() -> None:
    large = _Box(0, 0, 100, 100)
    for inside, overlap in ((6, False), (7, True)):  # of ten rows
        assert large.overlaps(_Box(100 - inside, 20, 110 - inside, 30)) == overlap
    for shared, overlap in ((46, False), (47, True)):  # of 100 columns: 46 in 154 are 0.299, 47 in 153 are 0.307
        assert large.overlaps(_Box(0, 100 - shared, 100, 200 - shared)) == overlap


def test_only_the_heaviest_regions_are_returned() -> None:
    spots = [(20, 20, 4, 1.0), (20, 100, 6, 1.0), (100, 20, 8, 1.0), (100, 100, 10, 1.0)]
    saliency = blobs(128, 128, *spots)
    for count in (1, 2, 3, 4, 9):
        regions = find_regions(saliency, max_regions=count)
        assert len(regions) == min(count, 4)
        for region, (row, column, _, _) in zip(regions, reversed(spots), strict=False):
            assert (row, column) in pixels(region)
        assert sum(region.mass for region in regions) == pytest.approx(1)


def test_corner_crop_is_shifted_not_cut() -> None:
    saliency = torch.zeros(100, 100)
    saliency[0:4, 90:100] = 1
    (region,) = find_regions(saliency, min_size=0.2)
    assert region == Region(0, 80, 20, 20, 1.0)


def test_long_component_gives_a_square_and_is_oblong_only_where_the_image_is() -> None:
    tall = torch.zeros(100, 100)
    tall[20:80, 50:54] = 1
    (region,) = find_regions(tall, padding=0)
    assert (region.top, region.height, region.width) == (20, 60, 60)
    wide = torch.zeros(40, 200)
    wide[18:22, 50:150] = 1
    (region,) = find_regions(wide, padding=0)
    assert (region.top, region.left, region.height, region.width) == (0, 50, 40, 100)


def test_overlapping_boxes_become_one_that_covers_both() -> None:
    saliency = torch.zeros(100, 100)
    saliency[40:50, 40:50] = 1
    saliency[40:50, 52:62] = 1
    (region,) = find_regions(saliency, min_size=0.3)
    assert pixels(region) >= {(y, x) for y in range(40, 50) for x in range(40, 62)}
    assert len(find_regions(saliency, min_size=0, padding=0)) == 2


def test_merged_squares_are_merged_again() -> None:
    # Neither lower square overlaps the upper square enough. The square around both lower squares does.
    spots = {"left": (55, 40), "right": (55, 58), "upper": (36, 49)}

    def regions(*names: str) -> list[Region]:
        saliency = torch.zeros(200, 200)
        for top, left in (spots[name] for name in names):
            saliency[top : top + 10, left : left + 10] = 1
        return find_regions(saliency, min_size=0.2)

    assert len(regions("left", "upper")) == len(regions("right", "upper")) == 2
    (both,) = regions("left", "right")
    assert (both.top, both.left, both.height, both.width) == (31, 25, 58, 58)
    (merged,) = regions("left", "right", "upper")
    assert pixels(merged) >= {(64, 40), (64, 67), (36, 58)}


@pytest.mark.parametrize("seed", range(30))
def test_rules_hold_for_random_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(16, 90, 2))
    narrowest = 1 if seed % 2 else 4  # a narrow spot beside a wide one may be a speck
    spots = [
        (rng.uniform(0, height), rng.uniform(0, width), rng.uniform(narrowest, 8), rng.uniform(0.3, 1))
        for _ in range(rng.integers(1, 9))
    ]
    saliency = blobs(height, width, *spots)
    threshold, padding = rng.uniform(0.2, 0.9), rng.uniform(0, 0.4)
    regions = find_regions(saliency, max_regions=99, threshold=threshold, min_size=0.2, padding=padding)

    covers = [pixels(region) for region in regions]
    inside = {(y, x) for y in range(height) for x in range(width)}
    smallest = 0.2 * min(height, width)
    for region, cover in zip(regions, covers, strict=True):
        assert cover and cover <= inside
        assert min(region.height, region.width) >= smallest
        # Square, or as large as the image's shorter side allows.
        assert region.height == region.width or min(region.height, region.width) == min(height, width)
    masses = [region.mass for region in regions]
    assert masses == sorted(masses, reverse=True) and sum(masses) == pytest.approx(1)
    for i, a in enumerate(covers):
        for b in covers[:i]:
            assert len(a & b) <= MAX_IOU * len(a | b) and len(a & b) <= MAX_INSIDE * min(len(a), len(b))

    values = saliency.double().numpy()
    if narrowest > 1:
        assert all(any(peak in cover for cover in covers) for peak in peaks(values, threshold * values.max()))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images(shape: tuple[int, int]) -> None:
    saliency = torch.zeros(shape)
    saliency[-1, -1] = 1
    for region in find_regions(saliency):
        assert (shape[0] - 1, shape[1] - 1) in pixels(region)
        assert region.top + region.height <= shape[0] and region.left + region.width <= shape[1]


def test_map_with_a_graph_in_half_precision() -> None:
    saliency = blobs(64, 64, (20, 20, 5, 1.0)).half().requires_grad_()
    (region,) = find_regions(saliency)
    assert (20, 20) in pixels(region)


@pytest.mark.parametrize("saliency", [torch.zeros(1, 8, 8), torch.zeros(0, 8), torch.full((8, 8), float("nan"))])
def test_bad_map_is_refused(saliency: Tensor) -> None:
    with pytest.raises(SgoolError, match="saliency map"):
        find_regions(saliency)


@pytest.mark.parametrize(
    "wrong", [{"max_regions": 0}, {"threshold": 0.0}, {"threshold": 1.1}, {"min_size": -0.1}, {"padding": -1.0}]
)
def test_bad_parameter_is_refused(wrong: dict) -> None:
    with pytest.raises(SgoolError, match="Salient regions need"):
        find_regions(torch.rand(8, 8), **wrong)


@pytest.mark.parametrize(
    ("extreme", "size"),
    [({"threshold": 1.0}, 22), ({"min_size": 1.0}, 64), ({"min_size": 0.0}, 22), ({"padding": 0}, 16)],
)
def test_parameters_may_be_as_large_and_as_small_as_they_can(extreme: dict, size: int) -> None:
    (region,) = find_regions(blobs(64, 64, (32, 32, 6.5, 1.0)), **{"min_size": 0.1, **extreme}, max_regions=1)
    assert region.height == region.width == pytest.approx(size, abs=1)
