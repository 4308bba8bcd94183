"""The embedded model and its three CLIPs, as shipped, on scenes with held-out captions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from sgool import tiny
from sgool.guidance.clip import Clip, load_clip_folder
from sgool.images import read_image
from sgool.lab import world
from sgool.samplers import Trajectory, get_sampler, make_schedule
from sgool.tiny.words import KNOWN, unknown_words

SCENES = Path(__file__).parent / "data" / "scenes"


@pytest.fixture(scope="module")
def scenes() -> tuple[list[str], torch.Tensor]:
    """Sixteen composed scenes: captions, and pictures [16, 3, 128, 128] in [0, 1]."""
    with open(SCENES / "captions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["caption"] for row in rows], torch.cat([read_image(SCENES / row["file"]) for row in rows])


@pytest.fixture(scope="module", params=list(tiny.CLIPS))
def clip(request) -> Clip:
    return load_clip_folder(tiny.CLIPS[request.param])


def ranked_first(clip: Clip, images: torch.Tensor, captions: list[str]) -> float:
    texts = torch.stack([clip.encode_text(caption) for caption in captions])
    with torch.no_grad():
        best = (clip.encode_image(images) @ texts.T).argmax(1)
    return (best == torch.arange(len(captions))).float().mean().item()


def test_no_configuration_names_its_training_folder():
    configs = list(tiny.MODEL.rglob("*.json"))
    assert configs
    assert not [path for path in configs if "_name_or_path" in path.read_text(encoding="utf-8")]


def test_everything_shipped_stays_under_24_mib():
    files = [path for path in Path(tiny.__file__).parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 24 * 2**20


def test_every_clip_knows_the_scenes(clip, scenes):
    captions, images = scenes
    assert ranked_first(clip, images, captions) >= 0.8


def test_autoencoder_keeps_the_scenes(backend, scenes):
    captions, images = scenes
    with torch.no_grad():
        decoded = torch.cat([backend.decode(backend.encode(image[None])) for image in images]).clamp(0, 1)
    assert (decoded - images).abs().mean() < 0.06
    assert ranked_first(load_clip_folder(tiny.CLIPS["judge"]), decoded, captions) >= 0.6


def test_generated_images_show_what_was_asked_for(backend, scenes):
    """For at least six of eight prompts, the judge prefers an image's own prompt to the next prompt."""
    captions = scenes[0][:8]
    noise = torch.cat([backend.noise(seed) for seed in range(8)])
    network = backend.network(captions, "", 4.0)
    trajectory = Trajectory(get_sampler("ddim"), make_schedule(backend.alphas_cumprod, 10), network)
    with torch.no_grad():
        images = backend.decode(trajectory.image(trajectory.run([noise]))).clamp(0, 1)
    judge = load_clip_folder(tiny.CLIPS["judge"])
    texts = torch.stack([judge.encode_text(caption) for caption in captions])
    scores = judge.encode_image(images) @ texts.T
    assert (scores.diagonal() > scores.roll(-1, 1).diagonal()).sum() >= 6


def test_both_tokenizers_agree():
    """The UNet's text encoder (transformers) and the CLIPs (open_clip) give the same text the same token numbers."""
    text = "a small panda and a pizza on a busy blue background, xyz!"
    ours = CLIPTokenizer.from_pretrained(tiny.MODEL / "tokenizer")(text).input_ids
    theirs = load_clip_folder(tiny.CLIPS["guide"]).tokenizer([text])[0].tolist()
    assert theirs[: len(ours)] == ours and not any(theirs[len(ours) :])


def test_the_words_that_are_told_are_those_that_were_learned():
    assert {word for scene in world.all_scenes() for word in scene.caption.split()} == KNOWN
    tokenizer = CLIPTokenizer.from_pretrained(tiny.MODEL / "tokenizer")
    assert all(len(tokenizer(word).input_ids) == 3 for word in KNOWN)  # the word between start and end


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("A small Frog, and a car on a busy red background.", []),
        ("a cat reading a newspaper, a Cat", ["cat", "reading", "newspaper"]),
        ("\u4e00\u53ea\u718a\u732b a panda", ["\u4e00\u53ea\u718a\u732b"]),
        ("a \U0001f43c on a red background", ["\U0001f43c"]),
    ],
)
def test_unknown_words(text, unknown):
    assert unknown_words(text) == unknown
