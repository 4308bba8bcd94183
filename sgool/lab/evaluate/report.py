"""What an evaluation writes: results.csv, evaluation.json, report.html, and the charts under images/."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from sgool.lab.evaluate import cells, charts
from sgool.lab.evaluate.charts import Chart
from sgool.lab.evaluate.methods import METHODS
from sgool.lab.evaluate.metrics import Metric
from sgool.lab.evaluate.plan import Plan, Trial, seen
from sgool.lab.evaluate.statistics import results, tables
from sgool.lab.evaluate.store import IMAGES, REPORT, RESULTS, Store

TEMPLATE = Path(__file__).parent / "report.html.j2"

CHARTS = "chart-"
"""How the names of their files begin."""

SHOWN = 12
"""Prompts of each set whose images are in the report."""

THUMBNAIL = 192
"""Pixels."""


def write(plan: Plan, trials: Sequence[Trial], metrics: Sequence[Metric], store: Store) -> dict[str, Any]:
    """Write all of it; returns what evaluation.json holds."""
    frame = results(trials, metrics, store)
    about = {**described(plan, trials, metrics), **tables(frame, plan, metrics)}
    if "timed" in store.about:
        about["timed"] = store.about["timed"]
    store.write(RESULTS, frame.to_csv(index=False).encode())
    store.describe(about)
    drawn = {
        "effects": _effects(store.about),
        "distributions": _distributions(frame, store.about),
        "curves": _curves(frame, trials, store),
    }
    for old in store.images.glob(f"{CHARTS}*.png"):
        old.unlink()
    every = [chart for group in drawn.values() for chart in group] + _contact(frame, store.about, store.folder)
    for number, chart in enumerate(every):
        store.write(f"{IMAGES}/{CHARTS}{number + 1:02d}-{chart.name}.png", chart.png())
    page = rendered(store.about, frame, metrics, plan, _shown(drawn), store.folder)
    store.write(REPORT, page.encode())
    return store.about


def described(plan: Plan, trials: Sequence[Trial], metrics: Sequence[Metric]) -> dict[str, Any]:
    """The settings of an evaluation, for JSON."""
    settings = {trial.method: trial.settings for trial in trials}
    sets: dict[str, int] = {}
    for prompt in plan.prompts:
        sets[prompt.set] = sets.get(prompt.set, 0) + 1
    return {
        "model": plan.model,
        "size": plan.size,
        "dtype": plan.dtype,
        "seeds": plan.seeds,
        "first_seed": plan.first_seed,
        "prompts": sets,
        "methods": {name: {"does": METHODS[name], **seen(each)} for name, each in settings.items()},
        "metrics": [
            {"name": each.name, "critic": each.critic, "network": each.network, "unit": each.unit} for each in metrics
        ],
    }


def rendered(
    about: Mapping[str, Any],
    frame: pd.DataFrame,
    metrics: Sequence[Metric],
    plan: Plan,
    drawn: Mapping[str, Any],
    folder: Path,
) -> str:
    """The page. Everything that comes from outside is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    failures = cells.failures(about)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        about=about,
        summary=cells.summary(about, len(frame)),
        images=len(frame),
        failures=failures,
        failed=sum(row["count"] for row in failures),
        scores=cells.scores(about),
        marked=any(cell["marked"] for row in cells.scores(about) for cell in row["cells"]),
        gains=cells.gains(about),
        costs=cells.costs(about),
        timed=cells.timed(about),
        categories=cells.categories(about, frame),
        metrics=[_metric(metric, plan) for metric in metrics],
        sheets=_sheets(frame, about, folder),
        **drawn,
    )


def _metric(metric: Metric, plan: Plan) -> dict[str, str]:
    """A metric, and whether its network had a part in making images."""
    own = {mark for method in METHODS for mark in metric.marks(method, plan.settings(method, 2))}
    parts = [word for mark, word in (("optimized", "optimized against (†)"), ("chosen", "chose (‡)")) if mark in own]
    return {"name": metric.name, "network": metric.network, "unit": metric.unit, "own": ", ".join(parts) or "no"}


def _shown(drawn: Mapping[str, Sequence[Chart]]) -> dict[str, Any]:
    return {
        name: [{"title": chart.title, "svg": Markup(chart.svg())} for chart in group] for name, group in drawn.items()
    }


