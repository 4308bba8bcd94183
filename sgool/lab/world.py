"""The small world that the embedded model knows: its captions, and how a scene is composed for a caption.

Pictures are made from Microsoft's Fluent 3D emoji (MIT license), as packed in the npm package
``@lobehub/fluent-emoji-3d`` 1.1.0. ``Painter`` needs only the folder ``assets`` of the unpacked package.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sgool.tiny.words import COLORS as COLOR_WORDS
from sgool.tiny.words import SUBJECTS

OBJECTS = dict(zip(SUBJECTS, ("1f43c", "1f355", "1f438", "1f353", "1f427", "1f33b", "1f697", "1f433"), strict=True))
"""Word in the caption -> code point of the emoji, which is the name of its picture."""

COLORS = dict(
    zip(
        COLOR_WORDS,
        ((208, 52, 48), (240, 205, 60), (60, 160, 75), (55, 105, 205), (130, 70, 175), (236, 236, 238)),
        strict=True,
    )
)
"""Word in the caption -> mean RGB of the background."""

SMALL = (0.2, 0.25)
ALONE = (0.5, 0.75)
PAIRED = (0.42,)
"""Widths of a subject as a share of the picture's width: a small subject, a subject alone, and one of two."""

IMAGE = 128
"""Pixels per side of a picture."""

GRID = 16
"""Subjects and patterns are aligned to a grid with this many cells per side, the grid of the latent. A subject learned
in one place is then known in all places, so two CPU cores can learn this world well."""

HELD_OUT_PART = 10
"""One caption in this many is never used in training."""


@dataclass(frozen=True)
class Subject:
    word: str
    small: bool = False

    def __str__(self) -> str:
        return f"a small {self.word}" if self.small else f"a {self.word}"


@dataclass(frozen=True)
class Scene:
    """Subjects, named from left to right, on a colored background: one or two; in `sgool.lab.larger` up to three."""

    subjects: tuple[Subject, ...]
    color: str
    busy: bool = False

    @property
    def caption(self) -> str:
        *first, last = map(str, self.subjects)
        things = f"{', '.join(first)} and {last}" if first else last
        return f"{things} on a {'busy ' if self.busy else ''}{self.color} background"

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.caption.encode()) % HELD_OUT_PART == 0

    @property
    def size(self) -> str:
        """The stratum in the benchmark: "small" if all subjects are small, "large" if none is, else "mixed"."""
        small = [subject.small for subject in self.subjects]
        return "small" if all(small) else "mixed" if any(small) else "large"


def parse(caption: str, words: Collection[str] = tuple(OBJECTS), most: int = 2) -> Scene | None:
    """The scene that a caption describes, with at most `most` of these words; None for any other text."""
    match = re.fullmatch(r"(.+) on a (busy )?(\w+) background", caption)
    if not match:
        return None
    subjects = tuple(Subject(each.split()[-1], " small " in each) for each in re.split(", | and ", match[1]))
    scene = Scene(subjects, match[3], bool(match[2]))
    known = scene.color in COLORS and all(subject.word in words for subject in subjects)
    return scene if known and len(subjects) <= most and scene.caption == caption else None


def near_misses(scene: Scene, words: Collection[str] = tuple(OBJECTS), most: int = 2) -> dict[str, list[Scene]]:
    """The scenes that differ in one thing, by the kind of difference: word, size, order, number, color or busy.

    A world has these words, and at most `most` subjects in a scene.
    """
    subjects = scene.subjects
    others = [word for word in words if word not in [subject.word for subject in subjects]]

    def changed(index: int, subject: Subject) -> Scene:
        return replace(scene, subjects=(*subjects[:index], subject, *subjects[index + 1 :]))

    places = range(len(subjects))
    orders = [order for order in itertools.permutations(subjects) if order != subjects]
    added = [Subject(word, small) for word in others for small in (False, True)] if len(subjects) < most else []
    number = [*((*subjects, subject) for subject in added), *itertools.combinations(subjects, len(subjects) - 1)]
    return {
        "word": [changed(index, replace(subjects[index], word=word)) for index in places for word in others],
        "size": [changed(index, replace(subject, small=not subject.small)) for index, subject in enumerate(subjects)],
        "order": [replace(scene, subjects=order) for order in orders],
        "number": [replace(scene, subjects=some) for some in number if some],
        "color": [replace(scene, color=color) for color in COLORS if color != scene.color],
        "busy": [replace(scene, busy=not scene.busy)],
    }


def all_scenes() -> list[Scene]:
    subjects = [Subject(word, small) for word in OBJECTS for small in (False, True)]
    pairs = [pair for pair in itertools.permutations(subjects, 2) if pair[0].word != pair[1].word]
    settings = list(itertools.product(COLORS, (False, True)))
    return [Scene(group, *setting) for group in [*((s,) for s in subjects), *pairs] for setting in settings]


