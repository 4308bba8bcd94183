"""Images of a batch that are improved together, in the real WebUI."""

from __future__ import annotations

import time

import pytest
from hosts import HOST
from payloads import BASE, PROMPT, SGOOL, difference, make, outcome

CASES = {
    "plain": {},
    "AND": {"prompt": f"{PROMPT} AND a tree :0.5", "negative_prompt": "snow"},
    "schedule": {"prompt": "a [red car:blue frog:0.5] on a table"},
    "hires": {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5, "hr_second_pass_steps": 3, **HOST.hires},
}


@pytest.mark.parametrize("case", CASES)
def test_each_comes_to_what_it_comes_to_one_by_one(server, case, capsys):
    """With memory "low" one image is improved after another."""
    payload = {**BASE, **CASES[case], "batch_size": 3}
    made, seconds = {}, {}
    for memory in ("balanced", "low", "balanced"):
        begun = time.monotonic()
        made[memory] = make(server, payload, {**SGOOL, "iterations": 1, "start": "seed", "memory": memory})
        seconds[memory] = time.monotonic() - begun
    with capsys.disabled():
        print(f"\n{case}: together {seconds['balanced']:.1f} s, one by one with memory low {seconds['low']:.1f} s")
    for i in range(3):
        together, alone = outcome(made["balanced"], i), outcome(made["low"], i)
        assert together.before == pytest.approx(alone.before, abs=1e-3)
        assert together.after == pytest.approx(alone.after, abs=5e-3)
        assert together.iterations == alone.iterations == 1
        assert difference(made["balanced"].image(i), made["low"].image(i)).mean() < 3
