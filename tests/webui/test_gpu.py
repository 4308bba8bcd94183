"""On a GPU (`SGOOL_WEBUI_GPU=1`): half precision, the WebUI's flags for it, and memory that runs out."""

from __future__ import annotations

import pytest
from payloads import BASE, SGOOL, differ, make, outcome
from webui_server import ON_GPU, WebUI

pytestmark = pytest.mark.skipif(not ON_GPU, reason="set SGOOL_WEBUI_GPU=1 to let the WebUI work on its GPU")

FLAGS = [
    (),
    ("--medvram",),
    ("--upcast-sampling",),
    ("--no-half-vae", "--opt-sdp-attention"),
    ("--precision", "half", "--opt-sdp-no-mem-attention"),
    ("--no-half",),
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(flags) or "none")
def test_with_the_flags_of_a_gpu(webui_folder, tmp_path, flags) -> None:
    server = WebUI(webui_folder, tmp_path, flags)
    try:
        plain = make(server, BASE)
        for start in ("seed", "image"):
            found = outcome(make(server, BASE, {**SGOOL, "start": start}))
            assert not found.note
            assert found.iterations == SGOOL["iterations"]
        assert make(server, BASE).encoded == plain.encoded
    finally:
        server.stop()


def test_lowvram_is_refused(webui_folder, tmp_path) -> None:
    server = WebUI(webui_folder, tmp_path, ["--lowvram"])
    try:
        plain, refused = make(server, BASE), make(server, BASE, SGOOL)
        assert "--medvram" in outcome(refused).note
        assert not differ(refused, plain)
    finally:
        server.stop()


def test_the_networks_leave_the_gpu_after_a_run(server) -> None:
    make(server, BASE, SGOOL)
    before = server.get("/sgool-probe/gpu-memory")["allocated"]
    make(server, BASE, SGOOL)
    assert server.get("/sgool-probe/gpu-memory")["allocated"] == before


def test_a_gpu_that_is_full_leaves_the_image_as_it_is(server) -> None:
    """A real failure to allocate, at the first gradient in any choice of memory."""
    plain = make(server, BASE)
    server.post("/sgool-probe/arm", {"kind": "full", "after": 0, "times": 9})
    try:
        failed = make(server, BASE, {**SGOOL, "memory": "fast"})
    finally:
        server.post("/sgool-probe/arm", {})
    assert "ran out of memory" in outcome(failed).note
    assert not differ(failed, plain)
    assert not outcome(make(server, BASE, SGOOL)).note
