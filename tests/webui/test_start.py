"""The extension's installation, and what the WebUI is started with: each needs a start of its own."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from payloads import BASE, SGOOL, make, outcome
from webui_server import CHECKOUT, WebUI, interpreter

VERSIONS = (
    "import importlib.metadata as m, json; print(json.dumps(sorted([d.name, d.version] for d in m.distributions())))"
)


def test_installing_changes_no_version(webui_folder):
    """As the launcher calls it: with the WebUI's folder as the place to import `launch` from."""
    python = interpreter(webui_folder)
    environment = {**os.environ, "PYTHONPATH": str(webui_folder), "COMMANDLINE_ARGS": ""}

    def run(*command):
        return subprocess.run(
            [python, *command], cwd=webui_folder, env=environment, capture_output=True, text=True, check=True
        ).stdout

    before = json.loads(run("-c", VERSIONS))
    assert "Installing" not in run(str(CHECKOUT / "install.py"))
    assert json.loads(run("-c", VERSIONS)) == before


def test_starting_takes_hardly_longer(server):
    assert sum(server.get("/sgool-probe/starting").values()) < 0.3


FLAGS = [
    ("--medvram", "--opt-channelslast"),
    ("--lowvram",),
    ("--upcast-sampling", "--opt-split-attention-v1", "--disable-nan-check"),
    ("--precision", "full", "--opt-sub-quad-attention"),
    ("--nowebui",),
]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_with_the_webuis_flags(webui_folder, tmp_path, flags):
    server = WebUI(webui_folder, tmp_path, flags)
    try:
        plain = make(server, BASE)
        found = outcome(make(server, BASE, SGOOL))
        assert not found.note
        assert found.iterations == SGOOL["iterations"]
        assert make(server, BASE).encoded == plain.encoded
    finally:
        server.stop()
