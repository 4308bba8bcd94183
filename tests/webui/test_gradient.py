"""In the running program: the gradient is right in every memory setting, and a run begins with the first pass."""

from __future__ import annotations

import numpy as np
import pytest
from payloads import BASE, IMG2IMG, INPAINT, SGOOL, make, outcome

ONCE = {**SGOOL, "iterations": 1, "steps": 3, "cutouts": 1, "memory": "fast"}

CASES = {
    "plain": BASE,
    "AND": {**BASE, "prompt": "a car AND a small frog :0.7"},
    "without a negative prompt": {**BASE, "cfg_scale": 1.0},
    "inpainting": INPAINT,
    "img2img": IMG2IMG,
}


@pytest.fixture(params=CASES)
def measured(request, server):
    return measure(server, CASES[request.param], decoder=request.param in ("plain", "inpainting"))


def measure(server, payload, decoder=False):
    """What the probe has measured in a run; of the decoder only if told, because that takes long."""
    words, bracket, tags = payload["prompt"].partition("<")
    asked = "gradients of eps and image" if decoder else "gradient"
    answer = make(server, {**payload, "prompt": f"{words}, {asked}{bracket}{tags}"}, ONCE)
    assert not outcome(answer).note
    return server.get("/sgool-probe/gradients")[-1]


def apart(one, other):
    """The largest difference of two gradients, relative to their size."""
    one, other = np.array(one), np.array(other)
    return np.abs(one - other).max() / np.sqrt(np.square(other).mean())


def test_the_gradient(measured):
    right(measured)


def test_the_gradient_with_lora(server, lora):
    right(measure(server, {**BASE, "prompt": f"a small frog <lora:{lora}:0.5>"}))


def right(measured):
    """The gradient is the same with and without recomputation, and that of the differences."""
    memory = measured["memory"]
    # What is recomputed is evaluated again: with "balanced" the decoder, with "low" the network as well.
    for name, reference, recomputed in (("balanced", "fast", [1]), ("low", "low, all kept", [0, 1])):
        one, other = memory[name], memory[reference]
        for part in range(len(one["layers"])):
            assert (one["layers"][part] > 1.5 * other["layers"][part]) == (part in recomputed)
        for which in one.keys() - {"layers", "same values"}:
            assert apart(one[which], other[which]) < 1e-6, (name, which)
    # One prompt after another is rounded otherwise.
    assert apart(memory["low"]["eps"], memory["fast"]["eps"]) < 1e-3
    assert all(all(each["same values"]) for each in memory.values())
    for which, pairs in measured["differences"].items():
        for difference, said in pairs:
            assert said == pytest.approx(difference, rel=3e-3), which
