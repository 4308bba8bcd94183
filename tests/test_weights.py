"""Model files: verified, recorded, named safely."""

from __future__ import annotations

import hashlib
import pickle
import re
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from file_server import CUT, Server, checkpoint, fetch, quiet, ranges, weight
from huggingface_hub import constants

from sgool.download import DownloadError, Transfer
from sgool.errors import SgoolError
from sgool.result import Stop
from sgool.weights import Weight, default_models_dir, ensure, is_here, load_state_dict, safe_name


def test_changed_file_is_refused(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    path.write_bytes(checkpoint(seed=1))
    with pytest.raises(SgoolError, match="has changed since it was first used"):
        fetch(server, tmp_path)
    (tmp_path / "Tiny.pth.sha256").unlink()  # as the message says
    assert fetch(server, tmp_path) == path


def test_file_put_there_by_hand_is_taken(server: Server, tmp_path: Path) -> None:
    body = checkpoint(seed=5)
    (tmp_path / "Tiny.pth").write_bytes(body)
    fetch(server, tmp_path)
    assert server.requests == []
    assert (tmp_path / "Tiny.pth.sha256").read_text().split()[0] == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("body", [checkpoint()[:-20_000], checkpoint(shape=(4, 4)), b"", b"PK rubbish"])
def test_unusable_file_put_there_by_hand_is_refused(server: Server, tmp_path: Path, body: bytes) -> None:
    (tmp_path / "Tiny.pth").write_bytes(body)
    with pytest.raises(SgoolError, match=r"Tiny\.pth"):
        fetch(server, tmp_path)
    assert not (tmp_path / "Tiny.pth.sha256").exists()


@pytest.mark.parametrize("body", [checkpoint()[:-20_000], checkpoint(shape=(4, 4))])
def test_unusable_download_never_gets_the_name(server: Server, tmp_path: Path, body: bytes) -> None:
    good, server.body = server.body, body
    with pytest.raises(SgoolError, match="did not give a usable"):
        fetch(server, tmp_path)
    assert not (tmp_path / "Tiny.pth").exists()
    server.body = good
    assert fetch(server, tmp_path).read_bytes() == good


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_published_sum_is_demanded_of_a_download(server: Server, tmp_path: Path) -> None:
    pinned = replace(weight(server), sha256=sha256(server.body))
    assert ensure(pinned, tmp_path / "right", quiet).read_bytes() == server.body
    server.body = checkpoint(seed=1)  # as good a table of tensors, but not the published one
    with pytest.raises(DownloadError, match="its SHA-256 is not the published one"):
        ensure(pinned, tmp_path / "wrong", quiet)
    assert not list((tmp_path / "wrong").glob("Tiny.pth*[!k]"))  # nothing but the lock
    begin = replace(pinned, sha256=sha256(server.body)[:8])
    assert ensure(begin, tmp_path / "begin", quiet).read_bytes() == server.body


def test_published_sum_is_demanded_of_a_file_put_there_by_hand(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Tiny.pth").write_bytes(checkpoint(seed=1))
    pinned = replace(weight(server), sha256=sha256(server.body))
    for _ in range(2):
        with pytest.raises(SgoolError, match="not the published file") as caught:
            ensure(pinned, tmp_path, quiet)
        assert "download" not in str(caught.value) and not (tmp_path / "Tiny.pth.sha256").exists()
    (tmp_path / "Tiny.pth").write_bytes(server.body)
    assert ensure(pinned, tmp_path, quiet) and server.requests == []
    (tmp_path / "Tiny.pth").write_bytes(checkpoint(seed=1))  # and also after its first use
    with pytest.raises(SgoolError, match="not the published file"):
        ensure(pinned, tmp_path, quiet)


def test_sum_that_the_hub_publishes_is_demanded(server: Server, tmp_path: Path) -> None:
    server.linked_etag = f'"{sha256(server.body)}"'
    assert fetch(server, tmp_path / "right").read_bytes() == server.body
    assert [path for path, *_ in server.requests] == ["/download?id=x", "/cdn/download?id=x"]
    server.body = checkpoint(seed=1)
    with pytest.raises(DownloadError, match="its SHA-256 is not the published one"):
        fetch(server, tmp_path / "wrong")
    server.linked_etag = '"0123456789abcdef0123456789abcdef01234567"'  # of a small file: git's own
    assert fetch(server, tmp_path / "git").read_bytes() == server.body


def test_sum_that_the_hub_publishes_outlives_an_interruption(server: Server, tmp_path: Path) -> None:
    server.linked_etag, server.breaks = f'"{sha256(checkpoint(seed=1))}"', 1
    with pytest.raises(DownloadError, match="its SHA-256 is not the published one"):
        fetch(server, tmp_path)
    assert ranges(server) == [None, None, f"bytes={CUT}-", f"bytes={CUT}-"]


def test_body_of_unknown_length_that_is_cut_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.length, server.breaks = "", 1
    waited: list[str] = []
    path = ensure(weight(server), tmp_path / "again", lambda transfer: waited.append(transfer.waiting))
    assert path.read_bytes() == server.body and len(server.requests) == 2
    assert any("the connection may have closed early; trying again in 1 s" in each for each in waited)
    server.breaks = 99
    with pytest.raises(DownloadError, match=r"the connection may have closed early\); try again later"):
        fetch(server, tmp_path / "never")
    assert len(server.requests) == 5


def test_file_that_is_not_published_is_replaced_by_another(server: Server, tmp_path: Path) -> None:
    server.files = {"b.pth": server.body}
    url = server.url.partition("download")[0]
    other = replace(weight(server), file="b.pth", url=f"{url}b.pth")
    wanted = replace(weight(server), file="a.pth", url=f"{url}a.pth", instead=other)
    assert not is_here(wanted, tmp_path)
    assert ensure(wanted, tmp_path, quiet) == ensure(wanted, tmp_path, quiet) == tmp_path / "b.pth"
    assert [path for path, *_ in server.requests] == ["/a.pth", "/b.pth"]
    assert is_here(wanted, tmp_path) and not is_here(replace(wanted, instead=None), tmp_path)
    server.answers = [(403, "")]
    with pytest.raises(DownloadError, match="403"):
        ensure(wanted, tmp_path / "other", quiet)


def cache(folder: Path, body: bytes) -> None:
    """What huggingface_hub leaves of a download."""
    repository = folder / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "Tiny.pth").write_bytes(body)


@pytest.mark.parametrize("where", ["models", "user"])
def test_copy_in_the_hubs_cache_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "user"))
    wanted = replace(weight(server), hub=("owner/name", "Tiny.pth"))
    assert not is_here(wanted, tmp_path / "models")
    cache(tmp_path / where, server.body)
    assert is_here(wanted, tmp_path / "models")
    path = ensure(wanted, tmp_path / "models", quiet)
    assert path.read_bytes() == server.body and "snapshots" in path.parts and server.requests == []
    with pytest.raises(SgoolError, match="not the published file"):
        ensure(replace(wanted, sha256="0" * 64), tmp_path / "models", quiet)


