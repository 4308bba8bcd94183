"""From images to tables: means, paired gains with intervals, and win rates. Whole prompts are resampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sgool.lab.compare import paired
from sgool.lab.evaluate.metrics import Metric
from sgool.lab.evaluate.plan import Plan, Trial
from sgool.lab.evaluate.store import Store

INDEX = ["set", "category", "prompt", "seed", "method", "image"]


def results(trials: Sequence[Trial], metrics: Sequence[Metric], store: Store) -> pd.DataFrame:
    """A row for each trial: `INDEX`, each metric, seconds, evaluations, failure.

    image: relative to the folder. An image that failed has neither image nor scores, and a failure says of which kind;
    a score that is no number is such a failure, too.
    """
    rows = []
    for trial in trials:
        record = store.record(trial.key) or {"failure": "not made"}
        scores = {metric.name: record.get("scores", {}).get(metric.key) for metric in metrics}
        made = "failure" not in record
        lacking = [name for name, score in scores.items() if score is None] if made else []
        rows.append(
            {
                "set": trial.prompt.set,
                "category": trial.prompt.category,
                "prompt": trial.prompt.text,
                "seed": trial.seed,
                "method": trial.method,
                "image": store.path(trial.key) if made else "",
                **scores,
                "seconds": record.get("seconds"),
                "evaluations": record.get("evaluations"),
                "failure": f"no score ({', '.join(lacking)})" if lacking else record.get("failure", ""),
            }
        )
    frame = pd.DataFrame(rows, columns=[*INDEX, *(each.name for each in metrics), "seconds", "evaluations", "failure"])
    numbers = [each.name for each in metrics] + ["seconds", "evaluations"]
    frame[numbers] = frame[numbers].astype(float)
    return frame


def tables(frame: pd.DataFrame, plan: Plan, metrics: Sequence[Metric]) -> dict[str, Any]:
    """What is told of the results, for JSON: "sets" and "categories" of `compared`, "cost", and "failures"."""
    sets = {name: compared(rows, plan, metrics) for name, rows in frame.groupby("set", sort=False)}
    categories = {
        name: {category: compared(own, plan, metrics) for category, own in rows.groupby("category", sort=False)}
        for name, rows in frame.groupby("set", sort=False)
        if rows["category"].nunique() > 1
    }
    failed = frame[frame["failure"] != ""]
    return {
        "sets": sets,
        "categories": categories,
        "cost": _cost(frame, plan),
        "failures": {
            method: {str(kind): int(count) for kind, count in rows["failure"].value_counts().items()}
            for method, rows in failed.groupby("method", sort=False)
        },
    }


def compared(frame: pd.DataFrame, plan: Plan, metrics: Sequence[Metric]) -> dict[str, Any]:
    """For each metric and method: "images", "mean", "ci95", "marks", and "gain_over" each other method (see `gain`).

    mean: None where no image of a method has a score.
    """
    found: dict[str, Any] = {}
    for metric in metrics:
        by_method = {
            method: frame[frame["method"] == method].set_index(["prompt", "seed"])[metric.name].dropna()
            for method in plan.methods
        }
        found[metric.name] = {
            method: {
                "images": len(scores),
                **_mean(scores),
                "marks": metric.marks(method, plan.settings(method, 2)),
                "gain_over": {
                    other: gain(scores, by_method[other])
                    for other in plan.methods
                    if other != method and len(scores.index.intersection(by_method[other].index))
                },
            }
            for method, scores in by_method.items()
        }
    return found


def gain(ours: pd.Series, theirs: pd.Series) -> dict[str, Any]:
    """How much better one method is than another, over the (prompt, seed) of which both have an image.

    "mean" and "ci95" of the difference (None for a single prompt), "wins": the share of pairs in which it is better,
    equal ones counting half, and "pairs".
    """
    both = pd.concat([ours, theirs], axis=1, join="inner")
    difference = (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy()
    prompts = both.index.get_level_values("prompt").to_numpy()
    wins = float(np.mean(np.sign(difference) / 2 + 0.5))
    return {**_interval(difference, prompts), "wins": wins, "pairs": len(difference)}


def _mean(scores: pd.Series) -> dict[str, Any]:
    if scores.empty:
        return {"mean": None, "ci95": None}
    return _interval(scores.to_numpy(), scores.index.get_level_values("prompt").to_numpy())


def _interval(values: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """The mean and its interval, which a single prompt has not."""
    found = paired(values, prompts)
    return found if len(np.unique(prompts)) > 1 else {**found, "ci95": None}


def _cost(frame: pd.DataFrame, plan: Plan) -> dict[str, Any]:
    """What an image of each method costs: "seconds", "evaluations", and how many images of sd take its seconds."""
    means = frame.groupby("method", sort=False)[["seconds", "evaluations"]].mean()
    plain = means["seconds"].get("sd")
    return {
        method: {
            "seconds": _number(means["seconds"][method]),
            "evaluations": _number(means["evaluations"][method]),
            "plain_images": _number(means["seconds"][method] / plain) if plain else None,
        }
        for method in plan.methods
        if method in means.index
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
