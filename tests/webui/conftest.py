"""Tests in a real WebUI: `SGOOL_WEBUI=<its folder> pytest -m webui`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import HOST

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="set SGOOL_WEBUI to the folder of a WebUI to run this")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.webui)
            if not os.environ.get("SGOOL_WEBUI"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def webui_folder() -> Path:
    folder = Path(os.environ["SGOOL_WEBUI"]).resolve()
    assert (folder / "launch.py").exists(), f"SGOOL_WEBUI={folder} holds no launch.py"
    return folder


@pytest.fixture(scope="session")
def without(webui_folder, tmp_path_factory):
    """What the WebUI makes of every payload of UNTICKED without the extension: {name: Pictures}."""
    from payloads import UNTICKED, make_anew
    from webui_server import WebUI

    server = WebUI(webui_folder, tmp_path_factory.mktemp("without"), extension=False)
    try:
        return {name: make_anew(server, payload) for name, payload in UNTICKED.items()}
    finally:
        server.stop()


@pytest.fixture(scope="session")
def server(webui_folder, tmp_path_factory) -> Iterator:
    """The WebUI with the extension, for all tests."""
    from payloads import BASE, make
    from webui_server import WebUI

    running = WebUI(webui_folder, tmp_path_factory.mktemp("webui"))
    try:
        make(running, BASE)  # some load the model for the first image
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def lora(server):
    """A LoRA file of random weights for one attention of the network, in kohya's key names."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    checkpoint = server.home / "models" / "Stable-diffusion" / HOST.checkpoint
    with safe_open(checkpoint, "pt") as weights:
        keys = [key for key in weights.keys() if key.endswith("attn1.to_q.weight")]  # noqa: SIM118
        block = next(key for key in keys if "input_blocks" in key)
        out, inner = weights.get_slice(block).get_shape()
    name = "lora_unet_" + block.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
    folder = server.home / "models" / "Lora"
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            f"{name}.lora_down.weight": torch.randn(4, inner, generator=generator),
            f"{name}.lora_up.weight": torch.randn(out, 4, generator=generator),
            f"{name}.alpha": torch.tensor(4.0),
        },
        folder / "random.safetensors",
    )
    server.post("/sdapi/v1/refresh-loras", {})
    return "random"
