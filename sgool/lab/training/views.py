"""The pictures that the CLIPs learn from: groups of scenes that differ in one thing, whole or around one subject."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import trange

from sgool.lab.world import IMAGE, Box, Painter, Scene, near_misses, random_scene

GROUP = 4
"""Scenes in a group. All others differ from the first in one thing each; they are the hard negatives of a batch."""

Picture = tuple[Scene, np.ndarray, list[Box]]
Misses = Callable[[Scene], dict[str, list[Scene]]]


def neighbor(scene: Scene, rng: np.random.Generator, misses: Misses = near_misses) -> Scene:
    """One of the scene's near misses. A changed subject is twice as frequent as any other kind."""
    kinds = {kind: scenes for kind, scenes in misses(scene).items() if scenes}
    scenes = kinds[str(rng.choice(["word", *kinds]))]
    return scenes[int(rng.integers(len(scenes)))]


def group(
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator], Scene] = random_scene,
    misses: Misses = near_misses,
) -> list[Scene]:
    """A training scene and its neighbors, none of them held out."""
    scenes = [draw(rng)]
    while len(scenes) < GROUP:
        other = neighbor(scenes[0], rng, misses)
        if not other.held_out and other not in scenes:
            scenes.append(other)
    return scenes


class Source:
    """Groups of pictures: newly painted, or one time in three from a stock that passed through the autoencoder."""

    def __init__(self, assets: Path, work: Path, rng: np.random.Generator, stock: int = 800) -> None:
        self.painter = Painter(assets)
        self.rng = rng
        self.stock = self._stock(work / f"stock-{stock}.npy", stock)

    def group(self) -> list[Picture]:
        if self.rng.random() < 1 / 3:
            return self.stock[int(self.rng.integers(len(self.stock)))]
        return [(scene, *self.painter.compose(scene, self.rng)) for scene in group(self.rng)]

    def _stock(self, path: Path, count: int) -> list[list[Picture]]:
        from sgool.backends.diffusers import load_backend

        rng = np.random.default_rng(9)  # the same for all CLIPs, because they share the file
        groups = [[(scene, *self.painter.compose(scene, rng)) for scene in group(rng)] for _ in range(count)]
        if not path.exists():
            backend = load_backend("tiny")
            decoded = np.zeros((count, GROUP, IMAGE, IMAGE, 3), np.uint8)
            for i in trange(count, desc="through the autoencoder"):
                x = torch.from_numpy(np.stack([image for _, image, _ in groups[i]])).permute(0, 3, 1, 2) / 255
                with torch.no_grad():
                    y = backend.decode(backend.encode(x)).clamp(0, 1)
                decoded[i] = (y * 255).round().byte().permute(0, 2, 3, 1).numpy()
            np.save(path, decoded)
        images = np.load(path)
        return [
            [(scene, image, boxes) for (scene, _, boxes), image in zip(row, pictures, strict=True)]
            for row, pictures in zip(groups, images, strict=True)
        ]


def whole(picture: Picture, size: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """The picture at `size` pixels and its caption. One caption in eight names no background, like many prompts."""
    scene, image, _ = picture
    text = scene.caption.split(" on a ")[0] if rng.random() < 1 / 8 else scene.caption
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), text


def around_subject(picture: Picture, size: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A square around one subject, 1.1 to 2.2 times as large, and a phrase that describes the subject."""
    scene, image, boxes = picture
    which = int(rng.integers(len(boxes)))
    top, left, height, width = boxes[which]
    side = min(IMAGE, round(max(height, width) * rng.uniform(1.1, 2.2)))
    reach = (side - max(height, width)) // 3 + 1
    y = top + height // 2 - side // 2 + int(rng.integers(-reach, reach + 1))
    x = left + width // 2 - side // 2 + int(rng.integers(-reach, reach + 1))
    y, x = min(max(y, 0), IMAGE - side), min(max(x, 0), IMAGE - side)
    text = str(scene.subjects[which])
    if rng.random() < 0.5:
        text = f"{text} on a {scene.caption.split(' on a ')[1]}"
    way = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(image[y : y + side, x : x + side], (size, size), interpolation=way), text
