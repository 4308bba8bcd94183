"""Faces: where they are in an image.

YuNet (Wu, Peng and Yu, Machine Intelligence Research, 2023) finds them: a network of 230 KB that OpenCV runs. Where its
file cannot be had, the cascades of Viola and Jones (CVPR 2001) do, which OpenCV shipped before version 5. That is never
an error: `FaceFinder.note` says it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from sgool.download import DownloadError, Report, unreachable
from sgool.errors import SgoolError, brief
from sgool.region import Region
from sgool.saliency.regions import MAX_INSIDE, MAX_IOU
from sgool.weights import Weight, default_models_dir, ensure, is_here

# The sum and the size (232,589 bytes) are published in the Git LFS pointer of opencv/opencv_zoo (MIT license),
# models/face_detection_yunet/face_detection_yunet_2023mar.onnx. The author's repository holds the same file as it is.
YUNET = Weight(
    "face_detection_yunet_2023mar.onnx",
    "https://raw.githubusercontent.com/ShiqiYu/libfacedetection.train/0047ac24afb1a50a0c6105001c89d1b5b805dbf1"
    "/onnx/yunet_s_640_640.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    hub=("opencv/face_detection_yunet", "face_detection_yunet_2023mar.onnx"),
)
SOURCES: tuple[Weight, ...] = (
    YUNET,
    replace(YUNET, url="https://huggingface.co/opencv/face_detection_yunet/resolve/main/" + YUNET.file),
)
"""YuNet's file at each place that has it, the first that is asked first."""

SCORE = 0.7
"""YuNet's lowest score of a face. Photographs without faces rarely reach 0.6; faces of 20 pixels have 0.7 to 0.9."""

SIDES = (320, 640, 1280)
"""YuNet sees the image at these lengths of its longer side, at the last as far as that enlarges it by half at most. It
was trained on faces of 10 to 300 pixels, and finds those that fill the image only at the first."""

WIDEST = 320
"""Of the larger images, only faces up to so many pixels count."""

SUM = 55.5
"""The lowest sum of the last stage of the frontal cascade. Most faces have more, most textures less."""

PROFILE = 1.0
"""The lowest sum of the last stage of the profile cascade."""

TURNS = (-25, 25)
"""Degrees that the frontal cascade also sees the image turned by. YuNet finds faces at any angle."""

RETRY = 600
"""Seconds until a download that failed is tried again: a run without a network should not wait for it each time."""


class Face(NamedTuple):
    """A face in pixels, and how sure it is."""

    left: float
    top: float
    width: float
    height: float
    score: float

    def overlaps(self, other: Face) -> bool:
        """Whether both are likely to be one face."""
        across = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        down = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        shared = max(0.0, across) * max(0.0, down)
        own, others = self.width * self.height, other.width * other.height
        return shared / (own + others - shared) > MAX_IOU or shared / min(own, others) > MAX_INSIDE


Look = Callable[[np.ndarray], Iterable[Face]]
"""From a picture, uint8 BGR [H, W, 3], to the faces in it; one face may come several times."""

_failed: dict[Path, tuple[float, str]] = {}  # why the file could not be had, and when, by the models folder


def fetch_faces(models_dir: Path, report: Report | None = None) -> None:
    """Download YuNet's file where it is not there yet.

    Where it cannot be had, `FaceFinder.note` will say why, and it is not asked for again for a while. Raises only what
    `report` raises.
    """
    folder = Path(models_dir)
    failed_at, _ = _failed.get(folder, (-math.inf, ""))
    if is_here(YUNET, folder) or time.monotonic() < failed_at + RETRY:
        return
    away = unreachable([source.url for source in SOURCES], report)
    reasons = []
    for source in SOURCES:
        try:
            if reason := away.get(urlsplit(source.url).hostname or ""):
                reasons.append(reason)
            else:
                ensure(source, folder, report)
                _failed.pop(folder, None)
                return
        except DownloadError as error:
            reasons.append(error.reason)
        except SgoolError as error:  # the disk's
            reasons.append(str(error).rstrip("."))
    _failed[folder] = time.monotonic(), "; ".join(dict.fromkeys(reasons))


