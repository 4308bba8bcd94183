from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from file_server import Server

from sgool.backends.diffusers import DiffusersBackend, load_backend
from sgool.generate import Critics, load_critics
from sgool.needs import needs
from sgool.presets import resolve

sys.path.insert(0, str(Path(__file__).parent / "fake_webui"))  # where `modules`, gradio and k_diffusion come from


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks are so small that a second thread costs more than it gives."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backend() -> DiffusersBackend:
    try:
        import diffusers  # noqa: F401
    except ImportError as error:  # also an old one beside a huggingface_hub that it does not know
        pytest.skip(f"needs diffusers 0.29 or newer: {error}")
    return load_backend("tiny")


@pytest.fixture(scope="session")
def larger_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder prepared for training the larger world. Copy it to train in it."""
    pytest.importorskip("PIL")
    from larger_work import prepared

    return prepared(tmp_path_factory.mktemp("larger"))


@pytest.fixture(scope="session")
def critics() -> Critics:
    return load_critics(needs(resolve({}, model="tiny")), Path("unused"))


@pytest.fixture
def webui(backend: DiffusersBackend) -> Iterator[SimpleNamespace]:
    """The fake WebUI, fresh, with the embedded model loaded: its modules by name, and `make` to generate."""
    from fake_webui.model import Checkpoint
    from modules import (
        errors,
        images,
        processing,
        script_callbacks,
        scripts,
        sd_samplers_cfg_denoiser,
        sd_samplers_common,
        shared,
    )

    from sgool.webui import gallery
    from sgool.webui.script import SgoolScript

    shared.opts, shared.state = type(shared.opts)(), type(shared.state)()
    for module in (processing, sd_samplers_cfg_denoiser, sd_samplers_common):
        module.opts, module.state = shared.opts, shared.state
    processing.params_txt.clear()
    shared.sd_model = Checkpoint(backend)
    images.saved.clear()
    errors.reported.clear()
    gallery.runs.clear()

    def make(
        *args: Any,
        kind: str = "Txt2Img",
        prompt: str = "a red car",
        first: Sequence[Any] = (),
        last: Sequence[Any] = (),
        selected: int = 0,
        **options: Any,
    ) -> Any:
        """(processing object, Processed) of a generation, with `args` for SGOOL; {} stands for small settings.

        first, last: other scripts, called before and after it; selected: the number of one below the accordions.
        """
        p = getattr(processing, f"StableDiffusionProcessing{kind}")(prompt=prompt)
        for name, value in options.items():
            setattr(p, name, value)
        script = SgoolScript()
        script.is_img2img, script.tabname = kind == "Img2Img", kind.lower()
        own = ({**SMALL, **args[0]},) if args and isinstance(args[0], dict) else args
        p.script_args = (selected, *own)
        p.scripts = scripts.ScriptRunner([*first, *([script] if args else []), *last])
        return p, processing.process_images(p)

    names = dict(errors=errors, images=images, processing=processing, callbacks=script_callbacks, scripts=scripts)
    yield SimpleNamespace(make=make, shared=shared, **names)


SMALL = {
    "iterations": 1,
    "steps": 2,
    "cutouts": 1,
    "saliency": "spectral",
    "guide": "embedded",
    "selector": "embedded",
}
"""What the fake WebUI's tests run with where they say nothing else."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A file server with a small model file; downloads do not really pause."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("sgool.download.sleep", server.slept.append)
    yield server
    server.hold.set()
    server.shutdown()
    server.server_close()
    thread.join()
