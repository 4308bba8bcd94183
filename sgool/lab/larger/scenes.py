"""The larger world: what can be in a picture, its captions, and the table of scenes that training draws from.

Sixteen subjects (Microsoft's Fluent 3D emoji, as in `sgool.lab.world`), one to three in a picture, on the same grounds.
"""

from __future__ import annotations

import functools
import multiprocessing
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from sgool.guidance.clip_loading import BpeTokenizer
from sgool.lab import world
from sgool.lab.training.views import GROUP, group
from sgool.lab.world import COLORS, Scene, Subject

EMOJI = {
    **{"panda": "1f43c", "frog": "1f438", "penguin": "1f427", "whale": "1f433", "cat": "1f431", "fox": "1f98a"},
    **{"bear": "1f43b", "pizza": "1f355", "strawberry": "1f353", "mushroom": "1f344", "donut": "1f369"},
    **{"sunflower": "1f33b", "cactus": "1f335", "car": "1f697", "rocket": "1f680", "guitar": "1f3b8"},
}
"""Word in the caption -> code point of the emoji."""

WORDS = tuple(EMOJI)
GROUNDS = tuple(COLORS)

MOST = 3
"""Subjects in a picture."""

NUMBERS = (0.2, 0.4, 0.4)
"""Shares of the scenes with one, two and three subjects."""

SMALL, BUSY = 0.45, 0.4
"""Shares of small subjects and of busy grounds."""

CONTEXT = 32
"""Tokens of a caption, with those of start and end."""

CHUNK = 250
"""Groups that a process makes at a time, with a seed of their own."""

parse = functools.partial(world.parse, words=WORDS, most=MOST)
near_misses = functools.partial(world.near_misses, words=WORDS, most=MOST)


def random_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A random scene with a training caption (or a held-out one)."""
    while True:
        words = rng.permutation(len(WORDS))[: rng.choice(MOST, p=NUMBERS) + 1]
        subjects = tuple(Subject(WORDS[word], bool(rng.random() < SMALL)) for word in words)
        scene = Scene(subjects, GROUNDS[rng.integers(len(GROUNDS))], bool(rng.random() < BUSY))
        if scene.held_out == held_out:
            return scene


def held_out_scenes(count: int, seed: int = 1) -> list[Scene]:
    """`count` scenes with different held-out captions, in turn of each size and number that there is."""
    rng = np.random.default_rng(seed)
    strata = [(size, number) for number in (1, 2, 3) for size in ("small", "mixed", "large")]
    strata.remove(("mixed", 1))
    found: dict[tuple[str, int], list[Scene]] = {each: [] for each in strata}
    wanted = -(-count // len(strata))
    while min(map(len, found.values())) < wanted:
        scene = random_scene(rng, held_out=True)
        some = found[scene.size, len(scene.subjects)]
        # There are only so many captions of one subject, and `wanted` may ask for more.
        if len(some) < wanted and (scene not in some or len(scene.subjects) == 1):
            some.append(scene)
    return [found[strata[i % len(strata)]][i // len(strata)] for i in range(count)]


def all_words() -> set[str]:
    """The words of the captions, and their comma, as CLIP's byte pair encoding parts them."""
    scene = Scene(tuple(Subject(word, True) for word in WORDS), GROUNDS[0], True)
    return {*re.findall(r"\w+|,", scene.caption), *GROUNDS}


class Scenes(NamedTuple):
    """Scenes as tensors, a row each."""

    words: Tensor
    """Int64 [N, MOST]: of the subjects from left to right, as places in WORDS; -1 beyond the last."""
    small: Tensor
    """Bool [N, MOST]."""
    color: Tensor
    """Int64 [N]: places in GROUNDS."""
    busy: Tensor
    """Bool [N]."""
    ids: Tensor
    """Int64 [N, CONTEXT]: the caption's tokens, 0 beyond the last."""

    def take(self, rows: Tensor) -> Scenes:
        return Scenes(*(each[rows] for each in self))

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(*(each.to(device) for each in self))


def encoded(scenes: list[Scene], tokenizer: BpeTokenizer) -> Scenes:
    words = torch.full((len(scenes), MOST), -1)
    small = torch.zeros(len(scenes), MOST, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        for place, subject in enumerate(scene.subjects):
            words[row, place], small[row, place] = WORDS.index(subject.word), subject.small
    color = torch.tensor([GROUNDS.index(scene.color) for scene in scenes])
    busy = torch.tensor([scene.busy for scene in scenes])
    return Scenes(words, small, color, busy, tokenizer([scene.caption for scene in scenes]))


def load_tokenizer(work: Path) -> BpeTokenizer:
    return BpeTokenizer(SimpleTokenizer(bpe_path=str(work / "bpe.txt.gz")), CONTEXT)


def _chunk(work: Path, seed: int, number: int) -> list[np.ndarray]:
    rng = np.random.default_rng((seed, number))
    scenes = [scene for _ in range(CHUNK) for scene in group(rng, random_scene, near_misses)]
    return [each.numpy().astype(np.int16) for each in encoded(scenes, load_tokenizer(work))]


def write_table(work: Path, groups: int, seed: int, jobs: int) -> None:
    """Write ``scenes.npz``: groups of GROUP scenes with training captions, the others near misses of the first.

    The same for a seed, with however many processes.
    """
    chunk = functools.partial(_chunk, work, seed)
    numbers = range(-(-groups // CHUNK))
    if jobs == 1:
        parts = list(map(chunk, numbers))
    else:
        with multiprocessing.Pool(jobs) as pool:
            parts = pool.map(chunk, numbers, chunksize=1)
    columns: dict[str, Any] = {
        name: np.concatenate(each)[: GROUP * groups]
        for name, each in zip(Scenes._fields, zip(*parts, strict=True), strict=True)
    }
    np.savez_compressed(work / "scenes.npz", **columns)


def load_table(work: Path, device: torch.device | str) -> Scenes:
    with np.load(work / "scenes.npz") as stored:
        columns = {name: torch.from_numpy(stored[name].astype(np.int64)) for name in Scenes._fields}
    columns |= {name: columns[name].bool() for name in ("small", "busy")}
    return Scenes(**columns).to(device)
