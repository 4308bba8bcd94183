"""The extension's installation, and the WebUI's own ways of saving memory: each needs a start of its own."""

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


@pytest.mark.parametrize("flags", [("--medvram", "--opt-channelslast"), ("--lowvram",)], ids=" ".join)
def test_with_the_webuis_flags_for_little_memory(webui_folder, tmp_path, flags):
    server = WebUI(webui_folder, tmp_path, flags)
    try:
        found = outcome(make(server, BASE, SGOOL))
        assert found.iterations == SGOOL["iterations"] or "--lowvram" in found.note
        assert make(server, BASE).encoded == make(server, BASE).encoded
    finally:
        server.stop()
