"""What a run leaves in its folder, whatever ends it: all of its files, or none of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sgool import job
from sgool.__main__ import main
from sgool.errors import SgoolError
from sgool.outputs import claimed, replace
from sgool.result import Ending

FAST = ["--steps", "3", "--iterations", "1", "--cutouts", "1"]
FILES = set(job.FILES) - {"zoom.png"}
NAMES = ("a.png", "b.png", "c.png", "result.json")

posix = pytest.mark.skipif(os.name == "nt", reason="signals and links are other things on Windows")


@pytest.fixture(autouse=True)
def heard():
    """A shell's background job ignores Ctrl-C, and its tests would not hear it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_put_in_place_of_all_that_an_earlier_run_left(tmp_path):
    replace(tmp_path, {"a.png": b"1", "c.png": b"1", "result.json": b"1"}, NAMES)
    (tmp_path / "mine.txt").write_bytes(b"mine")
    replace(tmp_path, {"a.png": b"2", "b.png": b"2", "result.json": b"2"}, NAMES)
    assert contents(tmp_path) == {"a.png": b"2", "b.png": b"2", "result.json": b"2", "mine.txt": b"mine"}


def test_the_last_file_goes_first_and_comes_last(tmp_path, monkeypatch):
    replace(tmp_path, {"a.png": b"1", "c.png": b"1", "result.json": b"1"}, NAMES)
    seen, put = [], os.replace

    def watched(source, target):
        seen.append((names(tmp_path) & set(NAMES), (tmp_path / "a.png").read_bytes()))
        put(source, target)

    monkeypatch.setattr(os, "replace", watched)
    replace(tmp_path, {"a.png": b"2", "b.png": b"2", "result.json": b"2"}, NAMES)
    assert seen == [({"a.png", "c.png"}, b"1"), ({"a.png", "c.png"}, b"2"), ({"a.png", "b.png"}, b"2")]


