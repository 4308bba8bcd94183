"""Measures phrases: whether the peak of each map lies on the subject, and how well presence tells what is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sgool import tiny
from sgool.backends.diffusers import load_backend
from sgool.generate import Request, generate, load_critics
from sgool.guidance import load_critic
from sgool.guidance.clip import load_clip_folder
from sgool.guidance.critic import EmbeddingCritic
from sgool.guidance.evidence import evidence
from sgool.guidance.maps import MAPS, can_map, heat
from sgool.guidance.prompt import phrases
from sgool.lab.compare import PLAIN, rivals
from sgool.lab.world import Box, Painter, Scene, held_out_scenes
from sgool.needs import needs
from sgool.phrases import measure, presence
from sgool.presets import resolve
from sgool.weights import default_models_dir

ABSENT = 3
"""Phrases of other scenes that each scene is asked for."""


def bench_phrases(assets: Path, count: int = 200, *, progress: bool = True) -> dict[str, Any]:
    """All figures as plain JSON values; see ``render_tables``. assets: see `Painter`. count: of held-out scenes."""
    torch.set_num_threads(1)
    scenes = held_out_scenes(count)
    painter, rng = Painter(assets), np.random.default_rng(1)
    composed = [painter.compose(scene, rng) for scene in scenes]
    images = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image, _ in composed]
    boxes = [found for _, found in composed]
    critics = {role: load_critic("embedded", role, ".") for role in ("guide", "selector")}
    rows = tqdm(total=5 * count, desc="phrases", unit="scene", disable=not progress)
    figures: dict[str, Any] = {"scenes": count, "maps": [], "presence": []}
    for name in MAPS:
        role = next(role for role in critics if can_map(critics[role], name))
        found = [_hits(critics[role], *each, name, rows) for each in zip(images, scenes, boxes, strict=True)]
        hits = np.array([hit for row in found for hit in row])
        figures["maps"].append(
            {
                "map": name,
                "by": role,
                "subjects": len(hits),
                "on_subject": float(hits[:, 0].mean()),
                "on_subject_by_phrase": float(hits[:, 1].mean()),
            }
        )
    pictures = {"composed": (scenes, images), "generated": generated(scenes)}
    for kind, (shown, given) in pictures.items():
        for role, critic in critics.items():
            assert isinstance(critic, EmbeddingCritic)
            row = _told(critic, shown, given, rows)
            figures["presence"].append({"pictures": kind, "by": role, "scenes": len(shown), **row})
    return figures | seconds()


def _hits(
    critic: Any, image: Tensor, scene: Scene, boxes: Sequence[Box], name: str, rows: tqdm
) -> list[tuple[bool, bool]]:
    """For each subject, whether the peak of a map lies within its box: of the map for its name ("a small frog"), and
    of that for its phrase of the caption, which may also name the ground ("a car on a yellow background").
    """
    named, asked = [str(subject) for subject in scene.subjects], phrases(scene.caption)
    texts = list(dict.fromkeys([*named, *asked]))
    maps, _ = heat(critic, image, texts, name)
    rows.update()
    on = [
        [_within(maps[texts.index(text)], box) for text, box in zip(own, boxes, strict=True)] for own in (named, asked)
    ]
    return list(zip(*on, strict=True))


def _within(found: Tensor, box: Box) -> bool:
    """Whether the peak of a map lies within a box."""
    top, left, height, width = box
    row, column = divmod(int(found.argmax()), found.shape[1])
    return top <= row < top + height and left <= column < left + width


def asked(scene: Scene, scenes: Sequence[Scene], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """The phrases of a scene's caption, and some of other captions that name subjects it does not have."""
    words = {subject.word for subject in scene.subjects}
    absent: list[str] = []
    for number in rng.permutation(len(scenes)):
        other = scenes[number]
        named = zip(phrases(other.caption), other.subjects, strict=True)
        absent += [phrase for phrase, subject in named if subject.word not in words]
    return phrases(scene.caption), absent[:ABSENT]


