"""What a run needs: found without a network, fetched at once, and told in one sentence where it cannot be had."""

from __future__ import annotations

import io
import socket
import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import pytest
import torch
from file_server import Server, quiet
from huggingface_hub import constants

from sgool import generate
from sgool.download import Transfer, unreachable
from sgool.errors import SgoolError
from sgool.guidance import CRITICS
from sgool.needs import Needs, fetch, missing, needs
from sgool.result import Stop
from sgool.saliency import DETECTORS, faces
from sgool.settings import Settings
from sgool.weights import Weight

DEFAULT = needs(Settings())


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No name can be looked up; the names that were."""
    asked: list[str] = []

    def fail(host: str, *_: object, **__: object) -> NoReturn:
        asked.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return asked


def test_settings_tell_what_is_needed() -> None:
    assert Needs("clip", "clip", "transalnet-res") == DEFAULT
    for values in ({"method": "none"}, {"method": "doodl"}, {"saliency_weight": 0.0}):
        assert needs(Settings.of(values)).detector == "spectral"
    changed = Settings.of({"guide": "embedded", "selector": "clip:ViT-L-14/openai", "saliency": "transalnet-dense"})
    assert needs(changed) == Needs("embedded", "clip:ViT-L-14/openai", "transalnet-dense")
    assert needs(Settings.of({"iterations": 3})) == DEFAULT and hash(DEFAULT)


def test_faces_are_needed_only_where_they_are_looked_for() -> None:
    for values in ({"zoom_by": "faces"}, {"zoom": True}, {"zoom": True, "zoom_by": "phrases"}):
        assert not needs(Settings.of(values)).faces
    wanted = needs(Settings.of({"zoom": True, "zoom_by": "faces"}))
    assert wanted == replace(DEFAULT, faces=True)
    assert wanted.weights == DEFAULT.weights


def test_a_run_does_without_the_face_detectors_file(
    server: Server, small: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = server.url.partition("download")[0]
    net = Weight("net.onnx", f"{root}net.onnx", sha256=sha256(b"net").hexdigest())
    monkeypatch.setattr(faces, "YUNET", net)
    monkeypatch.setattr(faces, "SOURCES", (net,))
    monkeypatch.setattr(faces, "_failed", {})
    wanted = replace(small, faces=True)
    fetch(wanted, tmp_path, quiet)
    assert [path for path, *_ in server.requests] == ["/one.pth", "/two.pth", "/map.pth", "/net.onnx"]
    assert missing(wanted, tmp_path) == [] and not (tmp_path / "net.onnx").exists()
    assert "net.onnx could not be downloaded (127.0.0.1 answers 404" in faces.FaceFinder(tmp_path).note

    assert server.files is not None
    server.files["net.onnx"] = b"net"
    monkeypatch.setattr(faces, "_failed", {})
    fetch(small, tmp_path, quiet)
    assert not (tmp_path / "net.onnx").exists()
    fetch(wanted, tmp_path, quiet)
    assert (tmp_path / "net.onnx").read_bytes() == b"net"


def test_without_a_network_what_faces_need_is_no_reason(tmp_path: Path, offline: list[str]) -> None:
    with pytest.raises(SgoolError) as caught:
        fetch(replace(DEFAULT, faces=True), tmp_path, quiet)
    assert "onnx" not in str(caught.value)
    fetch(Needs("embedded", "embedded", "spectral", faces=True), tmp_path, quiet)


def test_what_is_missing_is_known_without_a_network(tmp_path: Path, offline: list[str]) -> None:
    files = {weight.file for weight in missing(DEFAULT, tmp_path)}
    clips = {"ViT-B-32_laion2b_s34b_b79k.safetensors", "ViT-B-16_laion2b_s34b_b88k.safetensors"}
    assert files == {"TranSalNet_Res.pth"} | clips
    (tmp_path / "TranSalNet_Res.pth").write_bytes(b"")
    assert {weight.file for weight in missing(DEFAULT, tmp_path)} == clips
    assert missing(Needs("embedded", "embedded", "spectral"), tmp_path) == []
    both = Needs("clip:ViT-B-16/laion2b_s34b_b88k", "clip", "spectral")
    assert [weight.file for weight in missing(both, tmp_path)] == ["ViT-B-16_laion2b_s34b_b88k.safetensors"]
    assert not offline


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (replace(DEFAULT, guide="clip:ViT-Z-99/openai"), "no CLIP model named 'ViT-Z-99'; the closest known are ViT-"),
        (replace(DEFAULT, selector="clip:ViT-B-32/weights"), "no pretrained weights 'weights'"),
        (replace(DEFAULT, selector="nobody"), "selector is not valid: there is no critic 'nobody'"),
        (replace(DEFAULT, detector="eyes"), "There is no saliency detector 'eyes'"),
    ],
)
def test_unknown_names_are_told_without_a_network(tmp_path: Path, offline: list[str], wanted: Needs, told: str) -> None:
    for ask in (missing, fetch):
        with pytest.raises(SgoolError) as caught:
            ask(wanted, tmp_path)
        assert told in str(caught.value)
    assert not offline


def test_no_network_is_told_within_seconds_and_in_one_sentence(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    begun = time.monotonic()
    with pytest.raises(SgoolError) as caught:
        fetch(DEFAULT, tmp_path / "models", quiet)
    assert time.monotonic() - begun < 15
    told = str(caught.value)
    for weight in missing(DEFAULT, tmp_path / "models"):
        assert told.count(weight.file) == 1 + (weight.file in weight.url) and told.count(weight.url) == 1
    assert told.startswith("Cannot download ") and "\n" not in told
    assert told.count("huggingface.co cannot be reached: ") == 1 and told.count("Temporary failure") == 2
    assert told.endswith(
        f": connect to the network and try again, or put the files into {tmp_path / 'models'} yourself under these "
        "names, or choose embedded as guide and selector and spectral as saliency detector."
    )
    assert sorted(offline) == ["drive.usercontent.google.com", "huggingface.co"]  # each once


@pytest.mark.parametrize(
    ("wanted", "end"),
    [
        (
            Needs("embedded", "embedded", "transalnet-res"),
            "the file into {} yourself under this name, or choose spectral as saliency",
        ),
        (
            Needs("clip", "embedded", "spectral"),
            "the file into {} yourself under this name, or choose embedded as guide.",
        ),
        (
            Needs("embedded", "clip", "transalnet-dense"),
            "the files into {} yourself under these names, or choose embedded as selector and",
        ),
    ],
)
def test_only_what_helps_is_advised(tmp_path: Path, offline: list[str], wanted: Needs, end: str) -> None:
    with pytest.raises(SgoolError) as caught:
        fetch(wanted, tmp_path, quiet)
    assert end.format(tmp_path) in str(caught.value)


def test_hosts_that_do_not_answer_are_found_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    for name in ("sgool.download.CONNECT", "sgool.download.request.CONNECT"):
        monkeypatch.setattr(name, 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hang.wait(30) and [])
    told: list[Transfer] = []
    begun = time.monotonic()
    away = unreachable(["https://a.invalid/x", "https://b.invalid/y", "https://a.invalid/z"], told.append)
    assert time.monotonic() - begun < 15
    assert away == {host: f"{host} cannot be reached: no answer" for host in ("a.invalid", "b.invalid")}
    assert str(told[0]) == "connecting to a.invalid, b.invalid" and len(told) > 1

    def stop(transfer: Transfer) -> None:
        raise Stop

    with pytest.raises(Stop):
        unreachable(["https://a.invalid/x"], stop)
    hang.set()


def test_a_proxy_answers_for_all(server: Server, monkeypatch: pytest.MonkeyPatch, offline: list[str]) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert unreachable(["https://a.invalid/x"]) == {} and offline == []


def test_a_host_that_answers_is_not_away(server: Server) -> None:
    assert unreachable([server.url, "http://["]) == {}


@pytest.mark.parametrize(
    "endpoint", ["http://[", "mirror", "ftp://mirror", f"https://{'x' * 99}.invalid", "https://a b"]
)
def test_mirror_that_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SgoolError, match=r"Cannot download ViT-B-32_laion2b_s34b_b79k\.safetensors from "):
        fetch(Needs("clip", "embedded", "spectral"), tmp_path, quiet)


def table(**tensors: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


@pytest.fixture
def small(server: Server, monkeypatch: pytest.MonkeyPatch) -> Needs:
    """Needs whose files come from the server."""
    root = server.url.partition("download")[0]
    server.files = {
        name: table(a=torch.full((2,), float(n))) for n, name in enumerate(("one.pth", "two.pth", "map.pth"))
    }

    def weights(variant: str, role: str) -> tuple[Weight, ...]:
        return tuple(Weight(f"{name}.pth", f"{root}{name}.pth", 1, "a", (2,)) for name in variant.split("+"))

    kind = replace(CRITICS["clip"], check=lambda variant: None, weights=weights)
    monkeypatch.setitem(CRITICS, "small", kind)
    found = DETECTORS["spectral"]
    monkeypatch.setitem(DETECTORS, "small", replace(found, weights=lambda: weights("map", "")))
    return Needs("small:one", "small:one+two", "small")


def test_what_is_missing_is_fetched_once_and_is_then_there(server: Server, small: Needs, tmp_path: Path) -> None:
    seen: list[Transfer] = []
    fetch(small, tmp_path, seen.append)
    assert {path.name for path in tmp_path.glob("*.pth")} == {"one.pth", "two.pth", "map.pth"}
    assert [path for path, *_ in server.requests] == ["/one.pth", "/two.pth", "/map.pth"]
    assert {each.file for each in seen} >= {"one.pth", "two.pth", "map.pth"}
    assert missing(small, tmp_path) == []
    fetch(small, tmp_path, seen.append)
    assert len(server.requests) == 3


def test_all_that_fails_is_told_together_and_the_rest_is_kept(server: Server, small: Needs, tmp_path: Path) -> None:
    assert server.files is not None
    del server.files["two.pth"]
    server.files["map.pth"] = table(b=torch.zeros(2))
    with pytest.raises(SgoolError) as caught:
        fetch(small, tmp_path, quiet)
    told = str(caught.value)
    root = server.url.partition("download")[0]
    assert f"two.pth from {root}two.pth (127.0.0.1 answers 404 Not Found); map.pth from {root}map.pth (it does" in told
    assert "one.pth" not in told and (tmp_path / "one.pth").exists()
    assert "): try again later, or put the files into" in told
    assert told.endswith("choose embedded as selector and spectral as saliency detector.")


def test_host_that_is_away_is_told_before_anything_is_downloaded(
    server: Server, small: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Weight("map.pth", "http://nowhere.invalid/map.pth")
    monkeypatch.setitem(DETECTORS, "small", replace(DETECTORS["small"], weights=lambda: (away,)))
    with pytest.raises(SgoolError, match=r"map\.pth from http://nowhere\.invalid/map\.pth \(nowhere") as caught:
        fetch(small, tmp_path, quiet)
    assert "one.pth" not in str(caught.value) and server.requests == []


def test_host_that_goes_away_is_not_asked_for_the_next_file(
    server: Server, small: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgool.needs.unreachable", lambda urls, report: {})
    server.server_close()
    asked: list[str] = []
    with pytest.raises(SgoolError) as caught:
        fetch(small, tmp_path, lambda transfer: asked.append(transfer.file))
    assert set(asked) == {"one.pth"}, str(caught.value)
    assert all(name in str(caught.value) for name in ("one.pth", "two.pth", "map.pth", "connect to the network"))


def test_stop_ends_all_downloads(server: Server, small: Needs, tmp_path: Path) -> None:
    def report(transfer: Transfer) -> None:
        if transfer.file == "two.pth":
            raise Stop

    with pytest.raises(Stop):
        fetch(small, tmp_path, report)
    assert [path for path, *_ in server.requests] == ["/one.pth"]


def test_folder_that_cannot_be_written_is_told_once(server: Server, small: Needs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SgoolError, match="Cannot write"):
        fetch(small, tmp_path / "file" / "models", quiet)


def test_critics_are_loaded_by_what_is_needed(tmp_path: Path) -> None:
    loaded = generate.load_critics(Needs("embedded", "embedded", "spectral"), tmp_path)
    assert type(loaded.guide) is type(loaded.selector) and loaded.detector is not None


def test_command_tells_it_before_the_model_is_loaded(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sgool.__main__ import main

    def load(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("sgool.job.load_backend", load)
    common = ["demo", "--out", str(tmp_path / "out"), "--models-dir", str(tmp_path / "models")]
    assert main([*common, "--guide", "clip"]) == 2
    told = capsys.readouterr().err
    assert "Cannot download ViT-B-32_laion2b_s34b_b79k.safetensors from https://huggingface.co/" in told
    assert main([*common, "--selector", "clip:ViT-B-16/laion2b"]) == 2
    assert "no pretrained weights 'laion2b'; the closest known are laion" in capsys.readouterr().err


def test_addresses_of_the_real_files_have_hosts(tmp_path: Path) -> None:
    assert {urlsplit(weight.url).hostname for weight in missing(DEFAULT, tmp_path)} == {
        "huggingface.co",
        "drive.usercontent.google.com",
    }


def test_the_detector_is_needed_where_a_loss_or_a_zoom_looks() -> None:
    plain = {"iterations": 0, "zoom": True, "zoom_by": "faces"}
    assert needs(Settings.of(plain)).detector == "spectral"
    for method in ("sgool", "none"):
        assert needs(Settings.of({**plain, "method": method, "zoom_iterations": 2})).detector == "transalnet-res"
    assert needs(Settings.of({**plain, "zoom_by": "attention"})).detector == "transalnet-res"
    assert needs(Settings.of({**plain, "iterations": 1})).detector == "transalnet-res"
