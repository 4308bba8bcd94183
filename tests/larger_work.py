"""A folder prepared for training the larger world, from emoji drawn here."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sgool.lab.larger.painter import write_sprites
from sgool.lab.larger.scenes import EMOJI, all_words, write_table
from sgool.lab.training import vocabulary


def emoji(folder: Path) -> Path:
    """Sixteen pictures: shapes of different colors and proportions, with soft edges, on nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, code in enumerate(EMOJI.values()):
        picture = np.zeros((256, 256, 4), np.uint8)
        color = [60 + 11 * number, 250 - 12 * number, 80 * (number % 3)]
        axes = (60 + 4 * number, 110 - 3 * number)
        cv2.ellipse(picture, (128, 120), axes, 9 * number, 0, 360, (*color, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, (128, 120), 20 + number, (*color[::-1], 200), -1)
        assert cv2.imwrite(str(folder / f"{code}.webp"), picture, [cv2.IMWRITE_WEBP_QUALITY, 101])
    return folder


def prepared(folder: Path) -> Path:
    """What `python -m sgool.lab.larger prepare` writes, with few scenes."""
    write_sprites(emoji(folder / "assets"), folder / "sprites.npz")
    vocabulary.write(all_words(), folder / "tokenizer", folder / "bpe.txt.gz")
    write_table(folder, groups=300, seed=0, jobs=1)
    return folder