def _told(critic: EmbeddingCritic, scenes: Sequence[Scene], images: Sequence[Tensor], rows: tqdm) -> dict[str, float]:
    """The area under the ROC curve of the presence, and what it says of phrases that are there and that are not."""
    rng = np.random.default_rng(0)
    there: list[float] = []
    absent: list[float] = []
    for scene, image in zip(scenes, images, strict=True):
        present, missing = asked(scene, held_out_scenes(200), rng)
        shares = presence(evidence(critic, image, [*present, *missing]).strength)
        there += shares[: len(present)]
        absent += shares[len(present) :]
        rows.update()
    return {
        "area_under_roc": area(there, absent),
        "there_mean": float(np.mean(there)),
        "absent_mean": float(np.mean(absent)),
        "there_found": float(np.mean(np.array(there) >= 0.5)),
        "absent_found": float(np.mean(np.array(absent) >= 0.5)),
    }


def area(there: Sequence[float], absent: Sequence[float]) -> float:
    """The area under the ROC curve: how often a phrase that is there scores above one that is not; ties are halves."""
    above = np.array(there)[:, None] - np.array(absent)[None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


@torch.no_grad()
def generated(scenes: Sequence[Scene]) -> tuple[list[Scene], list[Tensor]]:
    """Plain images of the embedded model for a fourth of the scenes, those that the judge takes for their caption."""
    settings = resolve(PLAIN["tiny"], model="tiny")
    backend, critics = load_backend("tiny"), load_critics(needs(settings), default_models_dir())
    judge = load_clip_folder(tiny.CLIPS["judge"])
    captions = [scene.caption for scene in held_out_scenes(200)]
    shown, images = [], []
    for number, scene in enumerate(scenes[::4]):
        with torch.enable_grad():
            image = generate(backend, critics, Request(scene.caption, seed=number), settings).best.image
        texts = judge.encode_texts([scene.caption, *rivals(scene.caption, captions)])
        if int((texts @ judge.encode_image(image)[0]).argmax()) == 0:
            shown.append(scene)
            images.append(image)
    return shown, images


def seconds() -> dict[str, float]:
    """How long a run of the embedded model takes with its defaults, and the measuring of its two phrases after it."""
    settings = resolve({}, model="tiny")
    backend, critics = load_backend("tiny"), load_critics(needs(settings), default_models_dir())
    prompt = "a small frog and a car on a yellow background"
    begun = time.perf_counter()
    result = generate(backend, critics, Request(prompt, seed=5), settings)
    between = time.perf_counter()
    measure([critics.selector, critics.guide], [result.first.image, result.best.image], prompt)
    return {"run_seconds": between - begun, "phrases_seconds": time.perf_counter() - between}


def render_tables(figures: Mapping[str, Any]) -> str:
    """The figures as markdown tables."""
    lines = [f"{figures['scenes']} composed scenes of held-out captions", ""]
    lines += ["| map | by | subjects | peak on the subject named | of a whole phrase |", "|---|---|---|---|---|"]
    lines += [
        f"| `{row['map']}` | {row['by']} | {row['subjects']} | {row['on_subject']:.3f} | "
        f"{row['on_subject_by_phrase']:.3f} |"
        for row in figures["maps"]
    ]
    lines += [
        "",
        "| pictures | by | scenes | area under ROC | presence there / absent | over 50 % there / absent |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['pictures']} | {row['by']} | {row['scenes']} | {row['area_under_roc']:.4f} | "
        f"{row['there_mean']:.2f} / {row['absent_mean']:.2f} | {row['there_found']:.3f} / {row['absent_found']:.3f} |"
        for row in figures["presence"]
    ]
    run, extra = figures["run_seconds"], figures["phrases_seconds"]
    lines += ["", f"A run took {run:.1f} s, and its phrases {extra:.2f} s ({extra / run:.1%})."]
    return "\n".join(lines)
