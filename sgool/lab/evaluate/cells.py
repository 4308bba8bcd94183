"""The numbers of a report as text: rows and cells for its tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sgool.lab.evaluate.metrics import MARKS

About = Mapping[str, Any]
"""What evaluation.json holds."""


def digits(value: float) -> int:
    """Digits behind the point, for scores of this size."""
    return 2 if abs(value) >= 10 else 3 if abs(value) >= 1 else 4


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:40] or "set"


def summary(about: About, images: int) -> str:
    """What was done, in a sentence."""
    sets = ", ".join(f"{name} ({count} prompts)" for name, count in about["prompts"].items())
    seeds = "one seed" if about["seeds"] == 1 else f"{about['seeds']} seeds"
    return f"{images} images: {len(about['methods'])} methods on {sets}, {seeds} for each prompt."


def scores(about: About) -> list[dict[str, Any]]:
    """The means, a row for each method, a cell for each set and metric."""
    columns = [compared for found in about["sets"].values() for compared in found.values()]
    ranks = [ranked(compared) for compared in columns]
    return [
        {
            "method": method,
            "cells": [
                mean(compared[method], rank.get(method, "")) for compared, rank in zip(columns, ranks, strict=True)
            ],
        }
        for method in about["methods"]
    ]


def ranked(compared: About) -> dict[str, str]:
    """The best method and the second, of those that have not worked towards this score."""
    fair = {name: row["mean"] for name, row in compared.items() if row["mean"] is not None and not row["marks"]}
    order = sorted(fair, key=lambda name: -fair[name])
    return dict(zip(order[:2], ("best", "second"), strict=False)) if len(order) > 1 else {}


def mean(row: About, rank: str) -> dict[str, Any]:
    marks = "".join(MARKS[mark] for mark in row["marks"])
    text = "none" if row["mean"] is None else f"{row['mean']:.{digits(row['mean'])}f}{marks}"
    return {"text": text, "rank": rank, "marked": bool(marks)}


def gains(about: About) -> list[dict[str, Any]]:
    """Tables of what the methods gain over sd, and of what SGOOL, or the last method, gains over the others."""
    methods = list(about["methods"])
    lead = "sgool" if "sgool" in methods else methods[-1]
    found = []
    if "sd" in methods and len(methods) > 1:
        others = [method for method in methods if method != "sd"]
        found.append(_gains(about, "Gain over a plain image", "method", [(each, "sd") for each in others]))
    others = [method for method in methods if method not in (lead, "sd")]
    if others:
        found.append(_gains(about, f"What {lead} gains over the others", "over", [(lead, each) for each in others]))
    return found


def _gains(about: About, title: str, column: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    parts = []
    for name, found in about["sets"].items():
        rows = []
        for ours, theirs in pairs:
            own = [gain(compared, ours, theirs) for compared in found.values()]
            counts = sorted({cell["pairs"] for cell in own})
            pairs_told = "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
            rows.append({"method": ours if column == "method" else theirs, "cells": own, "pairs": pairs_told})
        parts.append({"set": name, "rows": rows})
    return {"title": title, "column": column, "parts": parts}


def gain(compared: About, ours: str, theirs: str) -> dict[str, Any]:
    """A difference with its interval; sure: whether the interval leaves out zero. It has the marks of both methods."""
    found = compared[ours]["gain_over"].get(theirs)
    if found is None:
        return {"text": "none", "wins": "", "pairs": 0, "sure": False}
    places = digits(compared[ours]["mean"])
    text = f"{found['mean']:+.{places}f}"
    low, high = found["ci95"] or (0, 0)
    if found["ci95"]:
        text += f" [{low:+.{places}f}, {high:+.{places}f}]"
    own = (*compared[ours]["marks"], *compared[theirs]["marks"])
    text += "".join(sign for mark, sign in MARKS.items() if mark in own)
    return {"text": text, "wins": f"{found['wins']:.0%}", "pairs": found["pairs"], "sure": low > 0 or high < 0}


def costs(about: About) -> list[dict[str, str]]:
    def told(value: float | None, places: int) -> str:
        return "none" if value is None else f"{value:.{places}f}"

    return [
        {
            "method": method,
            "seconds": told(row["seconds"], 2),
            "evaluations": told(row["evaluations"], 0),
            "plain": told(row["plain_images"], 1),
        }
        for method, row in about["cost"].items()
    ]


def timed(about: About) -> str:
    """How the number of images of best-of-n came about."""
    if "best-of-n" not in about["methods"]:
        return ""
    count = about["methods"]["best-of-n"]["candidates"]
    known = about.get("timed", {})
    if known.get("best_of") != count:
        return f"best-of-n chooses from {count} images, as asked for."
    return (
        f"best-of-n chooses from {count} images, because sgool took {known['seconds_sgool']:.1f} s for the first "
        f"prompt, and one of several plain images {known['seconds_plain']:.2f} s."
    )


def categories(about: About, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """For each set of several categories and each metric: the means, and what SGOOL gains over sd."""
    lead = {"sgool", "sd"} <= set(about["methods"])
    counts = frame.groupby(["set", "category"])["prompt"].nunique()
    found = []
    for name, by_category in about["categories"].items():
        for metric in (each["name"] for each in about["metrics"]):
            rows = []
            for category, compared in by_category.items():
                rank = ranked(compared[metric])
                cells = [mean(row, rank.get(method, "")) for method, row in compared[metric].items()]
                own = gain(compared[metric], "sgool", "sd") if lead else {}
                prompts = int(counts[name, category])
                rows.append({"category": category or "none", "prompts": prompts, "cells": cells, "gain": own})
            told = "sgool's gain over sd" if lead else ""
            found.append({"set": name, "metric": metric, "rows": rows, "lead": told})
    return found


def failures(about: About) -> list[dict[str, Any]]:
    return [
        {"method": method, "kind": kind, "count": count}
        for method, kinds in about["failures"].items()
        for kind, count in kinds.items()
    ]
