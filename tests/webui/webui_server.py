"""Start a real WebUI with this checkout as an extension, send it requests, and leave nothing behind."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hosts import AUTOMATIC1111, HOST
from PIL import Image

CHECKOUT = Path(__file__).parents[2]
PROBE = Path(__file__).parent / "probe"
NAME = "sd-webui-sgool"
LINKED = ("scripts", "sgool", "javascript", "style.css", "install.py", "metadata.ini")
"""The linked parts of the checkout. .git is left out, because the WebUI would ask it for a remote."""

START_SECONDS = 600
DEAD_PROXY = "http://127.0.0.1:9"
"""Nothing listens at the discard port, so a download fails at once, whatever network the machine has."""


class Refused(Exception):
    """The WebUI answered with an HTTP error. status: its number; body: its text."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body[:2000]}")
        self.status = status
        self.body = body


def interpreter(folder: Path) -> str:
    """The Python of the WebUI: SGOOL_WEBUI_PYTHON, else that of the WebUI's venv, else the one that runs the tests."""
    own = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return os.environ.get("SGOOL_WEBUI_PYTHON") or (str(own) if own.exists() else sys.executable)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class WebUI:
    """One WebUI process. Its settings, models, extensions and pictures are in `home`, which is deleted at the end.

    extension: False starts the WebUI with only its built-in extensions. more: folders of other extensions.
    """

    def __init__(
        self,
        folder: Path,
        home: Path,
        flags: Sequence[str] = (),
        *,
        extension: bool = True,
        more: Sequence[Path] = (),
    ) -> None:
        self.folder, self.home, self.port = folder, home, free_port()
        self.outputs = home / HOST.outputs
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "webui.log"
        for part in ("extensions", "models/Stable-diffusion", "tmp"):
            (home / part).mkdir(parents=True, exist_ok=True)
        HOST.provide(home / "models")
        for name in LINKED:
            if (CHECKOUT / name).exists():
                link = home / "extensions" / NAME / name
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(CHECKOUT / name)
        for other in (PROBE, *more):
            (home / "extensions" / other.name).symlink_to(other)
        (home / "config.json").write_text(json.dumps(OPTIONS))
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(home / "tmp"),
            **{name: DEAD_PROXY for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")},
            "no_proxy": "127.0.0.1,localhost",
            "NO_PROXY": "127.0.0.1,localhost",
            "COMMANDLINE_ARGS": "",
        }
        environment.pop("SGOOL_MODELS", None)
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as users start it, or every start compiles the extension
        if not extension:
            flags = ("--disable-extra-extensions", *flags)
            if HOST is AUTOMATIC1111:
                # The tiny model's configuration names a class of ours, which the extension makes importable.
                environment["PYTHONPATH"] = str(CHECKOUT)
        flags = [*FLAGS, *(flag.format(folder=folder) for flag in HOST.flags), *flags]
        command = [interpreter(folder), "launch.py", *flags, "--port", str(self.port), "--data-dir", str(home)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"The WebUI ended at once:\n{self.output()[-4000:]}")
            # Before this line appears the server has no routes, and a request can make the start fail.
            if "Startup time:" in self.output():
                with contextlib.suppress(OSError, Refused):
                    self.get("/sdapi/v1/options")
                    return
            time.sleep(0.5)
        raise RuntimeError(f"The WebUI was not ready after {START_SECONDS} s:\n{self.output()[-4000:]}")

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
                break
        keep = os.environ.get("SGOOL_WEBUI_LOG")
        if keep and self.log.exists():
            with open(keep, "ab") as kept:
                kept.write(self.log.read_bytes())
        shutil.rmtree(self.home, ignore_errors=True)

    def output(self) -> str:
        """What the WebUI has printed so far."""
        return self.log.read_text(errors="replace")

    def call(self, path: str, body: Any = None, timeout: float = 1800) -> Any:
        """The JSON answer to a GET, or to a POST if there is a body. Raises Refused on an HTTP error."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from None

    def get(self, path: str) -> Any:
        return self.call(path)

    def post(self, path: str, body: Any, timeout: float = 1800) -> Any:
        return self.call(path, body, timeout)

    def needs(self, *options: str, sampler: str = "", schedule: str = "", script: str = "") -> None:
        """Skip the test where the program has no such option, sampler, schedule type or script (by its title)."""
        lacking = [name for name in options if name not in self.get("/sdapi/v1/options")]
        if script and script.lower() not in [each["name"] for each in self.get("/sdapi/v1/script-info")]:
            lacking.append(script)
        for kind, name, key in (("samplers", sampler, "name"), ("schedulers", schedule, "label")):
            if name and name not in [each[key] for each in self.get(f"/sdapi/v1/{kind}")]:
                lacking.append(name)
        if lacking and (script or HOST is not AUTOMATIC1111):
            pytest.skip(f"{HOST.name} has no {', '.join(lacking)}")

    def options(self, **values: Any) -> None:
        self.post("/sdapi/v1/options", values)


class Pictures:
    """An answer of txt2img or img2img. encoded: base64 texts; info: the parsed info; texts: one infotext per image."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.encoded: list[str] = answer["images"]
        self.info: dict[str, Any] = json.loads(answer["info"])
        self.texts: list[str] = self.info["infotexts"]

    def __len__(self) -> int:
        return len(self.encoded)

    def image(self, index: int = 0) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(self.encoded[index]))).convert("RGB")


def encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


ON_GPU = bool(os.environ.get("SGOOL_WEBUI_GPU"))
"""Whether the WebUI runs on its GPU in half precision; otherwise it runs on the CPU."""

FLAGS = (
    "--skip-prepare-environment",
    "--api",
    "--disable-console-progressbars",
    *(() if ON_GPU else ("--skip-torch-cuda-test", *HOST.cpu)),
)

OPTIONS = {
    "sd_model_checkpoint": HOST.checkpoint,
    "show_progress_every_n_steps": 1,
    "show_progress_type": "Full",
    "samples_save": True,
    "grid_save": False,
    "return_grid": False,
    # The WebUI's own default, stated because the tests compare pictures.
    "randn_source": "CPU",
    **HOST.options,
}
