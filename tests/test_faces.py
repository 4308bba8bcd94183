"""Faces are found in any picture, and what is missing is said, never an error."""

from __future__ import annotations

import csv
import hashlib
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
import torch
from drawn_faces import picture
from file_server import Server, quiet
from huggingface_hub import constants
from PIL import Image

from sgool.download import Transfer
from sgool.errors import SgoolError
from sgool.images import read_image
from sgool.region import Region
from sgool.result import Stop
from sgool.saliency import faces
from sgool.saliency.faces import Face, FaceFinder, distinct, fetch_faces, regions, scan
from sgool.weights import Weight, default_models_dir, is_here

CASCADES = hasattr(cv2, "CascadeClassifier")
"""OpenCV 5 has none."""

HERE = default_models_dir() if is_here(faces.YUNET) else None
"""Where YuNet is. It is not shipped; with its file in SGOOL_MODELS, the tests see the real detector."""


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(faces, "_failed", {})


@pytest.fixture(params=["cascades", "yunet"])
def finder(request: pytest.FixtureRequest, tmp_path: Path) -> FaceFinder:
    """Both detectors, one after another."""
    if request.param == "yunet" and HERE is None:
        pytest.skip("YuNet's file is not here")
    if request.param == "cascades" and not CASCADES:
        pytest.skip("OpenCV 5 ships no cascades")
    found = FaceFinder(HERE if request.param == "yunet" else tmp_path)
    assert bool(found.note) == (request.param == "cascades")
    return found


def holds(region: Region, x: float, y: float, high: float) -> bool:
    """Whether a region is that of a face drawn there."""
    off = (region.left + region.width / 2 - x, region.top + region.height / 2 - y)
    return max(map(abs, off)) < 0.2 * high and 0.6 * high < region.height < 1.2 * high


def test_every_face_is_found_where_it_is(finder: FaceFinder) -> None:
    drawn = ((150, 150, 120, 0), (400, 300, 80, 0), (650, 200, 160, 0))
    found = finder(picture((512, 768), *drawn))
    assert len(found) == 3 and sum(region.mass for region in found) == pytest.approx(1)
    for x, y, high, _ in drawn:
        assert sum(holds(region, x, y, high) for region in found) == 1
    assert [region.mass for region in found] == sorted((region.mass for region in found), reverse=True)


@pytest.mark.parametrize(("side", "high"), [(96, 24), (128, 64), (512, 32), (512, 400), (1024, 24), (1024, 900)])
def test_faces_of_any_size(finder: FaceFinder, side: int, high: int) -> None:
    (region,) = finder(picture((side, side), (side / 2, side / 2, high, 0)))
    assert holds(region, side / 2, side / 2, high)


@pytest.mark.parametrize("degrees", [-30, -15, 15, 30])
def test_turned_faces(finder: FaceFinder, degrees: int) -> None:
    (region,) = finder(picture((400, 512), (200, 180, 120, degrees)))
    assert holds(region, 200, 180, 120)


def test_pictures_without_faces(finder: FaceFinder) -> None:
    generator = np.random.default_rng(0)
    yy, xx = np.mgrid[0:256, 0:256]
    textures = [
        np.full((256, 256), 0.5),
        (xx // 16 + yy // 16) % 2,
        generator.random((256, 256)),
        0.5 + 0.5 * np.sin(xx / 9) * np.sin(yy / 7),
    ]
    for texture in textures:
        assert finder(torch.from_numpy(texture).float().expand(1, 3, -1, -1)) == []


def test_the_embedded_worlds_pictures_have_no_faces_but_the_pandas(finder: FaceFinder) -> None:
    folder = Path(__file__).parent / "data" / "scenes"
    captions = csv.DictReader((folder / "captions.csv").read_text(encoding="utf-8").splitlines())
    others = [row["file"] for row in captions if "panda" not in row["caption"]]
    assert len(others) > 8
    assert {file: found for file in others if (found := finder(read_image(folder / file)))} == {}


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 12), (16, 16), (33, 17), (20, 300), (2048, 40)])
def test_any_shape_can_be_looked_at(finder: FaceFinder, size: tuple[int, int]) -> None:
    for region in finder(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))):
        assert region.top + region.height <= size[0] and region.left + region.width <= size[1]


