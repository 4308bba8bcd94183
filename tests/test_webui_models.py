"""What a run in the WebUI needs is there before the first pass begins, or is told at once."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

import pytest
import torch
from file_server import checkpoint
from huggingface_hub import constants
from modules import scripts, shared

from sgool.saliency import DETECTORS
from sgool.webui import models
from sgool.weights import Weight


class Looks(scripts.Script):
    """Notes what has been told, and what is on the bar, when the first pass begins."""

    def process_before_every_sampling(self, p, *args, **kwargs):
        state = shared.state
        self.seen = list(p.comments), (state.textinfo, state.job_count, state.sampling_step, state.sampling_steps)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "models_dir", lambda: tmp_path / "jane" / "sgool")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "jane" / "sgool"


def fail(*_, **__):
    raise socket.gaierror(-3, "Temporary failure in name resolution")


def test_offline_all_that_is_missing_is_told_once_before_the_first_pass(webui, folder, monkeypatch, capsys):
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    looks, begun = Looks(), time.monotonic()
    p, processed = webui.make({"saliency": "transalnet-res", "guide": "clip", "selector": "clip"}, last=[looks])
    assert time.monotonic() - begun < 20
    (sentence,) = p.comments
    assert looks.seen[0] == [sentence] and capsys.readouterr().err.count("Cannot download") == 1
    for part in ("ViT-B-32", "ViT-B-16", "TranSalNet_Res.pth", str(folder), "spectral", "embedded"):
        assert part in sentence
    note = processed.infotexts[0]["SGOOL note"]
    assert "jane" not in note and "models/sgool" in note
    assert torch.equal(torch.cat(p.latents), torch.cat(webui.make()[0].latents))


@pytest.fixture
def published(server, monkeypatch):
    """A detector with one file, which comes from a local server."""
    server.answers.append(checkpoint())
    weight = Weight("Tiny.pth", server.url, 2, "a.weight", (400, 500))
    kind = replace(DETECTORS["transalnet-res"], load=DETECTORS["spectral"].load, weights=lambda: (weight,))
    monkeypatch.setitem(DETECTORS, "transalnet-res", kind)
    return server


def test_a_download_is_on_the_bar_and_over_before_the_first_pass(webui, folder, published):
    told, looks = [], Looks()
    state = shared.state

    class Watched(type(state)):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "sampling_steps" and value:
                told.append((self.textinfo, self.job_count, self.sampling_step, value))

    state.__class__ = Watched
    _, processed = webui.make({"saliency": "transalnet-res"}, first=[looks])
    size = len(checkpoint())
    downloads = [each for each in told if str(each[0]).startswith("SGOOL downloads Tiny.pth: ")]
    assert downloads and all(count == 1 and total == size for _, count, _, total in downloads)
    assert downloads[-1][2] == size and "MB" in downloads[-1][0]
    assert (folder / "Tiny.pth").is_file() and "SGOOL score after" in processed.infotexts[0]
    assert "downloads" not in str(looks.seen[1][0]) and looks.seen[1][3] != size


@pytest.mark.parametrize("how", ["interrupted", "skipped"])
def test_interrupt_and_skip_stop_a_download(webui, folder, published, how):
    """What has arrived is kept for the next time, and nothing is told of a failure."""
    published.hold.clear()  # the transfer stalls

    def press():
        time.sleep(1.5)
        setattr(shared.state, how, True)

    threading.Thread(target=press).start()
    begun = time.monotonic()
    p, _ = webui.make({"saliency": "transalnet-res"})
    published.hold.set()
    assert time.monotonic() - begun < 20
    assert [sentence for sentence in p.comments] == [
        "SGOOL was stopped while it downloaded its networks; what has arrived is kept."
    ]
    assert not (folder / "Tiny.pth").is_file()


def test_an_unknown_name_is_told_before_the_first_pass_with_its_field(webui, folder):
    looks = Looks()
    p, _ = webui.make({"guide": "clip:ViT-B-32/no-such-weights"}, last=[looks])
    (sentence,) = p.comments
    assert looks.seen[0] == [sentence] and "Guide" in sentence and "laion2b_e16" in sentence
