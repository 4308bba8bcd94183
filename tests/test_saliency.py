from __future__ import annotations

import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.saliency import DETECTORS, LoadedDetector, detector_weights, load_detector
from sgool.saliency.regions import find_regions
from sgool.saliency.spectral import opponent
from sgool.saliency.transalnet import WEIGHTS, build, letterbox, predict, unletterbox

DATA = Path(__file__).parent / "data" / "transalnet"


def reference_state(variant: str) -> dict[str, Tensor]:
    """The published checkpoint's keys and shapes, with the pseudorandom values of the golden maps."""
    state = {}
    for key, shape in json.loads((DATA / f"transal_{variant}_shapes.json").read_text()).items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
            continue
        random = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
        a = random.standard_normal(shape).astype(np.float32)
        if key.endswith("running_var"):
            a = 1 + 0.1 * np.abs(a)
        elif key.endswith("running_mean"):
            a = 0.1 * a
        elif "position_embeddings" in key:
            a = 0.02 * a
        elif len(shape) == 1:
            a = 1 + 0.1 * a if key.endswith("weight") else 0.1 * a
        else:
            a = a / np.sqrt(np.prod(shape[1:]))
        state[key] = torch.from_numpy(a.astype(np.float32))
    return state


def golden(name: str) -> Tensor:
    """A map made by the published reference code on the CPU, from `reference_state` and `stimulus`."""
    return torch.from_numpy(np.load(DATA / f"transal_{name}.npz")["map"])


def stimulus() -> Tensor:
    yy, xx = np.mgrid[0:288, 0:384]
    disc = (xx - 200) ** 2 + (yy - 120) ** 2 < 60**2
    return torch.from_numpy(np.stack([0.5 + 0.5 * np.sin(xx / 17), 0.5 + 0.5 * np.cos(yy / 23), disc])).float()[None]


def test_transalnet_res_matches_the_reference(tmp_path: Path) -> None:
    file = tmp_path / WEIGHTS["res"].file
    torch.save(reference_state("res"), file)
    saliency = load_detector("transalnet-res", tmp_path)(stimulus().requires_grad_())
    file.unlink()  # 290 MB
    assert saliency.shape == (288, 384) and not saliency.requires_grad
    assert (saliency - golden("res_golden")).abs().max() < 2e-6


def test_transalnet_dense_matches_the_reference() -> None:
    with torch.no_grad():
        saliency = build("dense", reference_state("dense"))(stimulus())[0, 0]
    assert (saliency[::3, ::3] - golden("dense_golden_every_third")).abs().max() < 2e-6


def test_checkpoint_of_the_other_variant_is_refused() -> None:
    shapes = json.loads((DATA / "transal_dense_shapes.json").read_text())
    with pytest.raises(SgoolError, match="not those of TranSalNet"):
        build("res", {key: torch.zeros(shape) for key, shape in shapes.items() if "num_batches" not in key})


