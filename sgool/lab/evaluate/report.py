"""What an evaluation writes: results.csv, evaluation.json, pictures, and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgool.job import effective
from sgool.lab.evaluate.methods import METHODS
from sgool.lab.evaluate.metrics import Metric
from sgool.lab.evaluate.plan import Plan, Trial
from sgool.lab.evaluate.statistics import results, tables
from sgool.lab.evaluate.store import Store


def write(plan: Plan, trials: Sequence[Trial], metrics: Sequence[Metric], store: Store) -> dict[str, Any]:
    """Write all of it; returns what evaluation.json holds."""
    frame = results(trials, metrics, store)
    about = {**described(plan, trials, metrics), **tables(frame, plan, metrics)}
    if "timed" in store.about:
        about["timed"] = store.about["timed"]
    store.write("results.csv", frame.to_csv(index=False).encode())
    store.describe(about)
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
        "methods": {name: {"does": METHODS[name], **effective(each)} for name, each in settings.items()},
        "metrics": [
            {"name": each.name, "critic": each.critic, "network": each.network, "unit": each.unit} for each in metrics
        ],
    }
