"""The evaluation on Ray, on a small cluster of this machine's own."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("pandas", reason="needs the extra evaluate")
pytest.importorskip("matplotlib", reason="needs the extra evaluate")
pytest.importorskip("diffusers", reason="needs diffusers")

from test_evaluate import FEW, PROMPTS, told

from sgool.errors import SgoolError
from sgool.lab.evaluate import cluster
from sgool.lab.evaluate.plan import Plan
from sgool.lab.evaluate.run import Where, evaluate
from sgool.lab.evaluate.work import Worker
from sgool.signals import Guard, Terminated

PLAN = Plan(PROMPTS, methods=("sd", "sgool"), metrics=("judge", "guide"), given=FEW, seeds=2)


def where(workers):
    return Where(Path("unused"), "cpu", ray="", workers=workers)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What comes of it in this process."""
    folder = tmp_path_factory.mktemp("alone")
    evaluate(PLAN, folder, Where(Path("unused"), "cpu"))
    return told(folder)


def workers_of_this_machine():
    """The processes of the workers that compute."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::Worker"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for the workers in /proc")
def test_two_workers_of_which_one_is_killed_come_to_the_same(tmp_path, alone, monkeypatch):
    """In the middle of its work, when an image has come."""
    killed = []
    save = cluster.Cluster._result

    def kill_once(self, reference):
        result = save(self, reference)
        if isinstance(result, tuple) and not killed:
            killed.extend(workers_of_this_machine()[:1])
            os.kill(killed[0], signal.SIGKILL)
        return result

    monkeypatch.setattr(cluster.Cluster, "_result", kill_once)
    about = evaluate(PLAN, tmp_path, where(2))
    assert len(killed) == 1 and told(tmp_path) == alone and about["failures"] == {}


def test_a_signal_ends_it_and_it_goes_on_alone(tmp_path, alone):
    guard = Guard()

    def stop():
        while not list((tmp_path / "images").glob("*.json")):
            time.sleep(0.05)
        guard.number = signal.SIGTERM

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Terminated):
        evaluate(PLAN, tmp_path, where(1), guard)
    thread.join()
    assert 1 <= len(list((tmp_path / "images").glob("*.json"))) < 8
    evaluate(PLAN, tmp_path, Where(Path("unused"), "cpu"))
    assert told(tmp_path) == alone


def test_what_takes_every_worker_with_it_has_failed_and_an_error_is_raised_as_it_is(tmp_path, monkeypatch):
    class Fatal(Worker):
        def make(self, trial):
            if trial.method == "sgool":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().make(trial)

        def measure(self, metric, images):
            raise SgoolError("The metric cannot be loaded.")

    monkeypatch.setattr(cluster, "Worker", Fatal)
    plan = Plan(PROMPTS[:1], methods=("sd", "sgool"), metrics=("judge",), given=FEW)
    with pytest.raises(SgoolError, match=r"^The metric cannot be loaded\.$"):
        evaluate(plan, tmp_path, where(2))
    monkeypatch.undo()
    assert len(list((tmp_path / "images").glob("*.png"))) == 1
    (record,) = [path for path in (tmp_path / "images").glob("*.json") if '"worker lost"' in path.read_text()]
    assert record.is_file()


def test_a_cluster_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SgoolError, match=r"The Ray cluster 127\.0\.0\.1:1 cannot be reached"):
        evaluate(PLAN, tmp_path, Where(Path("unused"), "cpu", ray="127.0.0.1:1"))
