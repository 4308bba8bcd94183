"""Forge, Forge Neo and reForge: what SGOOL refuses there, so that no wrong gradient changes an image."""

from __future__ import annotations

import pytest
import random_checkpoint
from hosts import AUTOMATIC1111, not_in
from payloads import BASE, SGOOL, differ, make, outcome, picture
from test_places import ZOOM, kept
from webui_server import encode

pytestmark = not_in(AUTOMATIC1111, "ControlNet is an extension there")


@pytest.fixture(scope="module")
def controlled(server):
    """ControlNet's arguments for a network of random weights."""
    name = random_checkpoint.CONTROLNET.removesuffix(".safetensors")
    (model,) = (each for each in server.get("/controlnet/model_list")["model_list"] if each.startswith(name))
    return {"ControlNet": {"args": [{"enabled": True, "module": "None", "model": model, "image": encode(picture())}]}}


def test_controlnet(server, controlled):
    plain = make(server, {**BASE, "alwayson_scripts": controlled})
    assert differ(plain, make(server, BASE))
    answer = make(server, {**BASE, "alwayson_scripts": {**controlled, "SGOOL": {"args": [SGOOL]}}})
    assert "ControlNet" in outcome(answer).note and outcome(answer).iterations == -1
    assert not differ(answer, plain)
    assert not outcome(make(server, BASE, SGOOL)).note, "the next image is none of it"


def test_zoom_beside_controlnet(server, controlled):
    """Its places need no gradient."""
    plain = make(server, {**BASE, "alwayson_scripts": controlled})
    answer = make(
        server, {**BASE, "alwayson_scripts": {**controlled, "SGOOL": {"args": [{**ZOOM, "zoom_largest": 1.0}]}}}
    )
    assert kept(answer)[0] > 0 and differ(answer, plain)
    again = make(server, {**BASE, "alwayson_scripts": controlled})
    assert again.encoded[0] == plain.encoded[0]
