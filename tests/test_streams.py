"""Results and messages that nobody can read: a reader that has left, a full disk."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgool.__main__ import main

FAST = ["--steps", "2", "--iterations", "0", "--cutouts", "0"]
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


class Failing(io.StringIO):
    """A stream that fails as a pipe without a reader or a full disk does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def command(*arguments: str, **streams) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "sgool", *arguments], cwd=Path(__file__).parents[1], env=environment, timeout=300,
        text=True, **streams
    )  # fmt: skip


def without_reader() -> int:
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("arguments", [["demo", *FAST, "--json"], ["demo", *FAST], ["export-webui"]])
def test_a_reader_that_has_left_is_no_error(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Failing(errno.EPIPE))
    folder = [str(tmp_path)] if arguments[0] == "export-webui" else ["--out", str(tmp_path)]
    assert main([*arguments, *folder]) == 0
    assert list(tmp_path.iterdir()) and "sgool:" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["demo", *FAST, "--json"], ["demo", *FAST], ["export-webui"]])
def test_a_result_that_cannot_be_printed_is_an_error_of_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Failing(errno.ENOSPC))
    folder = [str(tmp_path)] if arguments[0] == "export-webui" else ["--out", str(tmp_path)]
    assert main([*arguments, *folder]) == 2
    assert list(tmp_path.iterdir())  # what was made is kept
    assert capsys.readouterr().err.splitlines()[-1].startswith("sgool: The output could not be written: ")


def test_a_pipe_that_has_no_reader(tmp_path):
    done = command("demo", *FAST, "--json", "--out", str(tmp_path), stdout=without_reader(), stderr=subprocess.PIPE)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr


@FULL
def test_help_for_a_full_disk():
    with open("/dev/full", "w") as full:
        done = command("--help", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "could not be written" in done.stderr


@FULL
@pytest.mark.parametrize("end", ["full", "pipe"])
def test_a_run_goes_on_without_anybody_who_reads_its_messages(end, tmp_path):
    with open("/dev/full", "w") if end == "full" else open(without_reader(), "w") as stderr:
        done = command("demo", *FAST, "--out", str(tmp_path), stdout=subprocess.PIPE, stderr=stderr)
    assert done.returncode == 0 and (tmp_path / "result.json").is_file() and str(tmp_path) in done.stdout


def test_a_run_without_any_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["demo", *FAST, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "result.json").is_file()


def test_a_folder_whose_name_the_terminal_cannot_show(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["demo", *FAST, "--out", str(tmp_path / "größe 图 \udcff")]) == 0
    assert b"gr\\xf6\\xdfe" in terminal.buffer.getvalue()