def _effects(about: Mapping[str, Any]) -> list[Chart]:
    """The gain over sd against seconds, for each set and metric."""
    return [
        Chart(
            f"{name}: gain in {metric} over a plain image, against the time of an image.",
            f"effect-{cells.slug(name)}-{cells.slug(metric)}",
            charts.effect(about["cost"], compared, metric, name),
        )
        for name, found in about["sets"].items()
        for metric, compared in found.items()
        if "sd" in compared and len(compared) > 1
    ]


def _distributions(frame: pd.DataFrame, about: Mapping[str, Any]) -> list[Chart]:
    """Box plots and bars for each set and metric."""
    found = []
    for name, rows in frame.groupby("set", sort=False):
        for metric, compared in about["sets"][name].items():
            end = f"{cells.slug(str(name))}-{cells.slug(metric)}"
            box = charts.boxes(rows, metric, list(compared), str(name))
            found.append(Chart(f"{name}: {metric}, quartiles, and the mean as a triangle.", f"box-{end}", box))
            bar = charts.bars(compared, metric, str(name))
            found.append(Chart(f"{name}: {metric}, mean and 95 %. The axis is cut.", f"bar-{end}", bar))
    return found


def _curves(frame: pd.DataFrame, trials: Sequence[Trial], store: Store) -> list[Chart]:
    """Loss by iteration, and score by seconds, over the images of each set that were made."""
    found = []
    for name in frame["set"].unique():
        runs: dict[str, list[Any]] = {}
        for trial in trials:
            if trial.prompt.set == name and store.made(trial.key):
                runs.setdefault(trial.method, []).append((store.record(trial.key) or {})["curve"])
        moving = {method: own for method, own in runs.items() if max(len(run["losses"]) for run in own) > 1}
        points = {
            method: (np.mean([run["seconds"][-1] for run in own]), np.mean([max(run["scores"]) for run in own]))
            for method, own in runs.items()
            if method not in moving
        }
        if moving:
            end, title = cells.slug(name), f"{name}: the guide's loss by iteration. Each method has a loss of its own."
            found.append(Chart(title, f"loss-{end}", charts.losses(moving, name)))
            title = f"{name}: the selector's best score so far, against the time so far."
            found.append(Chart(title, f"cost-{end}", charts.progress(moving, points, name)))
    return found


def _picked(frame: pd.DataFrame, about: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, list[Any]]]]]:
    """Of each set some prompts at equal distances, with the rows of all methods for the first seed."""
    for name, rows in frame[frame["seed"] == about["first_seed"]].groupby("set", sort=False):
        prompts = rows["prompt"].unique()
        picked = prompts[np.linspace(0, len(prompts) - 1, min(SHOWN, len(prompts))).round().astype(int)]
        by_prompt = rows[rows["prompt"].isin(picked)].groupby("prompt", sort=False)
        yield str(name), [(str(text), own.to_dict("records")) for text, own in by_prompt]


def _sheets(frame: pd.DataFrame, about: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The contact sheets of the page."""
    metric = about["metrics"][0]["name"]
    return [
        {
            "set": name,
            "rows": [{"prompt": text, "cells": [_cell(row, metric, folder) for row in rows]} for text, rows in prompts],
        }
        for name, prompts in _picked(frame, about)
    ]


def _contact(frame: pd.DataFrame, about: Mapping[str, Any], folder: Path) -> list[Chart]:
    """The same as pictures."""
    found = []
    for name, prompts in _picked(frame, about):
        rows = [
            (text, [small(folder / row["image"])[..., ::-1] if row["image"] else None for row in own])
            for text, own in prompts
        ]
        sheet = charts.sheet(rows, list(about["methods"]))
        found.append(Chart(f"{name}: images by prompt and method.", f"sheet-{cells.slug(name)}", sheet))
    return found


def _cell(row: Mapping[str, Any], metric: str, folder: Path) -> dict[str, str]:
    score = "" if np.isnan(row[metric]) else f"{row[metric]:.{cells.digits(row[metric])}f}"
    data = thumbnail(folder / row["image"]) if row["image"] else ""
    return {"method": row["method"], "file": row["image"], "data": data, "score": score}


def small(path: Path) -> np.ndarray:
    """An image of at most `THUMBNAIL` pixels, uint8 BGR [H, W, 3]."""
    image = cv2.imread(str(path))
    assert image is not None  # the store has checked the file
    scale = THUMBNAIL / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image


def thumbnail(path: Path) -> str:
    """A small image as a data URL."""
    content = cv2.imencode(".jpg", small(path), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