def test_whether_a_file_is_here_is_known_without_asking_anybody(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> NoReturn:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "user"))
    wanted = replace(weight(server), hub=("owner/name", "Tiny.pth"))
    assert not is_here(wanted, tmp_path) and not is_here(wanted, tmp_path / "nowhere")
    (tmp_path / "Tiny.pth").write_bytes(b"")
    assert is_here(wanted, tmp_path)


def test_concurrent_calls_download_once(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(server, tmp_path).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [server.body] * 4
    assert ranges(server) == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]


def test_waiting_for_another_download_is_told_and_can_be_stopped(server: Server, tmp_path: Path) -> None:
    server.hold.clear()
    other = threading.Thread(target=fetch, args=(server, tmp_path))
    other.start()
    while not (tmp_path / "Tiny.pth.part").exists():
        time.sleep(0.05)
    told: list[str] = []

    def report(transfer: Transfer) -> None:
        told.append(transfer.trouble)
        if len(told) == 2:
            raise Stop

    with pytest.raises(Stop):
        ensure(weight(server), tmp_path, report)
    server.hold.set()
    other.join()
    assert told == ["it is already being downloaded"] * 2 and fetch(server, tmp_path).read_bytes() == server.body


def test_folder_that_cannot_be_made_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SgoolError, match="Cannot write"):
        fetch(server, tmp_path / "file" / "models")


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil"),))


