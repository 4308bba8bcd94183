"""Interrupt and Skip, faults, and what is left afterwards: nothing."""

from __future__ import annotations

import threading
import time

import pytest
from payloads import BASE, HIRES, SGOOL, differ, difference, make, outcome

from sgool.weights import WEIGHTS

LONG = {**SGOOL, "iterations": 200, "patience": 0}


def while_running(webui, payload, at, action):
    """Run with SGOOL in the background and call the action as soon as the progress says `at`: (answer, texts seen)."""
    answers, texts = [], []
    thread = threading.Thread(target=lambda: answers.append(make(webui, payload, LONG)))
    thread.start()
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and thread.is_alive():
            progress = webui.get("/sdapi/v1/progress?skip_current_image=false")
            text = progress["textinfo"] or ""
            if text and (not texts or texts[-1][0] != text):
                texts.append((text, progress["progress"], bool(progress["current_image"])))
            if at in text:
                break
            time.sleep(0.1)
    finally:
        webui.post(f"/sdapi/v1/{action}", {})
        begun = time.monotonic()
        thread.join(120)
    assert answers, "the run did not end"
    assert time.monotonic() - begun < 30
    return answers[0], texts


def test_interrupt_keeps_the_best_so_far_and_progress_is_told(webui):
    plain = make(webui, BASE)
    answer, texts = while_running(webui, BASE, "SGOOL 3/200", "interrupt")
    found = outcome(answer)
    assert 1 <= found.iterations <= 20
    assert found.after >= found.before
    assert differ(answer, plain) == found.better
    told = [text for text in texts if text[0].startswith("SGOOL")]
    assert any("score" in text and "->" in text for text, _, _ in told)
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    assert any(preview for _, _, preview in told)
    assert make(webui, BASE).encoded == plain.encoded


def test_skip_gives_the_original(webui):
    plain = make(webui, BASE)
    answer, _ = while_running(webui, BASE, "SGOOL 2/200", "skip")
    assert not differ(answer, plain)
    assert make(webui, BASE).encoded == plain.encoded


def test_interrupt_in_a_hires_first_pass(webui):
    answer, _ = while_running(webui, {**HIRES, "hr_upscaler": "Latent"}, "SGOOL 1/200", "interrupt")
    assert len(answer) == 1
    assert make(webui, BASE, SGOOL)


def test_interrupt_of_a_batch(webui):
    answer, _ = while_running(webui, {**BASE, "batch_size": 2}, "SGOOL", "interrupt")
    assert 1 <= len(answer) <= 2


@pytest.fixture
def fault(webui):
    yield lambda **what: webui.post("/sgool-probe/arm", what)
    webui.post("/sgool-probe/arm", {})


@pytest.mark.parametrize(
    ("kind", "after", "word"),
    [("nan", 0, "NaN"), ("memory", 0, "memory"), ("error", 0, "mat1"), ("nan", 4, "NaN"), ("memory", 5, "memory")],
)
def test_a_fault_gives_the_original_and_one_sentence(webui, fault, kind, after, word):
    plain, before = make(webui, BASE), webui.get("/sgool-probe/state")
    fault(kind=kind, after=after, times=1_000_000)
    answer = make(webui, BASE, SGOOL)
    fault()
    note = outcome(answer).note
    assert word in note
    assert note in webui.output()
    assert not differ(answer, plain)
    assert same(before, webui.get("/sgool-probe/state"))
    assert make(webui, BASE).encoded == plain.encoded


def test_out_of_memory_once_is_tried_again_one_step_lower(webui, fault):
    reference = make(webui, BASE, {**SGOOL, "memory": "balanced"})
    lines = len(webui.output())
    fault(kind="memory", after=1, times=1)
    answer = make(webui, BASE, {**SGOOL, "memory": "fast"})
    assert "memory" in webui.output()[lines:]
    assert outcome(answer).iterations == SGOOL["iterations"]
    assert difference(answer.image(), reference.image()).mean() < 1


def test_no_network_and_no_weights(webui):
    plain = make(webui, BASE)
    answer = make(webui, BASE, {**SGOOL, "saliency": "transalnet-res"})
    assert not differ(answer, plain)
    assert "TranSalNet_Res.pth" in outcome(answer).note
    assert not list(webui.home.rglob("*.part"))


def test_damaged_weights(webui):
    file = webui.home / "models" / "sgool" / WEIGHTS["transalnet-res"].file
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"not weights")
    plain = make(webui, BASE)
    answer = make(webui, BASE, {**SGOOL, "saliency": "transalnet-res"})
    file.unlink()
    assert not differ(answer, plain)
    assert file.name in outcome(answer).note


def same(before, after):
    """All but the random numbers' state, which any generation moves."""
    return {k: v for k, v in before.items() if k != "rng"} == {k: v for k, v in after.items() if k != "rng"}


def test_nothing_is_left(webui):
    make(webui, BASE)
    before = webui.get("/sgool-probe/state")
    make(webui, BASE, SGOOL)
    after = webui.get("/sgool-probe/state")
    assert same(before, after)
    make(webui, BASE)
    unticked = webui.get("/sgool-probe/state")
    make(webui, BASE, SGOOL)
    assert webui.get("/sgool-probe/state")["rng"] == unticked["rng"]


def test_memory_does_not_grow(webui):
    psutil = pytest.importorskip("psutil")

    def used():
        return psutil.Process(webui.process.pid).memory_info().rss / 2**20

    make(webui, BASE, SGOOL)
    before = used()
    for _ in range(3):
        make(webui, BASE, SGOOL)
    assert used() - before < 30
