"""What it is for: pictures that fit their prompts better, by the judgement of a CLIP that no run sees."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from hosts import AUTOMATIC1111, only_in
from payloads import BASE, make, outcome
from test_follow import FEW_STEP_MODEL, lcm_model  # noqa: F401  a fixture

from sgool import lab, tiny
from sgool.guidance.clip import load_clip_folder
from sgool.lab.compare import read_captions
from sgool.presets import MODELS
from sgool.webui.arguments import WEBUI

pytestmark = only_in(AUTOMATIC1111, "the embedded model, which draws something, loads there alone")

PROMPTS = 20
OURS = {name: value for name, value in MODELS["tiny"].items() if name in WEBUI}
FEW_STEPS = {**FEW_STEP_MODEL, "sampler_name": "LCM", "steps": 4, "cfg_scale": 1.0}


@pytest.mark.parametrize(
    ("payload", "ours"),
    [({"steps": OURS["steps"]}, OURS), (FEW_STEPS, {**OURS, "sampler": "auto"})],
    ids=["ten steps", "LCM, four steps"],
)
def test_the_judges_mean_rises(server, lcm_model, payload, ours):  # noqa: F811
    judge = load_clip_folder(tiny.CLIPS["judge"])

    def score(pictures, caption):
        pixels = torch.from_numpy(np.asarray(pictures.image(), np.float32) / 255)
        return judge.judge(pixels.permute(2, 0, 1)[None], caption)

    gains, told = [], []
    for seed, row in enumerate(read_captions(lab.CAPTIONS)[:PROMPTS]):
        own = {**BASE, "prompt": row["caption"], "seed": seed, **payload}
        plain, better = make(server, own), make(server, own, {**ours, "iterations": 5})
        before, after = score(plain, row["caption"]), score(better, row["caption"])
        gains.append(after - before)
        told.append(f"{before:.3f} -> {after:.3f}")
        assert not outcome(better).note
    mean = statistics.mean(gains)
    print(f"\nThe judge: {', '.join(told)}; mean gain {mean:+.3f}, {sum(gain > 0 for gain in gains)} of {PROMPTS} rose")
    assert mean > 0