def test_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    torch.save({"a": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"a": Evil()}))
    for name in ("evil.pth", "old.pth", "bare.pth"):
        with pytest.raises(SgoolError) as caught:
            load_state_dict(tmp_path / name)
        told = f"The model file {tmp_path / name} holds more than plain tensors, so it is not loaded."
        assert str(caught.value) == told
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("body", [checkpoint()[:-20_000], b"", b"PK rubbish", b"\0" * 100])
def test_broken_file_is_told_from_a_dangerous_one(tmp_path: Path, name: str, body: bytes) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(SgoolError, match="is broken or incomplete; delete it to fetch it again") as caught:
        load_state_dict(tmp_path / name)
    assert "weights_only" not in str(caught.value) and "download" not in str(caught.value)


def test_program_is_opened_only_where_its_sum_is_pinned(tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 3)
    torch.jit.script(linear).save(tmp_path / "program.pt")
    with pytest.raises(SgoolError, match="holds a program, so it is not loaded"):
        load_state_dict(tmp_path / "program.pt")
    state = load_state_dict(tmp_path / "program.pt", program=True)
    assert torch.equal(state["weight"], linear.weight)
    digest = sha256((tmp_path / "program.pt").read_bytes())
    with pytest.raises(SgoolError, match="holds a program"):
        ensure(Weight("program.pt", "http://127.0.0.1:1/"), tmp_path, quiet)
    sums = {"": False, digest[:8]: False, digest: True}
    assert {each: Weight("program.pt", "", sha256=each).pinned for each in sums} == sums


def test_what_training_keeps_besides_the_weights_is_left_out(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.zeros(2)}}, tmp_path / "a.pt")
    assert list(load_state_dict(tmp_path / "a.pt")) == ["a"]


def test_load_state_dict_wants_named_tensors(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"epoch": 3, "model": {"a": torch.zeros(2)}}, tmp_path / "nested.pth")
    for name in ("list.pth", "nested.pth", "missing.pth"):
        with pytest.raises(SgoolError, match=re.escape(name)):
            load_state_dict(tmp_path / name)


def test_load_state_dict_reads_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.arange(4.0)}, tmp_path / "a.safetensors")
    assert torch.equal(load_state_dict(tmp_path / "a.safetensors")["a"], torch.arange(4.0))
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(whole[:-3])
    with pytest.raises(SgoolError, match=r"b\.safetensors"):
        load_state_dict(tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", ["TranSalNet_Res.pth", "ViT-B-32", "laion2b_s34b_b79k", "a..b"])
def test_plain_names_are_safe(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "C:x", "~", "-x", "a\0b", "a\n", ".hidden", "a b"]
)
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(SgoolError):
        safe_name(name)


def test_a_file_outside_the_folder_is_neither_read_nor_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "outside.pth").write_bytes(server.body)
    with pytest.raises(SgoolError, match="not the plain name of a model file"):
        ensure(Weight("../outside.pth", server.url, 2, "a.weight", (400, 500)), tmp_path / "models")
    assert server.requests == [] and not (tmp_path / "models").exists()


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SGOOL_MODELS", str(tmp_path))
    assert default_models_dir() == tmp_path
    monkeypatch.setenv("SGOOL_MODELS", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert default_models_dir() == tmp_path / ".cache" / "sgool"
