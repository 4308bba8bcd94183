"""Step 1: compose the training pictures. ``python -m sgool.lab.training.scenes --assets DIR --out WORK``"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import trange

from sgool.lab.world import Painter, random_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True, help="folder of the emoji pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    painter = Painter(args.assets)
    shape = (args.count, painter.size, painter.size, 3)
    images = np.lib.format.open_memmap(args.out / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    captions = []
    for index in trange(args.count):
        scene = random_scene(rng)
        images[index] = painter.paint(scene, rng)
        captions.append(scene.caption)
    (args.out / "captions.json").write_text(json.dumps(captions))


if __name__ == "__main__":
    main()
