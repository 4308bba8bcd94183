"""The large critics as metrics: their real code at a small size, with random weights in the published layout."""

from __future__ import annotations

import csv

import pytest

pytest.importorskip("pandas", reason="needs the extra evaluate")
pytest.importorskip("matplotlib", reason="needs the extra evaluate")
pytest.importorskip("diffusers", reason="needs diffusers")

import cv2
import torch
from test_critic_parity import clip_model, reward, small_clip, written_hps  # noqa: F401  (fixtures)

from sgool import pictures
from sgool.guidance import hps, pickscore
from sgool.lab.evaluate.plan import Plan
from sgool.lab.evaluate.prompts import Prompt
from sgool.lab.evaluate.run import Where, evaluate

NAMES = ("hps-v2.1", "pickscore", "image-reward")


def test_images_are_scored_by_the_large_critics(tmp_path, monkeypatch, reward):  # noqa: F811
    """The columns are what the critics say of the files; a folder that is gone on with gets the new metric alone."""
    written_hps(tmp_path, monkeypatch, clip_model())
    torch.save(clip_model().state_dict(), tmp_path / "PickScore_v1.bin")
    own = {"hps-v2.1": hps.load("", "selector", tmp_path, torch.device("cpu"))}
    own["pickscore"] = pickscore.load("", "selector", tmp_path, torch.device("cpu"))
    own["image-reward"] = reward
    prompts = (Prompt("small", "", "a photo of a red car"), Prompt("small", "", "two frogs"))
    given = {"steps": 2, "iterations": 1, "cutouts": 1}
    for names in (NAMES[:2], NAMES):
        plan = Plan(prompts, methods=("sd", "sgool"), metrics=names, given=given)
        about = evaluate(plan, tmp_path / "out", Where(tmp_path, "cpu"))
    assert [each["name"] for each in about["metrics"]] == list(NAMES)
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        picture = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / row["image"])), cv2.COLOR_BGR2RGB)
        for name, critic in own.items():
            expected = float(critic.score(pictures.to_tensor(picture), row["prompt"]))
            assert float(row[name]) == pytest.approx(expected, abs=1e-4)
    assert all(not each["marks"] for found in about["sets"]["small"].values() for each in found.values())
