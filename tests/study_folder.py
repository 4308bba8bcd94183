"""An evaluation's folder as a study reads it: real files, with pictures that are drawn here."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from sgool.lab.study.server import Server

HOSTILE = "</script><script>document.title='hacked'</script><!--<script> & \"a car\" 'é' $js"
PROMPTS = ("a car on a red background", "a small frog", HOSTILE)
METHODS = ("sd", "doodl", "sgool")
COLUMNS = ("set", "category", "prompt", "seed", "method", "image", "judge", "failure")


def write_evaluation(
    folder: Path, prompts: Sequence[str] = PROMPTS, methods: Sequence[str] = METHODS, seeds: int = 1, size: int = 96
) -> Path:
    """Pictures of different colors for every prompt, seed and method."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for prompt in prompts:
        for seed in range(seeds):
            for method in methods:
                name = f"images/{len(rows):04d}{method}.png"
                image = np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8)
                cv2.circle(image, (size // 2, size // 2), size // 4, rng.integers(0, 256, 3).tolist(), -1)
                assert cv2.imwrite(str(folder / name), image)
                rows.append(("prompt set", "", prompt, seed, method, name, 0.5, ""))
    write_results(folder, rows)
    return folder


def write_results(folder: Path, rows: Sequence[Sequence[object]]) -> None:
    with open(folder / "results.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server of the study in an evaluation's folder."""
    with Server(folder, "127.0.0.1", 0) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()
