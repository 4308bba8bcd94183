"""The pictures of a report, by matplotlib: as SVG that takes the colors of the page around it, and as PNG."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

COLORS = {
    "sd": "#8a8a8a",
    "baseline": "#e69f00",
    "doodl": "#56b4e9",
    "global": "#009e73",
    "sgool": "#d55e00",
    "best-of-n": "#cc79a7",
}
"""Of the methods; they stay apart for the color-blind (Okabe and Ito), and show on white and on black."""

INK = "#0a0b0c"
"""Stands for the color of the page's text."""

STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "sgool",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.bbox": "tight",
}

SIZE = (5.4, 3.4)
"""Inches."""


@dataclass(frozen=True)
class Chart:
    """title: what it shows, in a sentence. name: of its file, without an ending."""

    title: str
    name: str
    figure: Figure

    def svg(self) -> str:
        """For a page: its text and lines have the color of the page's text."""
        text = io.StringIO()
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        drawn = text.getvalue().partition("<svg ")[2]
        # The names of groups are the same in every chart; those that something refers to have no underline.
        drawn = re.sub(r' id="[^"]*_\d+"', "", drawn).replace(INK, "currentColor")
        return re.sub(r'\A[^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', drawn)

    def png(self) -> bytes:
        content = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(content, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        return content.getvalue()


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The function in the style of these charts, and in no other that the process may have set."""

    @functools.wraps(draw)
    def wrapper(*arguments: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments)

    return wrapper


def axes(title: str, x: str = "", y: str = "") -> tuple[Figure, Any]:
    """An empty figure and its axes."""
    figure = Figure(SIZE)
    drawn = figure.add_subplot()
    drawn.set(title=_plain(title), xlabel=_plain(x), ylabel=_plain(y))
    return figure, drawn


@styled
def boxes(frame: pd.DataFrame, metric: str, methods: Sequence[str], title: str) -> Figure:
    """The scores of each method: quartiles, whiskers to 1.5 times their distance, and the mean as a triangle."""
    figure, drawn = axes(title, y=metric)
    shown = [frame[frame["method"] == method][metric].dropna().to_numpy() for method in methods]
    parts = drawn.boxplot(shown, patch_artist=True, showmeans=True, widths=0.6, flierprops={"markersize": 3})
    for method, box in zip(methods, parts["boxes"], strict=True):
        box.set(facecolor=COLORS[method], edgecolor=INK, alpha=0.85)
    for part in ("whiskers", "caps", "medians"):
        for line in parts[part]:
            line.set_color(INK)
    for part in ("means", "fliers"):
        for mark in parts[part]:
            mark.set(markeredgecolor=INK, markerfacecolor="white" if part == "means" else "none")
    drawn.set_xticks(range(1, len(methods) + 1), methods)
    return figure


@styled
def bars(compared: Mapping[str, Any], metric: str, title: str) -> Figure:
    """The mean of each method with its 95 % interval. The axis begins where the differences show."""
    figure, drawn = axes(title, y=f"{metric}, mean and 95 %")
    rows = {method: row for method, row in compared.items() if row["mean"] is not None}
    means = [row["mean"] for row in rows.values()]
    low, high = ([(row["ci95"] or [row["mean"]] * 2)[side] for row in rows.values()] for side in (0, 1))
    drawn.bar(
        list(rows),
        means,
        color=[COLORS[method] for method in rows],
        yerr=[np.subtract(means, low).clip(0), np.subtract(high, means).clip(0)],
        ecolor=INK,
        capsize=4,
        width=0.65,
    )
    if low:
        margin = 0.25 * (max(high) - min(low)) or 0.1 * abs(max(high)) or 1.0
        drawn.set_ylim(min(low) - margin, max(high) + margin)
    return figure


@styled
def effect(cost: Mapping[str, Any], compared: Mapping[str, Any], metric: str, title: str) -> Figure:
    """The gain over a plain image, against the seconds that an image takes."""
    figure, drawn = axes(title, "seconds an image", f"gain in {metric} over sd, and 95 %")
    drawn.axhline(0, color=INK, linewidth=0.8)
    for method, row in compared.items():
        gain, seconds = row["gain_over"].get("sd"), cost[method]["seconds"]
        if gain and seconds:
            low, high = gain["ci95"] or [gain["mean"]] * 2
            error = np.clip([[gain["mean"] - low], [high - gain["mean"]]], 0, None)
            drawn.errorbar(seconds, gain["mean"], error, fmt="o", color=COLORS[method], capsize=3, label=method)
    drawn.set_xlim(0)
    drawn.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def losses(curves: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """The mean loss of each optimizing method by iteration; each has a loss of its own."""
    figure, drawn = axes(title, "iteration", "mean loss of the guide")
    for method, runs in curves.items():
        mean = pd.DataFrame([run["losses"] for run in runs]).mean()
        drawn.plot(mean.index, mean, color=COLORS[method], label=method)
    drawn.xaxis.get_major_locator().set_params(integer=True)
    drawn.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def progress(curves: Mapping[str, Sequence[Mapping[str, Any]]], points: Mapping[str, Any], title: str) -> Figure:
    """The selector's best score so far against the seconds so far, both means; a method without updates is a point."""
    figure, drawn = axes(title, "seconds", "selector's best score so far, mean")
    for method, runs in curves.items():
        best = pd.DataFrame([np.maximum.accumulate(run["scores"]) for run in runs]).ffill(axis=1).mean()
        seconds = pd.DataFrame([run["seconds"] for run in runs]).mean()
        drawn.plot(seconds, best, color=COLORS[method], label=method, marker=".", markersize=4)
    for method, (seconds, score) in points.items():
        drawn.plot(seconds, score, "D", color=COLORS[method], label=method)
    drawn.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def sheet(rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], methods: Sequence[str]) -> Figure:
    """A contact sheet: a row for each prompt with its images, uint8 RGB [H, W, 3], by method; None for a failure."""
    figure = Figure((1.6 * len(methods), 1.9 * len(rows)))
    grid = figure.subplots(len(rows), len(methods), squeeze=False)
    for (prompt, images), places in zip(rows, grid, strict=True):
        for method, image, place in zip(methods, images, places, strict=True):
            place.axis("off")
            place.set_title(method if image is not None else f"{method}: failed", fontsize=7, pad=2)
            if image is not None:
                place.imshow(image)
        places[0].text(0, 1.16, _plain(prompt), transform=places[0].transAxes, fontsize=8)
    return figure


def _plain(text: str) -> str:
    """Text in which no dollar begins a formula."""
    return text.replace("$", r"\$")
