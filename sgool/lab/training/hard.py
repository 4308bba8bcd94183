"""Step 7: find the captions that are hard for the embedded model. ``python -m sgool.lab.training.hard``

Writes ``hard.csv`` into the folder of `sgool.lab`: the 60 held-out captions for which plain DDIM gives the fewest right
images from eight noises each, according to the judge. No optimizer takes part in the choice, and ``compare`` uses other
noises.
"""

from __future__ import annotations

import csv

import torch
from tqdm import tqdm

from sgool.backends.diffusers import load_backend
from sgool.guidance.clip import load_clip_folder
from sgool.lab import HARD
from sgool.lab.compare import PLAIN, rivals
from sgool.lab.world import all_scenes
from sgool.presets import MODELS
from sgool.samplers import Trajectory, get_sampler, make_schedule
from sgool.tiny import CLIPS

COUNT, NOISES, FIRST_SEED = 60, 8, 10_000


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)  # the judge's scores depend on the order of the sums
    backend, judge = load_backend("tiny"), load_clip_folder(CLIPS["judge"])
    schedule = make_schedule(backend.alphas_cumprod, PLAIN["tiny"]["steps"])
    scenes = [scene for scene in all_scenes() if scene.held_out]
    captions = [scene.caption for scene in scenes]
    rows = []
    for i, scene in enumerate(tqdm(scenes, desc="plain images")):
        network = backend.network([scene.caption] * NOISES, "", MODELS["tiny"]["guidance_scale"])
        trajectory = Trajectory(get_sampler(PLAIN["tiny"]["sampler"]), schedule, network)
        noise = torch.cat([backend.noise(FIRST_SEED + NOISES * i + k) for k in range(NOISES)])
        images = backend.decode(trajectory.image(trajectory.run([noise])).float()).clamp(0, 1)
        texts = [judge.encode_text(text) for text in (scene.caption, *rivals(scene.caption, captions))]
        scores = judge.encode_image(images) @ torch.stack(texts).T
        right = int((scores.argmax(1) == 0).sum())
        background = "busy" if scene.busy else "plain"
        rows.append((right, scores[:, 0].mean().item(), scene.caption, scene.size, background))
    rows.sort()
    with open(HARD, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("caption", "size", "background", "right_of_8", "score"))
        table.writerows([(caption, size, where, n, f"{score:.3f}") for n, score, caption, size, where in rows[:COUNT]])
    print(
        f"{sum(row[0] for row in rows) / NOISES / len(rows):.2f} of all plain images are right, "
        f"{sum(row[0] for row in rows[:COUNT]) / NOISES / COUNT:.2f} of those for the {COUNT} hardest captions"
    )


if __name__ == "__main__":
    main()