def test_a_full_disk_leaves_no_cut_file_and_the_earlier_ones(tmp_path):
    resource = pytest.importorskip("resource")
    before = {"a.png": b"1" * 200, "result.json": b"1"}
    replace(tmp_path, before, NAMES)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a file may grow so far, and is then cut
    try:
        with pytest.raises(SgoolError, match="could not be written"):
            replace(tmp_path, {"a.png": b"2" * 200, "b.png": b"2" * 2000, "result.json": b"2"}, NAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == before


@posix
def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.png", "result.json"):
        (out / name).symlink_to(tmp_path / "precious")
    (out / "b.png").symlink_to(tmp_path)
    with claimed(out, NAMES):
        replace(out, {"a.png": b"2", "b.png": b"2", "result.json": b"2"}, NAMES)
    assert (tmp_path / "precious").read_bytes() == b"precious" and names(tmp_path) == {"precious", "out"}
    assert not any(path.is_symlink() for path in out.iterdir())


def test_a_folder_of_two_runs_at_once_is_refused_to_the_second(tmp_path):
    with claimed(tmp_path, NAMES):
        with pytest.raises(SgoolError, match="Another run"), claimed(tmp_path / ".." / tmp_path.name, NAMES):
            pass
        with claimed(tmp_path / "other", NAMES):
            pass
    with claimed(tmp_path, NAMES):
        assert names(tmp_path) == {"other"}


@posix
def test_a_claim_dies_with_its_process(tmp_path):
    code = "import sys, time\nfrom pathlib import Path\nfrom sgool.outputs import claimed\n"
    code += "with claimed(Path(sys.argv[1]), ()):\n    print('claimed', flush=True)\n    time.sleep(600)\n"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"claimed\n"
        with pytest.raises(SgoolError, match="Another run"), claimed(tmp_path, NAMES):
            pass
    finally:
        holder.kill()
        holder.wait()
    with claimed(tmp_path, NAMES):
        pass


def test_the_second_run_into_a_folder_is_refused_before_it_loads_anything(tmp_path, capsys):
    with claimed(tmp_path, FILES):
        assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("sgool: Another run is writing into the output folder")


@pytest.mark.parametrize("place", ["file", "file/below", "taken"])
def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_loaded(place, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "result.json").mkdir(parents=True)
    assert main(["demo", "--out", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {"file": "is a file", "file/below": "cannot be written to", "taken": "a folder named result.json"}[
        place
    ] in line


def test_a_later_run_replaces_the_whole_result(tmp_path):
    assert main(["demo", *FAST, "--out", str(tmp_path)]) == 0
    first = contents(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sgool.job.Bar.step", at_the_second_start)
        assert (
            main(["demo", *FAST, "--seed", "6", "--candidates", "2", "--memory", "low", "--out", str(tmp_path)]) == 130
        )
    second = contents(tmp_path)
    assert second.keys() == FILES - {"loss.png"} and not set(first.values()) & set(second.values())


def at_the_second_start(self, done, total):
    if (done, total) == (1, 3):
        self.starts = getattr(self, "starts", 0) + 1
        if self.starts == 2:
            raise KeyboardInterrupt


def afterwards(function, *numbers: int):
    """The function, which then gets these signals."""

    def wrapped(*args, **options):
        value = function(*args, **options)
        for number in numbers:
            signal.raise_signal(number)
        return value

    return wrapped


INT, TERM = signal.SIGINT, signal.SIGTERM


@posix
@pytest.mark.parametrize(
    ("place", "numbers", "code"),
    [
        ("sgool.job.Bar.image", (INT, INT), 130),  # the first image is there
        ("sgool.job.Bar.image", (TERM, INT), 143),
        ("sgool.job.draw", (INT, INT), 130),  # the run has ended
        ("sgool.job.draw", (TERM,), 143),
        ("sgool.pictures.png", (INT, TERM), 130),
        ("os.fsync", (INT,), 130),
        ("os.replace", (INT, INT), 130),
    ],
)
def test_no_signal_loses_the_image(place, numbers, code, tmp_path, monkeypatch, capsys):
    module, name = place.rsplit(".", 1)
    home = {"os": os, "sgool.job": job, "sgool.job.Bar": job.Bar, "sgool.pictures": job.pictures}[module]
    monkeypatch.setattr(home, name, afterwards(getattr(home, name), *numbers))
    handlers = [signal.getsignal(number) for number in (INT, TERM)]
    assert main(["demo", *FAST, "--json", "--out", str(tmp_path)]) == code
    assert [signal.getsignal(number) for number in (INT, TERM)] == handlers
    assert names(tmp_path) == FILES
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((tmp_path / "result.json").read_text())
    assert figures["ending"] == (Ending.INTERRUPTED if "Bar" in place else Ending.DONE).value


@posix
@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 143)])
@pytest.mark.parametrize("place", ["load_critics", "Bar.step"])
def test_a_signal_before_the_first_image_ends_in_one_line(place, number, code, tmp_path, monkeypatch, capsys):
    home = job.Bar if "." in place else job
    name = place.rpartition(".")[2]
    monkeypatch.setattr(home, name, afterwards(getattr(home, name), number))
    assert main(["demo", *FAST, "--out", str(tmp_path)]) == code
    told = capsys.readouterr().err
    assert told.splitlines()[-1] == "sgool: Interrupted." and "Traceback" not in told and not names(tmp_path)


def test_a_run_in_another_thread_leaves_the_signals_alone(tmp_path):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["demo", *FAST, "--out", str(tmp_path)])))
    thread.start()
    thread.join()
    assert codes == [0] and names(tmp_path) == FILES


@posix
@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 143)])
def test_two_real_signals_write_the_best_image_so_far(number, code, tmp_path):
    command = [sys.executable, "-u", "-m", "sgool", "demo", "--iterations", "900", "--patience", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def hear() -> None:  # a shell's background job ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")], stderr=log, env=environment, preexec_fn=hear
        )
        try:
            deadline = time.monotonic() + 300
            while " 2/901" not in (tmp_path / "log").read_text():
                assert time.monotonic() < deadline, "no two images in five minutes"
                time.sleep(0.2)
            process.send_signal(number)
            process.send_signal(number)
            assert process.wait(60) == code
        finally:
            process.kill()
    assert names(tmp_path / "out") == FILES
    assert "Interrupted" in json.loads((tmp_path / "out" / "result.json").read_text())["ended"]
