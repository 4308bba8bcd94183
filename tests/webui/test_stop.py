"""Interrupt, Skip and faults. Nothing is left behind afterwards."""

from __future__ import annotations

import json
import threading
import time

import pytest
from payloads import BASE, HIRES, IMG2IMG, SGOOL, differ, difference, make, outcome

from sgool.saliency.transalnet import WEIGHTS

LONG = {**SGOOL, "iterations": 200, "patience": 0}


def while_running(server, payload, at, action, sgool=LONG, first=lambda: None):
    """Run with SGOOL in the background. As soon as the progress says `at`, call `first` and then the action.

    Returns (answer, [(progress text, progress, preview), ...]).
    """
    answers, texts = [], []
    thread = threading.Thread(target=lambda: answers.append(make(server, payload, sgool)))
    thread.start()
    deadline = time.monotonic() + 600
    try:
        while time.monotonic() < deadline and thread.is_alive():
            progress = server.get("/sdapi/v1/progress?skip_current_image=false")
            text = progress["textinfo"] or ""
            if text and (not texts or texts[-1][0] != text):
                texts.append((text, progress["progress"], progress["current_image"]))
            if at in text:
                first()
                break
            time.sleep(0.1)
    finally:
        server.post(f"/sdapi/v1/{action}", {})
        thread.join(120)  # all of the 200 iterations would take longer
    assert answers, "the run did not end"
    return answers[0], texts


def test_interrupt_keeps_the_best_image_and_progress_is_shown(server):
    plain = make(server, BASE)
    answer, texts = while_running(server, BASE, "SGOOL 3/200", "interrupt")
    found = outcome(answer)
    assert 1 <= found.iterations <= 20
    assert found.after >= found.before
    assert differ(answer, plain) == found.better
    told = [text for text in texts if text[0].startswith("SGOOL")]
    assert any("your image 0." in text and "best 0." in text for text, _, _ in told)
    shares = [share for _, share, _ in told[1:]]  # the first share may be from before the run, although the text is not
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    # The first preview is still that of the first pass. Then come SGOOL's own images, all different.
    assert len({preview for _, _, preview in told}) > 2
    assert make(server, BASE).encoded == plain.encoded


@pytest.mark.parametrize("payload", [BASE, HIRES], ids=["alone", "hires"])
def test_skip_gives_the_original(server, payload):
    plain = make(server, payload)
    answer, _ = while_running(server, payload, "SGOOL 2/200", "skip")
    assert not differ(answer, plain)
    assert "skipped" in outcome(answer).note
    assert make(server, payload).encoded == plain.encoded


def test_interrupt_in_a_hires_first_pass(server):
    answer, _ = while_running(server, HIRES, "SGOOL 1/200", "interrupt")
    assert len(answer) == 1
    assert make(server, BASE, SGOOL)


@pytest.fixture
def saved(server):
    """A function that lists the names of the files saved since the start of the test."""
    folder = server.outputs
    before = set(folder.rglob("*.png"))
    server.options(sgool_save_before=True)
    yield lambda: sorted(path.name for path in set(folder.rglob("*.png")) - before)
    server.options(sgool_save_before=False)


@pytest.mark.parametrize(("action", "batches"), [("interrupt", 2), ("skip", 1)])
def test_images_of_a_stopped_batch_are_complete_and_saved(server, saved, action, batches):
    payload = {**BASE, "batch_size": 2}
    plain = make(server, payload)
    payload |= {"n_iter": batches, "save_images": True}
    answer, _ = while_running(server, payload, "SGOOL image 1/", action)
    assert len(answer) == 2
    assert action in outcome(answer, 1).note
    assert not difference(answer.image(1), plain.image(1)).any()
    names = [name.partition("-sgool-")[2] for name in saved()]
    assert names.count("") == 2
    assert names.count("before.png") == (outcome(answer).iterations >= 0)


def test_the_webui_saves_the_users_settings_during_a_run(server):
    """A change of one setting saves all settings."""
    saved = []

    def change(**values):
        server.options(**values)
        saved.append(json.loads((server.home / "config.json").read_text()))

    own = {"skip_early_cond": 0.0, "s_min_uncond_all": False, "batch_cond_uncond": True}
    server.needs(*own)
    change(**own)
    try:
        low = {**LONG, "memory": "low"}
        while_running(server, BASE, "SGOOL 1/200", "interrupt", low, lambda: change(skip_early_cond=0.25))
        before, during = saved
        assert during == {**before, "skip_early_cond": 0.25}
        after = server.get("/sdapi/v1/options")
        assert {name: after[name] for name in own} == {**own, "skip_early_cond": 0.25}
    finally:
        server.options(**own)