def test_a_file_turned_by_exif(finder: FaceFinder, tmp_path: Path) -> None:
    upright = (picture((300, 400), (120, 150, 110, 0))[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # it has to be turned clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "turned.jpg")
    assert image.shape[-2:] == (300, 400)
    (region,) = finder(image)
    assert holds(region, 120, 150, 110)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_image_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    image = torch.zeros(1, 3, 64, 64)
    image[0, 1, 2, 3] = value
    with pytest.raises(SgoolError, match="NaN or infinite"):
        FaceFinder(tmp_path)(image)
    for shape in ((1, 1, 8, 8), (2, 3, 8, 8), (3, 8, 8), (1, 3, 0, 8)):
        with pytest.raises(SgoolError, match=r"takes one RGB image \[1, 3, H, W\]"):
            FaceFinder(tmp_path)(torch.zeros(shape))


class Net:
    """Stands for `cv2.FaceDetectorYN`: finds the red square, and as OpenCV 4 boxes far outside."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def setInputSize(self, size: tuple[int, int]) -> None:
        self.sizes.append(size)

    def detect(self, image: np.ndarray) -> tuple[int, np.ndarray | None]:
        rows, columns = np.nonzero((image[..., 2] > 127) & (image[..., 0] < 127))
        if not len(rows):
            return 1, None
        box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        found = np.zeros((4, 15), np.float32)
        found[0, :4], found[:, 14] = box, 0.9
        found[1, :4] = (-36605, -60, 73018, 0)
        found[2, :4] = (5000, 5, 10, 10)
        found[3, :4] = np.nan
        return 1, found


@pytest.mark.parametrize(
    ("size", "box", "sides"),
    [
        ((1024, 1024), (100, 200, 64, 80), [320, 640, 1280]),
        ((1024, 1024), (0, 0, 1000, 1000), [320, 640, 1280]),
        ((128, 128), (10, 20, 16, 16), [320, 640]),
        ((512, 384), (10, 20, 16, 16), [320, 640, 768]),
        ((4096, 2048), (100, 200, 400, 400), [320, 640, 1280]),
    ],
)
def test_the_network_sees_several_sizes(
    size: tuple[int, int], box: tuple[int, int, int, int], sides: list[int]
) -> None:
    left, top, wide, high = box
    image = np.zeros((*size, 3), np.uint8)
    image[top : top + high, left : left + wide, 2] = 255
    net = Net()
    (face,) = distinct(scan(net, image))
    assert np.allclose(face[:4], box, atol=0.02 * max(size))
    assert [max(each) for each in net.sizes] == sides
    assert all(each[0] / each[1] == pytest.approx(size[1] / size[0], rel=0.02) for each in net.sizes)


def test_each_face_once_and_within_the_image() -> None:
    sure, same, inside, other = (
        Face(10, 10, 40, 50, 0.9),
        Face(14, 12, 40, 50, 0.8),
        Face(20, 20, 10, 10, 0.7),
        Face(80.2, -9.5, 40, 50, 0.6),
    )
    assert distinct([inside, other, same, sure]) == [sure, other]
    found = regions([sure, other, Face(200, 0, 9, 9, 1)], 60, 100)
    assert [replace(region, mass=1) for region in found] == [Region(10, 10, 50, 40, 1), Region(0, 80, 41, 20, 1)]
    assert [region.mass for region in found] == [pytest.approx(0.6), pytest.approx(0.4)]


def dead(*_: object, **__: object) -> NoReturn:
    raise socket.gaierror(-3, "Temporary failure in name resolution")


def test_without_a_network_it_is_said_and_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", dead)
    fetch_faces(tmp_path, quiet)
    finder = FaceFinder(tmp_path)
    begin = "Faces are found by OpenCV's older detector" if CASCADES else "Faces cannot be found: "
    assert finder.note.startswith(begin) and finder.note.endswith(".") and "\n" not in finder.note
    assert "raw.githubusercontent.com cannot be reached: " in finder.note and "huggingface.co" in finder.note
    found = finder(picture((256, 256), (128, 128, 120, 0)))
    assert len(found) == (1 if CASCADES else 0)

    monkeypatch.setattr(faces, "unreachable", lambda *_: pytest.fail("asked again"))
    fetch_faces(tmp_path, quiet)
    monkeypatch.setattr(faces, "RETRY", -1)
    with pytest.raises(pytest.fail.Exception):
        fetch_faces(tmp_path, quiet)


def test_what_was_never_asked_for_is_said(tmp_path: Path) -> None:
    assert f"{faces.YUNET.file} is not in {tmp_path}" in FaceFinder(tmp_path).note


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The server publishes a file at two places; gives the address of a name."""
    server.body = b"the network" * 1000
    root = server.url.partition("download")[0]
    weight = Weight("net.onnx", f"{root}first", sha256=hashlib.sha256(server.body).hexdigest())
    monkeypatch.setattr(faces, "YUNET", weight)
    monkeypatch.setattr(faces, "SOURCES", (weight, replace(weight, url=f"{root}second")))
    return lambda name: f"/{name}"


def test_the_file_is_fetched_once_and_then_opened(
    server: Server, published: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = FaceFinder(tmp_path)
    assert early.note
    seen: list[Transfer] = []
    fetch_faces(tmp_path, seen.append)
    fetch_faces(tmp_path, seen.append)
    assert [path for path, *_ in server.requests] == ["/first"]
    assert {each.file for each in seen} >= {"net.onnx"}

    # It is the published file, but OpenCV cannot read it: that is said, too.
    late = FaceFinder(tmp_path)
    assert f"OpenCV {cv2.__version__} cannot run net.onnx" in late.note

    created: list[bytes] = []

    class Detector:
        @staticmethod
        def create(kind: str, data: np.ndarray, *_: Any) -> Net:
            created.append(data.tobytes())
            return Net()

    monkeypatch.setattr(cv2, "FaceDetectorYN", Detector)
    image = torch.zeros(1, 3, 64, 64)
    image[:, 0, 16:32, 8:40] = 1
    assert early(image) == [Region(16, 8, 16, 32, 1.0)] and early.note == ""
    assert created == [server.body]


def test_another_place_is_asked_where_the_first_has_it_not(
    server: Server, published: Callable[[str], str], tmp_path: Path
) -> None:
    server.files = {"second": server.body}
    fetch_faces(tmp_path, quiet)
    assert (tmp_path / "net.onnx").read_bytes() == server.body
    assert [path for path, *_ in server.requests] == ["/first", "/second"]


def test_a_wrong_file_is_refused(server: Server, published: Callable[[str], str], tmp_path: Path) -> None:
    server.body = b"version https://git-lfs.github.com/spec/v1"
    fetch_faces(tmp_path, quiet)
    assert not (tmp_path / "net.onnx").exists()
    assert "its SHA-256 is not the published one" in FaceFinder(tmp_path).note
    (tmp_path / "net.onnx").write_bytes(b"put there by hand")
    finder = FaceFinder(tmp_path)
    assert "is not the published file: its SHA-256 differs; delete it" in finder.note
    finder(torch.zeros(1, 3, 32, 32))


def test_stop_ends_the_download(server: Server, published: Callable[[str], str], tmp_path: Path) -> None:
    def report(transfer: Transfer) -> None:
        raise Stop

    with pytest.raises(Stop):
        fetch_faces(tmp_path, report)


def test_an_old_opencv_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "YUNET", Weight("net.onnx", "", sha256=hashlib.sha256(b"net").hexdigest()))
    (tmp_path / "net.onnx").write_bytes(b"net")
    monkeypatch.delattr(cv2, "FaceDetectorYN")
    monkeypatch.delattr(cv2, "CascadeClassifier", raising=False)
    finder = FaceFinder(tmp_path)
    assert re.fullmatch(
        r"Faces cannot be found: OpenCV \S+ cannot run net\.onnx .*ships no other detector\.", finder.note
    )
    assert finder(picture((128, 128), (64, 64, 80, 0))) == []


def test_the_published_sum_is_whole() -> None:
    assert faces.YUNET.pinned and all(source.sha256 == faces.YUNET.sha256 for source in faces.SOURCES)
    assert all(source.url.startswith("https://") and source.file == faces.YUNET.file for source in faces.SOURCES)
