"""SGOOL and After Detailer in one generation. SGOOL_WEBUI_ADETAILER names the latter's checkout.

The WebUI's interpreter must have what After Detailer needs (ultralytics, rich). No weights are downloaded: an untrained
detector, told to be sure of itself, finds something in every picture.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from payloads import BASE, HIRES, SGOOL, differ, make, outcome
from test_places import ZOOM, kept
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
    assert both.output()[lines:].count("SGOOL: your image") == 1
    found = outcome(together)
    assert found == outcome(sgool)
    assert found.better
    assert "ADetailer model: untrained.pt" in together.texts[0]
    assert differ(together, sgool)
    assert differ(together, adetailer)
    assert made().encoded == plain.encoded


FINDER = {"ad_model": "untrained.pt", "ad_confidence": 0.01, "ad_mask_k": 2}


def test_the_same_pass_gives_the_same_pixels_and_takes_as_long(both):
    """With the same picture, mask, blur, padding, prompt, seed and strength, handed to both as After Detailer has them.

    The ratio of the times is printed; `docs/adetailer.md` says what it was.
    """
    both.options(ad_only_selected_scripts=True)
    ratios = []
    for payload in (BASE, {**BASE, "sampler_name": "Euler a"}, HIRES):
        scripts = {"ADetailer": {"args": [True, False, FINDER]}, "SGOOL probe": {"args": ["compare"]}}
        make(both, {**payload, "alwayson_scripts": scripts})
        passes = both.get("/sgool-probe/compared")
        assert len(passes) == 2
        for each in passes:
            print(each)
            assert each["difference"] == 0 and each["painted"] > 100
            ratios.append(min(each["ours"]) / min(each["theirs"]))
    print("ours / theirs:", [round(ratio, 3) for ratio in ratios])
    assert 0.4 < sorted(ratios)[len(ratios) // 2] < 1.3


def test_both_in_one_generation_each_does_its_own(both):
    ours = {"args": [{**ZOOM, "zoom_places": 1}]}
    theirs = {"args": [True, False, FINDER]}

    def made(**scripts):
        return make(both, {**BASE, "alwayson_scripts": scripts})

    plain = made()
    together = made(SGOOL=ours, ADetailer=theirs)
    assert kept(together) == (1, 1) and "ADetailer model: untrained.pt" in together.texts[0]
    assert "SGOOL note" not in together.texts[0]
    for one in (made(SGOOL=ours), made(ADetailer=theirs)):
        assert differ(one, plain) and differ(one, together)
    assert made().encoded == plain.encoded
