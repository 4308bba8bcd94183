"""The noise that was found, sampled once more by the user's own sampler."""

from __future__ import annotations

import re

import pytest
from payloads import BASE, HIRES, SGOOL, differ, make, outcome

YOURS = {**SGOOL, "sampler": "bdia", "render": "yours", "strength": 1.0}


@pytest.mark.parametrize(
    "sampler", ["Euler a", "DPM++ 2M", "DPM++ 2M SDE", "DPM++ SDE", "Heun", "UniPC", "LCM", "DDIM", "Restart"]
)
def test_of_the_seeds_noise_the_users_sampler_makes_the_users_image(server, sampler):
    """Every image of a batch has noises of its own."""
    server.needs(sampler=sampler)
    payload = {**BASE, "prompt": f"{BASE['prompt']} rendered", "sampler_name": sampler, "batch_size": 2, "steps": 8}
    make(server, payload, {**YOURS, "iterations": 0, "candidates": 2})
    assert max(server.get("/sgool-probe/renders")[-2:]) < 1e-4


@pytest.mark.parametrize("payload", [BASE, HIRES], ids=["image", "hires"])
def test_the_noise_that_was_found(server, payload):
    """The WebUI is afterwards as it was."""
    payload = {**payload, "sampler_name": "DPM++ SDE", "steps": 8}
    plain = make(server, payload)
    before = server.get("/sgool-probe/state")
    answer = make(server, payload, {**YOURS, "iterations": 4})
    after = server.get("/sgool-probe/state")
    assert {**after, "rng": ""} == {**before, "rng": ""}
    found = outcome(answer)
    assert not found.note and found.iterations == 4
    told = re.search(r'SGOOL by your sampler: "([\d.]+), (kept|not kept)"', answer.texts[0])
    assert told and "SGOOL Final image: yours" in answer.texts[0]
    assert (float(told[1]) == pytest.approx(found.after)) == (told[2] == "kept")
    assert make(server, payload).encoded == plain.encoded
    assert differ(answer, plain) == (found.after > found.before)