def test_interrupt_in_a_loopback_of_several_batches(server):
    """Loopback returns no image, because it has none yet. The image itself is saved."""
    payload = {**IMG2IMG, "n_iter": 2, "script_name": "Loopback", "script_args": [2, 0.5, "Linear", "None"]}
    folder = server.outputs
    before = set(folder.rglob("*.png"))
    answer, _ = while_running(server, {**payload, "save_images": True}, "SGOOL 1/200", "interrupt")
    assert len(answer) == 0
    assert len(set(folder.rglob("*.png")) - before) == 1


def test_progress_does_not_go_back_between_images(server):
    """Covers a whole run with candidates, updates and a second image."""
    thread = threading.Thread(
        target=make, args=(server, {**BASE, "batch_size": 2}, {**SGOOL, "candidates": 3, "iterations": 3})
    )
    thread.start()
    told = []
    while thread.is_alive():
        answer = server.get("/sdapi/v1/progress?skip_current_image=true")
        if "your image" in (answer["textinfo"] or ""):
            told.append((answer["progress"], answer["textinfo"]))
        time.sleep(0.02)
    shares = [share for share, _ in told[1:]]  # the first share may be from before the run, although the text is not
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert shares[-1] > 0.9
    assert {text.partition(",")[0] for _, text in told} == {"SGOOL image 1/2", "SGOOL image 2/2"}


@pytest.fixture
def fault(server):
    yield lambda **what: server.post("/sgool-probe/arm", what)
    server.post("/sgool-probe/arm", {})


@pytest.mark.parametrize(
    ("kind", "after", "word"),
    [("nan", 0, "NaN"), ("memory", 0, "memory"), ("error", 0, "mat1"), ("nan", 4, "NaN"), ("memory", 5, "memory")],
)
def test_a_fault_gives_the_original_and_one_sentence(server, fault, kind, after, word):
    plain, before = make(server, BASE), server.get("/sgool-probe/state")
    fault(kind=kind, after=after, times=1_000_000)
    answer = make(server, BASE, SGOOL)
    fault()
    note = outcome(answer).note
    assert word in note
    assert note in server.output()
    assert not differ(answer, plain)
    assert same(before, server.get("/sgool-probe/state"))
    assert make(server, BASE).encoded == plain.encoded


def test_out_of_memory_is_retried_with_the_next_lower_setting(server, fault):
    reference = make(server, BASE, {**SGOOL, "memory": "balanced"})
    lines = len(server.output())
    fault(kind="memory", after=1, times=1)
    answer = make(server, BASE, {**SGOOL, "memory": "fast"})
    assert "memory" in server.output()[lines:]
    assert outcome(answer).iterations == SGOOL["iterations"]
    assert difference(answer.image(), reference.image()).mean() < 1


def test_no_network_and_no_weights(server):
    plain = make(server, BASE)
    answer = make(server, BASE, {**SGOOL, "saliency": "transalnet-res"})
    assert not differ(answer, plain)
    assert "TranSalNet_Res.pth" in outcome(answer).note
    assert not list(server.home.rglob("*.part"))


def test_damaged_weights(server):
    file = server.home / "models" / "sgool" / WEIGHTS["res"].file
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"not weights")
    plain = make(server, BASE)
    answer = make(server, BASE, {**SGOOL, "saliency": "transalnet-res"})
    file.unlink()
    assert not differ(answer, plain)
    assert file.name in outcome(answer).note


def same(before, after):
    """Whether all is the same but the state of the random numbers, which any generation changes."""
    return {k: v for k, v in before.items() if k != "rng"} == {k: v for k, v in after.items() if k != "rng"}


def test_nothing_is_left_behind(server):
    make(server, BASE)
    before = server.get("/sgool-probe/state")
    make(server, BASE, SGOOL)
    after = server.get("/sgool-probe/state")
    assert same(before, after)
    make(server, BASE)
    unticked = server.get("/sgool-probe/state")
    make(server, BASE, SGOOL)
    assert server.get("/sgool-probe/state")["rng"] == unticked["rng"]


def test_memory_does_not_grow(server):
    psutil = pytest.importorskip("psutil")

    def used():
        return psutil.Process(server.process.pid).memory_info().rss / 2**20

    for _ in range(3):  # memory freed by earlier tests is neither returned nor reused at once
        make(server, BASE, SGOOL)
    before = used()
    for _ in range(3):
        make(server, BASE, SGOOL)
    assert used() - before < 30
