"""The extension's installation, and the WebUI with different files and flags. Each of these needs its own start."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import pytest
from hosts import HOST
from payloads import BASE, SGOOL, difference, make, outcome, plot
from PIL import Image
from webui_server import CHECKOUT, NAME, Refused, WebUI, interpreter

from sgool.settings import DEFAULTS

VERSIONS = (
    "import importlib.metadata as m, json; print(json.dumps(sorted([d.name, d.version] for d in m.distributions())))"
)


@pytest.fixture
def python(webui_folder):
    """Runs the WebUI's interpreter as the launcher does, with `launch` importable from the WebUI's folder."""

    def run(*command):
        environment = {**os.environ, "PYTHONPATH": str(webui_folder), "COMMANDLINE_ARGS": ""}
        command = [interpreter(webui_folder), *command]
        return subprocess.run(
            command, cwd=webui_folder, env=environment, capture_output=True, text=True, check=True
        ).stdout

    return run


@contextlib.contextmanager
def started(*arguments):
    server = WebUI(*arguments)
    try:
        yield server
    finally:
        server.stop()


def test_installing_changes_no_version(python):
    before = json.loads(python("-c", VERSIONS))
    assert "Installing" not in python(str(CHECKOUT / "install.py"))
    assert json.loads(python("-c", VERSIONS)) == before


def test_the_extension_hardly_slows_the_start(server, python):
    """Every start also runs the installer. Processor time is measured, because the machine may be busy."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    begun = spent()
    python(str(CHECKOUT / "install.py"))
    assert spent() - begun + sum(server.get("/sgool-probe/starting").values()) < 0.3


def test_the_webui_reads_the_metadata(server):
    """The canonical name, by which other extensions refer to ours, is the one in metadata.ini."""
    canonical, metadata = server.get("/sgool-probe/extensions")[NAME]
    assert canonical == metadata["extension"]["name"]
    assert "Callback order section" not in server.output()


def test_changed_defaults_are_kept_after_a_restart(webui_folder, tmp_path):
    defaults = {"SGOOL": True, "Iterations": 3, "Sampler": "edict", "Region prompt": "a frog"}
    saved = {f"customscript/sgool.py/txt2img/{label}/value": value for label, value in defaults.items()}
    (tmp_path / "ui-config.json").write_text(json.dumps(saved))
    with started(webui_folder, tmp_path) as server:
        shown = [each["props"] for each in server.get("/config")["components"]]
    ids = ["-checkbox", "_iterations", "_sampler", "_region_prompt"]
    as_shipped = [False, DEFAULTS["iterations"], "auto", ""]
    kept = [HOST.keeps_switches, *list(defaults.values())[1:]]
    for tab, expected in (("txt2img", kept), ("img2img", as_shipped)):
        by_id = {props.get("elem_id"): props.get("value") for props in shown}
        assert [by_id[f"sgool_{tab}{each}"] for each in ids] == expected


def test_without_a_page(webui_folder, tmp_path):
    with started(webui_folder, tmp_path, ["--nowebui"]) as server:
        answer = make(server, plot(server, ("[SGOOL] Iterations", "1, 2")), SGOOL)
        assert [outcome(answer, index).iterations for index in (1, 2)] == [1, 2]
        assert server.get("/sgool/v1/version")
        with pytest.raises(Refused, match="404"):
            server.get("/sgool/v1/last")


def test_a_run_is_shown_only_to_whom_the_page_lets_in(webui_folder, tmp_path):
    with started(webui_folder, tmp_path, ["--gradio-auth", "somebody:secret"]) as server:
        answer = make(server, BASE, SGOOL)
        run = f"{server.url}/sgool/v1/runs/{answer.info['extra_generation_params']['SGOOL run'][0]}"
        cookies = urllib.request.HTTPCookieProcessor()
        page = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)

        def sign_in(password):
            given = urllib.parse.urlencode({"username": "somebody", "password": password})
            page.open(f"{server.url}/login", given.encode(), timeout=60).read()

        for password in (None, "guessed"):
            with contextlib.suppress(urllib.error.HTTPError):
                if password:
                    sign_in(password)
            for address in (run, f"{run}/0/after.png"):
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    page.open(address, timeout=60)
        sign_in("secret")
        assert json.load(page.open(run, timeout=60))["images"]
        with page.open(f"{run}/0/after.png", timeout=60) as shown:
            assert not difference(Image.open(io.BytesIO(shown.read())).convert("RGB"), answer.image()).any()


# Not --upcast-sampling: it has no effect with --no-half, and without --no-half the WebUI makes no image on a CPU.
FLAGS = {
    "AUTOMATIC1111": [
        ("--medvram", "--opt-channelslast"),
        ("--lowvram",),
        ("--opt-split-attention-v1", "--disable-nan-check"),
        ("--precision", "full", "--opt-sub-quad-attention"),
    ],
    "Forge": [("--attention-split",), ("--attention-pytorch",)],
    "Forge Neo": [("--use-pytorch-cross-attention",)],
    "reForge": [("--attention-split",), ("--attention-pytorch",)],
}


@pytest.mark.parametrize("flags", FLAGS[HOST.name], ids=" ".join)
def test_with_the_webuis_flags(webui_folder, tmp_path, flags):
    with started(webui_folder, tmp_path, flags) as server:
        plain = make(server, BASE)
        found = outcome(make(server, BASE, SGOOL))
        assert not found.note
        assert found.iterations == SGOOL["iterations"]
        assert make(server, BASE).encoded == plain.encoded
