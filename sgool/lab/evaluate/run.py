"""The whole evaluation: images, scores, tables and a report. What is there already is not made again."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from sgool import outputs
from sgool.errors import SgoolError
from sgool.lab.evaluate.metrics import Metric, fetch_metric
from sgool.lab.evaluate.plan import Plan, Trial
from sgool.lab.evaluate.store import ABOUT, REPORT, RESULTS, Store
from sgool.lab.evaluate.work import Setup, Worker
from sgool.needs import fetch
from sgool.result import Stop
from sgool.signals import Guard

CHUNK = 16
"""Images that are scored in one task."""


class Pool(Protocol):
    """What gives tasks to workers."""

    def ask(self, name: str, tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """The results of a `Worker`'s method, each with its task's number, as they come. Raises Stop when told to."""
        ...

    def close(self) -> None: ...


class Local:
    """One worker, in this process."""

    def __init__(self, setup: Setup, guard: Guard) -> None:
        self.worker = Worker(setup, lambda: bool(guard.number))

    def ask(self, name: str, tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for number, task in enumerate(tasks):
            yield number, getattr(self.worker, name)(*task)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Where:
    """Where the work is done. ray: None for this process, "" for a cluster of this machine's own, or an address.

    workers: processes on Ray; None: one for each GPU, or for each core where there is none.
    """

    models_dir: Path
    device: str | None = None
    ray: str | None = None
    workers: int | None = None


def evaluate(plan: Plan, out: Path, where: Where, guard: Guard | None = None) -> dict[str, Any]:
    """Make what is missing of the plan's images and scores, and write the tables and the report: what `ABOUT` holds.

    Raises SgoolError for a folder that cannot be used, weights that cannot be had, and where no image could be made.
    A signal ends it, and the same call goes on later.
    """
    guard = guard or Guard()
    check_libraries()
    with outputs.claimed(out, (RESULTS, REPORT, ABOUT)):
        store = Store(out)
        wanted, metrics = plan.needs(), plan.measured()
        fetch(wanted, where.models_dir)
        for metric in metrics:
            fetch_metric(metric, where.models_dir)
        setup = Setup(plan.model, plan.size, wanted, plan.base.memory, plan.dtype, where.models_dir, where.device)
        guard.hold()
        pool = open_pool(setup, where, guard)
        try:
            best_of = _best_of(plan, store, pool)
            trials = plan.trials(best_of)
            _make(trials, store, pool)
            _score(trials, metrics, store, pool)
        except Stop:
            print("sgool: What is made so far is kept; the same command goes on with it.", file=sys.stderr)
            guard.interrupt()
        finally:
            pool.close()
        from sgool.lab.evaluate.report import write  # after the work, because it loads matplotlib

        return write(plan, trials, metrics, store)


def check_libraries() -> None:
    """Raises SgoolError where the libraries of tables and report are missing."""
    import importlib.util

    lacking = [name for name in ("jinja2", "matplotlib", "pandas") if importlib.util.find_spec(name) is None]
    if lacking:
        raise SgoolError(f'evaluate needs {", ".join(lacking)}: python -m pip install -e ".[evaluate]"')


def open_pool(setup: Setup, where: Where, guard: Guard) -> Pool:
    """The workers. Raises SgoolError where Ray is asked for and is not there."""
    if where.ray is None:
        return Local(setup, guard)
    from sgool.lab.evaluate.cluster import Cluster

    return Cluster(setup, where.ray, where.workers, guard)


def _best_of(plan: Plan, store: Store, pool: Pool) -> int:
    """How many images best-of-n chooses from. What has been timed once counts for all images of the folder."""
    if plan.best_of or "best-of-n" not in plan.methods:
        return plan.best_of or 1
    known = store.about.get("timed", {})
    if known.get("settings") != plan.timed():
        both = replace(plan, methods=("sd", "sgool"), prompts=plan.prompts[:1], seeds=1)
        (result,) = pool.ask("images_in_the_time", [tuple(both.trials(1))])
        count, improved, plain = result[1]
        known = {"settings": plan.timed(), "best_of": count, "seconds_sgool": improved, "seconds_plain": plain}
        store.describe({**store.about, "timed": known})
    return int(known["best_of"])


def _make(trials: Sequence[Trial], store: Store, pool: Pool) -> None:
    """Make the images that are not there yet. Those that failed earlier are tried again."""
    every = {trial.key: trial for trial in trials}
    missing = [trial for key, trial in every.items() if not store.made(key)]
    if not missing:
        return
    failed: Counter[str] = Counter()
    there = len(every) - len(missing)
    with Bar("images", sum(trial.cost for trial in missing)) as bar:
        bar.tell(there, len(every), failed)
        for number, (image, record) in pool.ask("make", [(trial,) for trial in missing]):
            trial = missing[number]
            store.save(trial.key, image, record)
            failed.update([record["failure"]] if "failure" in record else [])
            there += 1
            bar.tell(there, len(every), failed, trial.cost)
    if not any(store.made(key) for key in every):
        raise SgoolError(f"No image could be made: {next(filter(None, map(store.record, every)))['error']}")


def _score(trials: Sequence[Trial], metrics: Sequence[Metric], store: Store, pool: Pool) -> None:
    """Score the images that are not scored yet, metric by metric, so that each network is loaded once."""
    texts = {trial.key: trial.prompt.text for trial in trials if store.made(trial.key)}
    tasks: list[tuple[Metric, list[str]]] = []
    for metric in metrics:
        lacking = [key for key in texts if metric.key not in (store.record(key) or {}).get("scores", {})]
        tasks += [(metric, lacking[i : i + CHUNK]) for i in range(0, len(lacking), CHUNK)]
    if not tasks:
        return
    asked = Lazy([(metric, keys) for metric, keys in tasks], store, texts)
    done, total = 0, sum(len(keys) for _, keys in tasks)
    with Bar("scores", total) as bar:
        for number, scores in pool.ask("measure", asked):
            metric, keys = tasks[number]
            for key, score in zip(keys, scores, strict=True):
                store.save_scores(key, {metric.key: score})
            done += len(keys)
            bar.tell(done, total, Counter(), len(keys))


class Lazy(Sequence[tuple[Any, ...]]):
    """The tasks of scoring; images are read when a task is given out."""

    def __init__(self, tasks: Sequence[tuple[Metric, list[str]]], store: Store, texts: dict[str, str]) -> None:
        self.tasks = tasks
        self.store = store
        self.texts = texts

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: Any) -> Any:
        metric, keys = self.tasks[number]
        return metric, [(self.store.content(key), self.texts[key]) for key in keys]


class Bar:
    """A progress bar with the time that is left, counted by what each task costs."""

    FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"

    def __init__(self, what: str, total: float) -> None:
        self.bar = tqdm(total=total, desc=what, smoothing=0.1, bar_format=self.FORMAT, file=sys.stderr)

    def tell(self, done: int, total: int, failed: Counter[str], cost: float = 0.0) -> None:
        """So many of them are done, the last one at this cost."""
        told = "".join(f", {count} failed ({kind})" for kind, count in failed.items())
        self.bar.set_postfix_str(f"{done}/{total}{told}", refresh=False)
        self.bar.update(min(cost, self.bar.total - self.bar.n))
        self.bar.refresh()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