SIZES = [(288, 384), (512, 512), (300, 1000), (1000, 300), (513, 767), (40, 60), (7, 500), (500, 3), (576, 768)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_letterbox_is_opencv_bilinear_on_the_padded_canvas(height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    canvas = letterbox(image)
    assert canvas.shape == (1, 3, 288, 384)
    scale = min(288 / height, 384 / width)
    rows, columns = max(1, int(height * scale + 1e-9)), max(1, int(width * scale + 1e-9))
    top, left = (288 - rows) // 2, (384 - columns) // 2
    expected = np.full((288, 384, 3), 1 / 255, np.float32)
    expected[top : top + rows, left : left + columns] = cv2.resize(
        image[0].permute(1, 2, 0).numpy(), (columns, rows), interpolation=cv2.INTER_LINEAR
    ).reshape(rows, columns, 3)
    assert np.abs(canvas[0].permute(1, 2, 0).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [size for size in SIZES if min(size) > 10])
def test_unletterbox_returns_every_position_to_its_place(height: int, width: int) -> None:
    yy, xx = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([yy / height, xx / width, torch.ones(height, width)])[None]
    back = unletterbox(letterbox(places), height, width)
    assert back.shape == places.shape
    scale = min(288 / height, 384 / width)
    for side, axis in ((height, 0), (width, 1)):
        inner = (back - places)[0, axis, height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
        assert inner.abs().max() < 2 / (side * min(scale, 1))


@pytest.mark.parametrize(("height", "width"), [(100, 384), (288, 51)])
def test_only_the_padding_is_cut_away(height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    assert torch.equal(predict(lambda canvas: canvas[:, :1], image), image[0, 0])


def disc_image(row: int, column: int, radius: int, color: tuple, ground: Tensor) -> Tensor:
    yy, xx = torch.meshgrid(torch.arange(ground.shape[-2]), torch.arange(ground.shape[-1]), indexing="ij")
    disc = (yy - row) ** 2 + (xx - column) ** 2 <= radius**2
    return torch.where(disc, torch.tensor(color)[:, None, None], ground)[None]


def plain(height: int, width: int, color: tuple[float, float, float]) -> Tensor:
    return torch.tensor(color)[:, None, None].expand(3, height, width)


def stripes(height: int, width: int) -> Tensor:
    xx = torch.arange(width).expand(height, width)
    dark, light = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.3, 0.7, 0.4])
    return torch.where(xx // 8 % 2 == 0, dark[:, None, None], light[:, None, None])


def confetti(height: int, width: int) -> Tensor:
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), (0.3, 0.4, 0.7), np.float32)
    for _ in range(60):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        color = np.clip(np.array([0.3, 0.4, 0.7]) + rng.normal(0, 0.08, 3), 0, 1)
        cv2.circle(image, center, int(rng.integers(4, 12)), color.tolist(), -1)
    return torch.from_numpy(image).permute(2, 0, 1)


SPOT = (0.9, 0.3, 0.2)


@pytest.mark.parametrize(("row", "column"), [(60, 60), (150, 320), (200, 130)])
@pytest.mark.parametrize(
    "ground",
    [plain(256, 384, (0.2, 0.5, 0.8)), stripes(256, 384), confetti(256, 384)],
    ids=["plain", "stripes", "busy"],
)
def test_spectral_finds_a_small_subject(row: int, column: int, ground: Tensor) -> None:
    saliency = load_detector("spectral")(disc_image(row, column, 24, SPOT, ground))
    assert saliency.shape == (256, 384) and saliency.min() >= 0 and saliency.max() == 1
    peak = divmod(int(saliency.argmax()), 384)
    assert (peak[0] - row) ** 2 + (peak[1] - column) ** 2 <= 30**2
    region = find_regions(saliency)[0]
    assert region.top <= row < region.top + region.height and region.left <= column < region.left + region.width


def test_spectral_sees_color_at_equal_brightness() -> None:
    image = disc_image(60, 200, 20, (0.7, 0.2, 0.3), plain(256, 256, (0.2, 0.6, 0.4)))
    gray = image.mean(1, keepdim=True).expand_as(image)
    detect = load_detector("spectral")
    assert not detect(gray).any()
    peak = divmod(int(detect(image).argmax()), 256)
    assert (peak[0] - 60) ** 2 + (peak[1] - 200) ** 2 <= 26**2


def test_opponent_channels_of_gray_and_primaries() -> None:
    colors = torch.tensor([[0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1]])[:, :, None, None]
    expected = torch.tensor([[0.5, 0, 0], [1 / 3, 1, -0.5], [1 / 3, -1, -0.5], [1 / 3, 0, 1]])
    assert torch.allclose(opponent(colors)[:, :, 0, 0], expected)


def test_spectral_is_the_residual_of_the_log_spectrum() -> None:
    """The formulas in plain numpy, at the size where nothing is scaled."""
    image = disc_image(20, 40, 9, SPOT, confetti(64, 64))
    red, green, blue = image[0].double().numpy()
    distance = np.minimum(np.arange(64), 63 - np.arange(64)) + 0.5
    fade = np.where(distance < 8, 0.5 - 0.5 * np.cos(np.pi * distance / 8), 1)
    total = np.zeros((64, 64))
    for channel in ((red + green + blue) / 3, red - green, blue - (red + green) / 2):
        spectrum = np.fft.fft2((channel - channel.mean()) * np.outer(fade, fade))
        amplitude = np.abs(spectrum)
        log = np.log(amplitude + amplitude.mean() / 1000)
        around = sum(np.roll(log, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
        energy = np.abs(np.fft.ifft2(np.exp(log - around + 1j * np.angle(spectrum)))) ** 2
        total += channel.var() * energy / energy.mean()
    kernel = np.exp(-(np.arange(-10, 11) ** 2) / (2 * 2.5**2))
    smooth = np.pad(total, 10, mode="edge")
    for axis in (0, 1):
        smooth = np.apply_along_axis(np.convolve, axis, smooth, kernel / kernel.sum(), mode="valid")
    expected = np.sqrt(smooth)
    assert np.abs(load_detector("spectral")(image).numpy() - expected / expected.max()).max() < 1e-3


def test_spectral_follows_mirroring_but_not_contrast() -> None:
    detect = load_detector("spectral")
    image = disc_image(60, 60, 24, SPOT, confetti(128, 128))
    assert torch.allclose(detect(image.flip(3)), detect(image).flip(1), atol=1e-3)
    for share in (0.5, 0.05):
        assert torch.allclose(detect(0.4 + share * image), detect(image), atol=2e-3)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (3, 200), (200, 2), (30, 31)])
def test_spectral_of_a_flat_image_is_empty_at_any_size(size: tuple[int, int]) -> None:
    saliency = load_detector("spectral")(plain(*size, (0.3, 0.6, 0.9))[None])
    assert saliency.shape == size and not saliency.any()
    assert find_regions(saliency)[0].mass == 1
    noisy = load_detector("spectral")(torch.rand(1, 3, *size))
    assert noisy.shape == size and noisy.isfinite().all()


def test_detector_accepts_half_precision_values_out_of_range_and_a_graph() -> None:
    image = (3 * torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))).half().requires_grad_()
    saliency = load_detector("spectral")(image)
    assert saliency.dtype == torch.float32 and not saliency.requires_grad
    assert torch.equal(saliency, load_detector("spectral")(image.detach().float().clamp(0, 1)))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_detector_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(SgoolError, match="one RGB image"):
        load_detector("spectral")(torch.zeros(shape))


def test_error_for_an_unknown_detector_lists_the_known_ones() -> None:
    with pytest.raises(SgoolError) as caught:
        load_detector("deepgaze")
    assert all(name in str(caught.value) for name in DETECTORS)
    assert set(DETECTORS) == {
        *("transalnet-res", "transalnet-dense", "spectral"),
        *("grad-cam", "grad-cam++", "legrad", "mask"),
    }


def test_moving_a_detector_moves_its_network() -> None:
    network = torch.nn.Conv2d(3, 1, 1)
    detector = LoadedDetector(network, torch.device("cpu"))
    assert detector.to(torch.device("meta")) is detector
    assert network.weight.device.type == detector.device.type == "meta"


def test_each_detector_says_which_files_it_needs() -> None:
    assert detector_weights("transalnet-res") == (WEIGHTS["res"],)
    assert detector_weights("transalnet-dense") == (WEIGHTS["dense"],)
    assert not detector_weights("spectral")
    with pytest.raises(SgoolError, match="no saliency detector 'eyes'"):
        detector_weights("eyes")