class FaceFinder:
    """Finds faces. It takes YuNet as soon as its file is there, see `fetch_faces`; it downloads nothing itself.

    note: one sentence where YuNet is not used, "" otherwise.
    """

    def __init__(self, models_dir: str | Path | None = None) -> None:
        self.folder = Path(models_dir) if models_dir is not None else default_models_dir()
        self.note = ""
        self._look: Look | None = None
        self._open()

    @torch.no_grad()
    def __call__(self, image: Tensor) -> list[Region]:
        """The faces of an image [1, 3, H, W], RGB in [0, 1], the surest first; `mass` is a face's share of the scores.

        Raises SgoolError for an image of another shape and one that is not finite.
        """
        if image.ndim != 4 or image.shape[:2] != (1, 3) or 0 in image.shape:
            raise SgoolError(f"The face detector takes one RGB image [1, 3, H, W], not {list(image.shape)}.")
        if not torch.isfinite(image).all():
            raise SgoolError("No faces can be found because the image contains NaN or infinite values.")
        if self.note:
            self._open()
        if self._look is None:
            return []
        pixels = (image[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return regions(distinct(self._look(np.ascontiguousarray(pixels[..., ::-1]))), *pixels.shape[:2])

    def _open(self) -> None:
        """Take the best detector that there is."""
        try:
            self._look, self.note = _yunet(self.folder), ""
            return
        except SgoolError as error:
            reason = str(error).rstrip(".")
        self._look = self._look or _cascades()
        if self._look is None:
            self.note = f"Faces cannot be found: {reason}, and OpenCV {_version()} ships no other detector."
        else:
            self.note = f"Faces are found by OpenCV's older detector, which misses many that are turned: {reason}."


def regions(faces: Iterable[Face], height: int, width: int) -> list[Region]:
    """The faces within an image of that size, as whole pixels."""
    inside = []
    for face in faces:
        top, left = max(0, math.floor(face.top)), max(0, math.floor(face.left))
        bottom = min(height, math.ceil(face.top + face.height))
        right = min(width, math.ceil(face.left + face.width))
        if bottom > top and right > left:
            inside.append(Region(top, left, bottom - top, right - left, face.score))
    total = sum(region.mass for region in inside)
    return [replace(region, mass=region.mass / total) for region in inside]


def distinct(faces: Iterable[Face]) -> list[Face]:
    """Each face once, as it was surest; the surest first."""
    found: list[Face] = []
    for face in sorted(faces, key=lambda each: -each.score):
        if not any(face.overlaps(other) for other in found):
            found.append(face)
    return found


def _yunet(folder: Path) -> Look:
    """Raises SgoolError, which says why it cannot be had."""
    import cv2

    if not is_here(YUNET, folder):
        _, why = _failed.get(folder, (0.0, ""))
        raise SgoolError(f"{YUNET.file} could not be downloaded ({why})" if why else f"{YUNET.file} is not in {folder}")
    path = ensure(YUNET, folder)  # nothing but the published file goes into OpenCV's parser
    data = np.frombuffer(path.read_bytes(), np.uint8)  # OpenCV cannot open every path that Python can
    try:
        with _silent():
            net = cv2.FaceDetectorYN.create("onnx", data, np.zeros(0, np.uint8), (SIDES[0], SIDES[0]), SCORE)
            net.detect(np.zeros((SIDES[0], SIDES[0], 3), np.uint8))
    except (AttributeError, TypeError, cv2.error) as error:
        raise SgoolError(f"OpenCV {_version()} cannot run {YUNET.file} ({brief(error)})") from error
    return lambda picture: scan(net, picture)


def scan(net: Any, picture: np.ndarray) -> Iterator[Face]:
    """What YuNet, a `cv2.FaceDetectorYN`, sees in a picture at several sizes."""
    longer = max(picture.shape[:2])
    finest = min(SIDES[2], round(1.5 * longer))
    for side in (*SIDES[:2], *([finest] if finest > SIDES[1] else [])):
        small, scale = _scaled(picture, side / longer)
        height, width = small.shape[:2]
        net.setInputSize((width, height))
        found = net.detect(small)[1]
        for row in [] if found is None else found:
            left, top, wide, high, score = (float(row[column]) for column in (0, 1, 2, 3, -1))
            # For the smallest images, OpenCV 4 can give boxes of no height, far outside.
            real = np.isfinite(row).all() and min(wide, high) > 0 and max(wide, high) <= max(height, width) * 1.2
            within = 0 <= left + wide / 2 <= width and 0 <= top + high / 2 <= height
            if real and within and (side == SIDES[0] or max(wide, high) <= WIDEST):
                yield Face(left / scale, top / scale, wide / scale, high / scale, score)


def _cascades() -> Look | None:
    """None where OpenCV has none."""
    import cv2

    library: Any = cv2  # which version that will be, mypy cannot know
    try:
        opened = [
            library.CascadeClassifier(f"{library.data.haarcascades}haarcascade_{name}.xml")
            for name in ("frontalface_alt2", "profileface")
        ]
    except (AttributeError, cv2.error):
        return None
    if any(each.empty() for each in opened):
        return None
    frontal, profile = opened
    return lambda picture: scan_cascades(frontal, profile, picture)


def scan_cascades(frontal: Any, profile: Any, picture: np.ndarray) -> Iterator[Face]:
    """What the cascades see in a picture: upright faces at its best size, turned ones and profiles at a smaller one."""
    import cv2

    gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    longer = max(gray.shape)
    for face, weight in _cascade(frontal, gray, min(SIDES[2], max(SIDES[0], round(1.5 * longer)))):
        if weight >= SUM:
            yield face._replace(score=weight / SUM)
    height, width = gray.shape
    coarse = min(SIDES[1], max(SIDES[0], longer))
    for degrees in TURNS:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
        back = cv2.invertAffineTransform(turn)
        turned = cv2.warpAffine(gray, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
        for face, weight in _cascade(frontal, turned, coarse):
            if weight >= SUM:
                x, y = back @ (face.left + face.width / 2, face.top + face.height / 2, 1)
                yield Face(x - face.width / 2, y - face.height / 2, face.width, face.height, weight / SUM)
    for flipped in (False, True):
        for face, weight in _cascade(profile, gray[:, ::-1] if flipped else gray, coarse):
            if weight >= PROFILE:
                left = width - face.left - face.width if flipped else face.left
                yield face._replace(left=left, score=0.9)


def _cascade(cascade: Any, gray: np.ndarray, side: int) -> Iterator[tuple[Face, float]]:
    """What a cascade sees in a gray picture scaled to that longer side, and the sums of its last stage."""
    small, scale = _scaled(gray, side / max(gray.shape))
    boxes, _, sums = cascade.detectMultiScale3(small, 1.2, 2, 0, (24, 24), (0, 0), True)
    for box, total in zip(boxes, np.ravel(sums), strict=True):
        left, top, wide, high = (float(value) / scale for value in box)
        yield Face(left, top, wide, high, 0.0), float(total)


def _scaled(picture: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    import cv2

    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=way), scale


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """OpenCV 5 warns of what does no harm while it opens a network."""
    import cv2

    log: Any = getattr(getattr(cv2, "utils", None), "logging", None)
    before = log.setLogLevel(log.LOG_LEVEL_ERROR) if log else None
    try:
        yield
    finally:
        if log:
            log.setLogLevel(before)


def _version() -> str:
    import cv2

    return str(cv2.__version__)
