"""SGOOL and After Detailer in one generation. SGOOL_WEBUI_ADETAILER names the latter's checkout.

The WebUI's interpreter must have what After Detailer needs (ultralytics, rich). No weights are downloaded: an untrained
detector, told to be sure of itself, finds something in every picture.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from payloads import BASE, SGOOL, differ, make, outcome
from webui_server import WebUI, interpreter

DETECTOR = """
import sys, torch, ultralytics
torch.manual_seed(0)
model = ultralytics.YOLO("yolov8n.yaml")
coarse = model.model.model[-1].cv3[-1][-1]  # one box for every 32 pixels
torch.nn.init.constant_(coarse.bias, 1.0)
model.save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def both(webui_folder, tmp_path_factory):
    """A WebUI with both extensions."""
    checkout = os.environ.get("SGOOL_WEBUI_ADETAILER")
    if not checkout:
        pytest.skip("set SGOOL_WEBUI_ADETAILER to a checkout of After Detailer to run this")
    home = tmp_path_factory.mktemp("adetailer")
    detector = home / "models" / "adetailer" / "untrained.pt"
    detector.parent.mkdir(parents=True)
    subprocess.run([interpreter(webui_folder), "-c", DETECTOR, str(detector)], check=True, cwd=home)
    server = WebUI(webui_folder, home, ["--ad-no-huggingface"], more=[Path(checkout)])
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("selected_only", [True, False], ids=["selected scripts only", "all scripts"])
def test_both_take_effect_and_sgool_stays_off_in_the_inner_passes(both, selected_only):
    """After Detailer can be told to take all scripts along into its passes; SGOOL keeps out by itself then."""
    both.options(ad_only_selected_scripts=selected_only)
    finder = {"ad_model": "untrained.pt", "ad_confidence": 0.01, "ad_mask_k": 2, "ad_denoising_strength": 0.5}
    # Two steps of the WebUI's sampler make a poor image, which eight of SGOOL's own will beat.
    ours, theirs = {"args": [{**SGOOL, "steps": 8}]}, {"args": [True, False, finder]}

    def made(**scripts):
        return make(both, {**BASE, "steps": 2, "alwayson_scripts": scripts})

    plain, sgool, adetailer = made(), made(SGOOL=ours), made(ADetailer=theirs)
    assert differ(adetailer, plain), "After Detailer has painted nothing"
    lines = len(both.output())
    together = made(SGOOL=ours, ADetailer=theirs)
    assert both.output()[lines:].count("SGOOL: score") == 1
    found = outcome(together)
    assert found == outcome(sgool)
    assert found.better
    assert "ADetailer model: untrained.pt" in together.texts[0]
    assert differ(together, sgool)
    assert differ(together, adetailer)
    assert made().encoded == plain.encoded
