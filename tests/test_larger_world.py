"""The larger world: its captions, near misses and pictures."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from larger_work import emoji

from sgool.lab import world
from sgool.lab.larger.painter import ALL_WIDTHS, IMAGE, WIDTHS, Painter
from sgool.lab.larger.scenes import (
    EMOJI,
    GROUNDS,
    WORDS,
    Scenes,
    encoded,
    held_out_scenes,
    load_table,
    load_tokenizer,
    near_misses,
    parse,
    random_scene,
    write_table,
)
from sgool.lab.larger.source import look
from sgool.lab.world import COLORS, read_emoji, resized

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [random_scene(rng) for _ in range(1500)]


@pytest.fixture(scope="module")
def drawn(larger_work, scenes):
    """A painter, and what it drew for the first 64 scenes."""
    painter = Painter(larger_work / "sprites.npz")
    some = encoded(scenes[:64], load_tokenizer(larger_work))
    return painter, some, painter.draw(some, torch.Generator().manual_seed(5))


def test_a_caption_names_everything_from_left_to_right():
    caption = "a frog, a small car and a panda on a busy blue background"
    scene = parse(caption)
    assert [(each.word, each.small) for each in scene.subjects] == [("frog", False), ("car", True), ("panda", False)]
    assert (scene.color, scene.busy, scene.size, scene.caption) == ("blue", True, "mixed", caption)
    for other in (
        "a frog and a small car and a panda on a busy blue background",
        "a frog, a car on a blue background",
        "a frog, a car, a cat and a fox on a blue background",
        "a dog on a blue background",
        "a frog",
    ):
        assert parse(other) is None
    assert world.parse("a frog, a car and a panda on a blue background") is None, "two at most in the old world"


def test_every_caption_can_be_read(scenes, larger_work):
    assert all(parse(scene.caption) == scene for scene in scenes)
    ids = encoded(scenes, load_tokenizer(larger_work)).ids
    words = [scene.caption.replace(",", " ,").split() for scene in scenes]
    assert [(row != 0).sum().item() for row in ids] == [len(each) + 2 for each in words], "a token each"


def test_scenes_are_as_frequent_as_they_should_be(scenes):
    count = len(scenes)
    assert not any(scene.held_out for scene in scenes)
    for number, share in ((1, 0.2), (2, 0.4), (3, 0.4)):
        assert abs(sum(len(scene.subjects) == number for scene in scenes) / count - share) < 0.05
    subjects = [subject for scene in scenes for subject in scene.subjects]
    assert abs(np.mean([subject.small for subject in subjects]) - 0.45) < 0.04
    assert abs(np.mean([scene.busy for scene in scenes]) - 0.4) < 0.05
    assert set(Counter(subject.word for subject in subjects)) == set(WORDS) and len(WORDS) == 16
    assert all(len({subject.word for subject in scene.subjects}) == len(scene.subjects) for scene in scenes)


def test_held_out_scenes_are_of_every_size_and_number():
    scenes = held_out_scenes(80)
    assert all(scene.held_out for scene in scenes)
    assert set(Counter((scene.size, len(scene.subjects)) for scene in scenes).values()) == {10}
    assert len({scene.caption for scene in scenes if len(scene.subjects) > 1}) == 60


def test_a_near_miss_changes_one_thing():
    scene = parse("a frog, a small car and a panda on a busy blue background")
    found = near_misses(scene)
    assert {kind: len(some) for kind, some in found.items()} == {
        **{"word": 3 * 13, "size": 3, "order": 5, "number": 3, "color": 5, "busy": 1}
    }
    assert "a frog and a panda on a busy blue background" in [each.caption for each in found["number"]]
    every = [each for some in found.values() for each in some]
    assert len(set(every)) == len(every) and scene not in every
    for kind, some in found.items():
        for other in some:
            same = {
                "number": len(other.subjects) == len(scene.subjects),
                "color": other.color == scene.color,
                "busy": other.busy == scene.busy,
            }
            assert [name for name, kept in same.items() if not kept] == [kind] * (kind in same)
            words, smalls = ([getattr(each, name) for each in other.subjects] for name in ("word", "small"))
            differing = sum(a != b for a, b in zip(other.subjects, scene.subjects, strict=False))
            if kind == "word":
                assert differing == 1 and smalls == [False, True, False]
            elif kind == "size":
                assert differing == 1 and words == ["frog", "car", "panda"]
            elif kind == "order":
                assert differing > 1 and set(other.subjects) == set(scene.subjects)
    pair = near_misses(parse("a frog and a car on a red background"))
    assert len(pair["number"]) == 2 + 2 * 14, "one less, or one more"


def test_a_table_is_the_same_with_more_processes(larger_work, tmp_path):
    (tmp_path / "bpe.txt.gz").write_bytes((larger_work / "bpe.txt.gz").read_bytes())
    write_table(tmp_path, groups=300, seed=0, jobs=2)
    ours, theirs = load_table(larger_work, "cpu"), load_table(tmp_path, "cpu")
    assert len(ours.words) == 1200
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    write_table(tmp_path, groups=300, seed=1, jobs=1)
    assert not torch.equal(load_table(tmp_path, "cpu").words, ours.words)


def test_a_table_holds_groups_of_near_misses(larger_work):
    table = load_table(larger_work, "cpu")
    decode = load_tokenizer(larger_work).bpe.decode
    captions = [decode(row[row != 0][1:-1].tolist()).replace(" ,", ",").strip() for row in table.ids[:80]]
    scenes = [parse(caption) for caption in captions]
    for first in range(0, 80, 4):
        misses = [each for some in near_misses(scenes[first]).values() for each in some]
        assert all(scene in misses and not scene.held_out for scene in scenes[first + 1 : first + 4])
    again = encoded(scenes, load_tokenizer(larger_work))
    assert all(torch.equal(a, b[:80]) for a, b in zip(again, table, strict=True))


def test_subjects_have_their_widths_and_columns(drawn, scenes):
    painter, some, draws = drawn
    for row, scene in enumerate(scenes[:64]):
        number = len(scene.subjects)
        for place, subject in enumerate(scene.subjects):
            sprite = draws.sprite[row, place].item()
            assert WORDS[sprite // len(ALL_WIDTHS)] == subject.word
            height, width = painter.sizes[sprite].tolist()
            assert max(height, width) in WIDTHS[0 if subject.small else number]
            left, top = draws.left[row, place].item(), draws.top[row, place].item()
            assert left % 8 == top % 8 == 0 and 0 <= top <= IMAGE - height
            # Columns begin at a multiple of 8.
            assert IMAGE * place / number <= left and left + width <= -(-IMAGE * (place + 1) / number // 8) * 8
    used = {ALL_WIDTHS[sprite % len(ALL_WIDTHS)] for sprite in draws.sprite[some.words >= 0].tolist()}
    assert used == set(ALL_WIDTHS)
    assert set(draws.pattern.tolist()) == set(range(6))


def test_a_seed_gives_the_same_pictures(drawn):
    painter, some, draws = drawn
    again = painter.draw(some, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    other = painter.draw(some, torch.Generator().manual_seed(6))
    assert not torch.equal(draws.left, other.left)


def painted_slowly(scene, draws, row, assets):
    """A picture and what its pixels count, by the definition: one subject after the other, with numpy."""
    y, x = np.mgrid[0:IMAGE, 0:IMAGE]
    lit = {
        0: np.zeros_like(x, bool),
        **{1 + slope + 1: (x + slope * y) // 8 % 2 == 0 for slope in (-1, 0, 1)},
        4: (x // 16 + y // 16) % 2 == 0,
        5: (x % 16 - 8) ** 2 + (y % 16 - 8) ** 2 < 25,
    }[draws.pattern[row].item()]
    assert lit.any() == scene.busy
    plain, pattern = draws.ramp[row].item() * (2 * y / 255 - 1), draws.shade[row].item()
    image = draws.base[row].numpy() + np.where(lit, pattern, plain).astype(np.float32)[..., None]
    focus = np.zeros((IMAGE, IMAGE), np.float32)
    for place, subject in enumerate(scene.subjects):
        width = ALL_WIDTHS[draws.sprite[row, place].item() % len(ALL_WIDTHS)]
        sprite = resized(read_emoji(assets, EMOJI[subject.word]), width)
        top, left = draws.top[row, place].item(), draws.left[row, place].item()
        here = np.s_[top : top + sprite.shape[0], left : left + sprite.shape[1]]
        image[here] = sprite[..., :3] + image[here] * (1 - sprite[..., 3:])
        focus[here] = sprite[..., 3] * 64 / width + focus[here] * (1 - sprite[..., 3])
    return image.clip(0, 1), focus


def test_the_painter_paints_what_one_paints_by_hand(drawn, scenes, tmp_path):
    painter, _, draws = drawn
    assets = emoji(tmp_path)
    rows = [next(i for i in range(64) if draws.pattern[i] == pattern) for pattern in range(6)]
    rows += [next(i for i in range(64) if len(scenes[i].subjects) == number) for number in (1, 2, 3)]
    images, focus = painter.paint(draws)
    assert images.shape == (64, 3, 256, 256) and focus.shape == (64, 1, 256, 256)
    for row in rows:
        image, counts = painted_slowly(scenes[row], draws, row, assets)
        assert abs(images[row].permute(1, 2, 0).numpy() - image).max() < 2.1 / 255
        assert abs(focus[row, 0].numpy() - counts).max() < 0.02


def test_grounds_have_their_colors(drawn, scenes):
    _, some, draws = drawn
    assert [GROUNDS[color] for color in some.color] == [scene.color for scene in scenes[:64]]
    off = draws.base - torch.tensor([COLORS[scene.color] for scene in scenes[:64]]) / 255
    assert 0.015 < off.std() < 0.025 and off.mean().abs() < 0.01
    assert draws.ramp.abs().max() <= 0.04 and (draws.shade.abs() - 0.15).abs().max() < 1e-6


def test_a_look_is_a_crop():
    images = torch.nn.functional.interpolate(torch.rand(2, 3, 32, 32), size=(IMAGE, IMAGE), mode="bicubic")
    boxes = torch.tensor([[0.0, 0, 256], [32, 64, 64]])
    seen = look(images, boxes, 64)
    assert (seen[1] - images[1, :, 64:128, 32:96]).abs().mean() < 0.01
    whole = cv2.resize(images[0].permute(1, 2, 0).numpy(), (64, 64), interpolation=cv2.INTER_AREA)
    assert abs(seen[0].permute(1, 2, 0).numpy() - whole).max() < 1e-5
    flat = torch.zeros(1, 3, IMAGE, IMAGE)
    flat[:, :, 64:128, 32:96] = 1
    assert (look(flat, boxes[1:], 64) > 0.4).all() and look(flat, boxes[:1], 64)[0, 0].sum() == 256


def test_a_scene_can_be_taken_by_rows(larger_work):
    table = load_table(larger_work, "cpu")
    some = table.take(torch.tensor([3, 1]))
    assert isinstance(some, Scenes) and torch.equal(some.ids[1], table.ids[1])
