"""What was trained, as it would be shipped: assembled, and how often the critics are right on captions kept out.

A critic is right about a picture if the picture's caption scores higher than all of its near misses, and about a crop
if its subject does, of all sixteen. That is told for painted pictures, the same after the autoencoder, and generated
ones, by size and number of the subjects and by what the near miss changes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sgool.backends.diffusers import DiffusersBackend, load_backend
from sgool.errors import SgoolError
from sgool.guidance.clip import Clip, load_clip_folder
from sgool.lab.larger import networks
from sgool.lab.larger.painter import Draws, Painter
from sgool.lab.larger.scenes import (
    WORDS,
    Scene,
    Subject,
    all_words,
    encoded,
    held_out_scenes,
    load_tokenizer,
    near_misses,
)
from sgool.lab.larger.source import Source, look
from sgool.lab.larger.trainer import load_average
from sgool.lab.training import clip, vocabulary
from sgool.lab.training.assemble import assemble as write_pipeline
from sgool.lab.training.evaluate import sample
from sgool.lab.training.few_step import difference
from sgool.tiny import few_step

FEW_STEP = "few-step.safetensors"

FIRST = ("all", "small", "mixed", "large", "of 1", "of 2", "of 3")
"""The columns of size and number come before those of near misses and crops."""


def assemble(work: Path) -> Path:
    """Write what is trained into ``work/world``, laid out as `sgool.tiny` is, in float16; returns that folder."""
    folder = work / "world"
    shutil.rmtree(folder, ignore_errors=True)
    vocabulary.write(all_words(), folder / "model" / "tokenizer", folder / "clips" / "bpe.txt.gz")
    size = len(load_tokenizer(work).bpe.encoder)
    for name in networks.CRITICS:
        found = nn.ModuleDict({"clip": networks.critic(name, size)})
        if (work / name).is_dir():
            load_average(found, work / name)
            clip.write(folder / "clips" / name, found["clip"], networks.critic_config(name, size))
    if not (work / "unet").is_dir():
        return folder
    parts = nn.ModuleDict({"unet": networks.unet(), "text": networks.text_encoder(size)})
    load_average(parts, work / "unet")
    base = {name: weight.half() for name, weight in parts["unet"].state_dict().items()}
    if (work / "few-step").is_dir():
        tuned = nn.ModuleDict({"unet": networks.unet()})
        load_average(tuned, work / "few-step")
        save_file(difference(base, tuned["unet"].state_dict(), networks.RANK), folder / FEW_STEP)
    source = Source(work)
    named = {"vae": source.vae(), "unet": parts["unet"], "text_encoder": parts["text"]}
    write_pipeline(named, json.loads((work / "scale.json").read_text()), folder / "model")
    return folder


@torch.no_grad()
def embedded(critic: Clip, texts: list[str]) -> Tensor:
    """Unit vectors of many texts."""
    model: Any = critic.model
    found = [model.encode_text(critic.tokenizer(texts[i : i + 512])) for i in range(0, len(texts), 512)]
    return nn.functional.normalize(torch.cat(found), dim=-1)


Texts = dict[str, Tensor]
"""Unit vectors of a scene's caption ("own") and of its near misses, by kind."""


def texts_of(critic: Clip, scene: Scene) -> Texts:
    groups = {"own": [scene], **{kind: some for kind, some in near_misses(scene).items() if some}}
    found = embedded(critic, [each.caption for some in groups.values() for each in some])
    return dict(zip(groups, found.split([len(some) for some in groups.values()]), strict=True))


@torch.no_grad()
def accuracy(critic: Clip, images: Tensor, scenes: list[Scene], texts: list[Texts]) -> dict[str, float]:
    """The share of right pictures, [N, 3, H, W] on the CPU: of all, by size, by number, and against each near miss."""
    seen = torch.cat([critic.encode_image(some.to(critic.device)).cpu() for some in images.split(64)]).float()
    right: dict[str, list[bool]] = {}
    for image, scene, known in zip(seen, scenes, texts, strict=True):
        best = {kind: (some @ image).max() for kind, some in known.items()}
        beaten = {kind: bool(best["own"] > score) for kind, score in best.items() if kind != "own"}
        sorts = ("all", scene.size, f"of {len(scene.subjects)}")
        for name, value in [*((each, all(beaten.values())) for each in sorts), *beaten.items()]:
            right.setdefault(name, []).append(value)
    return {name: round(sum(each) / len(each), 3) for name, each in right.items()}