def random_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A random scene with a training caption (or a held-out one). One and two subjects are equally frequent."""
    while True:
        words = rng.choice(list(OBJECTS), size=rng.integers(1, 3), replace=False)
        subjects = tuple(Subject(str(word), bool(rng.random() < 0.4)) for word in words)
        scene = Scene(subjects, str(rng.choice(list(COLORS))), bool(rng.random() < 0.4))
        if scene.held_out == held_out:
            return scene


Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


def read_emoji(assets: Path, code: str) -> np.ndarray:
    """The picture of a code point without its empty edges: float32 RGBA [H, W, 4] in [0, 1], premultiplied.

    Premultiplied, because resizing would otherwise bleed color.
    """
    from PIL import Image

    with Image.open(Path(assets) / f"{code}.webp") as picture:
        rgba = np.asarray(picture.convert("RGBA"), np.float32) / 255
    rows, columns = np.nonzero(rgba[..., 3] > 0.1)
    rgba = rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def resized(picture: np.ndarray, side: float) -> np.ndarray:
    """The picture at this many pixels on its longer side."""
    import cv2

    scale = side / max(picture.shape[:2])
    h, w = (max(1, round(length * scale)) for length in picture.shape[:2])
    return cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)


class Painter:
    """Composes scenes from the emoji pictures in ``assets``."""

    def __init__(self, assets: Path, size: int = IMAGE):
        self.size = size
        self.pictures = {}
        for word, code in OBJECTS.items():
            self.pictures[word] = read_emoji(assets, code)

    def paint(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """The scene as uint8 RGB [size, size, 3]; positions, sizes and colors vary with ``rng``."""
        return self.compose(scene, rng)[0]

    def compose(self, scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, list[Box]]:
        """The picture that `paint` gives, and the box of each subject."""
        image = self._background(scene, rng)
        boxes = [
            self._paste(image, self.pictures[subject.word], x, y, width)
            for subject, (x, y, width) in zip(scene.subjects, self._layout(scene, rng), strict=True)
        ]
        return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8), boxes

    def _layout(self, scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """Center x, center y and width of each subject, as shares of the picture."""
        alone = len(scene.subjects) == 1
        places = []
        for index, subject in enumerate(scene.subjects):
            width = rng.choice(SMALL if subject.small else ALONE if alone else PAIRED)
            left, right = (0.0, 1.0) if alone else (0.5 * index, 0.5 * index + 0.5)
            x = rng.uniform(left + width / 2, right - width / 2)
            places.append((x, rng.uniform(width / 2, 1 - width / 2), width))
        return places

    def _background(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        n = self.size
        base = np.array(COLORS[scene.color], np.float32) / 255 + rng.normal(0, 0.02, 3).astype(np.float32)
        ramp = np.linspace(-1, 1, n, dtype=np.float32)[:, None, None] * rng.uniform(-0.04, 0.04)
        image = np.broadcast_to(base + ramp, (n, n, 3)).astype(np.float32)
        if not scene.busy:
            return image
        image = np.ascontiguousarray(image)
        shade = base + rng.choice([-0.15, 0.15])
        step = 2 * n // GRID
        yy, xx = np.mgrid[0:n, 0:n]
        pattern = rng.choice(["stripes", "checks", "dots"])
        if pattern == "stripes":
            image[(xx + yy * rng.integers(-1, 2)) // (step // 2) % 2 == 0] = shade
        elif pattern == "checks":
            image[(xx // step + yy // step) % 2 == 0] = shade
        else:
            image[(xx % step - step / 2) ** 2 + (yy % step - step / 2) ** 2 < (step / 3.2) ** 2] = shade
        return image

    def _paste(self, image: np.ndarray, picture: np.ndarray, x: float, y: float, width: float) -> Box:
        n = self.size
        small = resized(picture, width * n)
        h, w = small.shape[:2]
        cell = n // GRID
        top = cell * round(np.clip(y * n - h / 2, 0, n - h) // cell)
        left = cell * round(np.clip(x * n - w / 2, 0, n - w) // cell)
        patch = image[top : top + h, left : left + w]
        patch[:] = small[..., :3] + patch * (1 - small[..., 3:])
        return top, left, h, w


def held_out_scenes(count: int, seed: int = 1) -> list[Scene]:
    """`count` scenes with different held-out captions, a third of each size (small, mixed, large)."""
    rng = np.random.default_rng(seed)
    scenes = [scene for scene in all_scenes() if scene.held_out]
    sizes = ("small", "mixed", "large")
    groups = [[scene for scene in scenes if scene.size == size] for size in sizes]
    for group in groups:
        rng.shuffle(group)  # type: ignore[arg-type]
    return [groups[i % 3][i // 3] for i in range(count)]
