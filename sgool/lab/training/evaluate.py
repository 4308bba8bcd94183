"""Step 6: evaluate the embedded model. ``python -m sgool.lab.training.evaluate --work WORK --assets DIR``

Writes ``samples.jpg`` (32 held-out captions, seeds not chosen), ``curves.png`` (of the training) and ``figures.json``
into the folder of the embedded model. The figures say how often each CLIP picks the right one of the 200 held-out
captions: for newly composed scenes, for the same scenes after the autoencoder, and for generated images.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sgool.backends.diffusers import DiffusersBackend, load_backend
from sgool.guidance.clip import load_clip_folder
from sgool.lab.world import Painter, held_out_scenes
from sgool.samplers import Trajectory, get_sampler, make_schedule
from sgool.tiny import CLIPS, MODEL

STEPS, GUIDANCE, BATCH = 20, 4.0, 20


@torch.no_grad()
def sample(
    backend: DiffusersBackend,
    captions: list[str],
    sampler: str = "ddim",
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Images by a plain sampler, the i-th from seed i."""
    images = []
    schedule = make_schedule(backend.alphas_cumprod, steps)
    for first in tqdm(range(0, len(captions), BATCH), desc="sampling"):
        some = captions[first : first + BATCH]
        noise = torch.cat([backend.noise(first + i) for i in range(len(some))])
        trajectory = Trajectory(get_sampler(sampler), schedule, backend.network(some, "", guidance))
        images.append(backend.decode(trajectory.image(trajectory.run([noise]))).clamp(0, 1))
    return torch.cat(images)


@torch.no_grad()
def accuracies(images: Tensor, captions: list[str]) -> dict[str, float]:
    """For each CLIP, the share of images for which the CLIP ranks the image's own caption first."""
    found = {}
    for name, folder in CLIPS.items():
        clip = load_clip_folder(folder)
        texts = torch.stack([clip.encode_text(caption) for caption in captions])
        scores = torch.cat([clip.encode_image(some) @ texts.T for some in images.split(50)])
        found[name] = (scores.argmax(1) == torch.arange(len(captions))).float().mean().item()
    return found


def draw_sheet(images: Tensor, captions: list[str], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 8, figsize=(16, 9.6))
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.set_title("\n".join(textwrap.wrap(caption, 26)), fontsize=8)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=75)


def draw_curves(work: Path, path: Path) -> None:
    """Draw the training curves of the logs in `work`."""
    import matplotlib.pyplot as plt

    plots = [("autoencoder", "l1"), ("decoder", "l1"), ("diffusion", "loss"), ("diffusion-resumed", "loss")]
    plots += [(f"clip-{name}", "loss") for name in CLIPS]
    logs = {name: (key, work / f"{name}-log.json") for name, key in plots if (work / f"{name}-log.json").exists()}
    figure, axes = plt.subplots(1, len(logs), figsize=(4 * len(logs), 3), squeeze=False)
    for axis, (name, (key, log)) in zip(axes[0], logs.items(), strict=True):
        rows = json.loads(log.read_text())
        axis.plot([row["step"] for row in rows], [row[key] for row in rows], linewidth=1)
        axis.set(title=f"{name}: {key}", yscale="log", xlabel="step")
    figure.tight_layout()
    figure.savefig(path, dpi=75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    scenes = held_out_scenes(args.count)
    captions = [scene.caption for scene in scenes]
    painter, rng = Painter(args.assets), np.random.default_rng(1)
    painted = torch.from_numpy(np.stack([painter.paint(scene, rng) for scene in scenes])).permute(0, 3, 1, 2) / 255
    backend = load_backend("tiny")
    with torch.no_grad():
        decoded = torch.cat([backend.decode(backend.encode(some)).clamp(0, 1) for some in painted.split(1)])
    made = sample(backend, captions)
    figures = {
        "captions": len(captions),
        "composed": accuracies(painted, captions),
        "through the autoencoder": accuracies(decoded, captions),
        "generated": accuracies(made, captions),
        "autoencoder_l1": (decoded - painted).abs().mean().item(),
    }
    print(json.dumps(figures, indent=1))
    folder = MODEL.parent
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw_sheet(made, captions, folder / "samples.jpg")
    draw_curves(args.work, folder / "curves.png")


if __name__ == "__main__":
    main()