@torch.no_grad()
def crop_accuracy(critic: Clip, images: Tensor, scenes: list[Scene], boxes: list[Tensor]) -> dict[str, float]:
    """The share of right crops, 1.5 times as large as their subjects. boxes: left, top, height, width [N, 3] each."""
    left, top, height, width = boxes
    side = (1.5 * torch.maximum(height, width)).clamp(min=1, max=images.shape[-1])
    left, top = (
        torch.minimum((at + length / 2 - side / 2).clamp(min=0), images.shape[-1] - side)
        for at, length in ((left, width), (top, height))
    )
    subjects = [Subject(word, small) for word in WORDS for small in (False, True)]
    texts = embedded(critic, [str(subject) for subject in subjects])
    right: dict[str, list[bool]] = {"a crop of a small subject": [], "a crop of another": []}
    for place in range(max(len(scene.subjects) for scene in scenes)):
        rows = [row for row, scene in enumerate(scenes) if place < len(scene.subjects)]
        shown = look(images[rows], torch.stack([left, top, side], 2)[rows, place], critic.image_size[0])
        best = (critic.encode_image(shown.to(critic.device)).cpu().float() @ texts.T).argmax(1)
        for row, number in zip(rows, best.tolist(), strict=True):
            subject = scenes[row].subjects[place]
            right[list(right)[not subject.small]].append(subjects[number].word == subject.word)
    return {name: round(sum(each) / max(1, len(each)), 3) for name, each in right.items()}


def figures(work: Path, count: int, device: str) -> dict[str, Any]:
    """What `sgool.lab.larger evaluate` prints, of what `assemble` wrote."""
    folder = work / "world"
    names = [name for name in networks.CRITICS if (folder / "clips" / name).is_dir()]
    if not names:
        raise SgoolError(f"No critic is trained in {work}.")
    scenes = held_out_scenes(count)
    painter, rows = Painter(work / "sprites.npz"), encoded(scenes, load_tokenizer(work))
    draws: Draws = painter.draw(rows, torch.Generator().manual_seed(1))
    painted = torch.cat(
        [painter.paint(Draws(*some))[0] for some in zip(*(each.split(50) for each in draws), strict=True)]
    )
    sources, found = {"painted": painted}, dict[str, Any]()
    if (folder / "model" / "model_index.json").is_file():
        backend = load_backend(str(folder / "model"), device=device)
        with torch.no_grad():
            decoded = [backend.decode(backend.encode(some)).float().clamp(0, 1).cpu() for some in painted.split(1)]
        sources["through the autoencoder"] = torch.cat(decoded)
        found["autoencoder_l1"] = round((sources["through the autoencoder"] - painted).abs().mean().item(), 4)
        sources |= generated(backend, [scene.caption for scene in scenes], folder)
    boxes = [draws.left, draws.top, *painter.sizes[draws.sprite].unbind(-1)]
    for name in names:
        critic = load_clip_folder(folder / "clips" / name, device=device)
        texts = [texts_of(critic, scene) for scene in scenes]
        found[name] = {each: accuracy(critic, images, scenes, texts) for each, images in sources.items()}
        for each in list(sources)[: 2 if name != "judge" else 0]:
            found[name][each] |= crop_accuracy(critic, sources[each], scenes, boxes)
    return found


def generated(backend: DiffusersBackend, captions: list[str], folder: Path) -> dict[str, Tensor]:
    """Plain images by the model, and where there is one by its few-step sibling."""
    images = {"generated": sample(backend, captions).float().cpu()}
    if (folder / FEW_STEP).is_file():
        few_step.add(backend.unet, folder / FEW_STEP)
        images["in four steps"] = sample(backend, captions, "euler", 4, 1.0).float().cpu()
    return images


def table(found: dict[str, Any]) -> Iterable[str]:
    """The figures as lines of Markdown."""
    rows = [(name, images, some) for name in found if name in networks.CRITICS for images, some in found[name].items()]
    heads = sorted(
        {head for _, _, some in rows for head in some},
        key=lambda head: (FIRST.index(head) if head in FIRST else 9, head),
    )
    yield "| " + " | ".join(["critic", "pictures", *heads]) + " |"
    yield "|---" * (len(heads) + 2) + "|"
    for name, images, some in rows:
        yield "| " + " | ".join([name, images, *(str(some.get(head, "")) for head in heads)]) + " |"
    if "autoencoder_l1" in found:
        yield f"The autoencoder's L1: {found['autoencoder_l1']}"
