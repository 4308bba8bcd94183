"""Model files: verified, recorded, named safely."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

import pytest
import torch
from file_server import CUT, Server, checkpoint, fetch, ranges

from sgool.errors import SgoolError
from sgool.weights import Weight, default_models_dir, ensure, load_state_dict, safe_name


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
    with pytest.raises(SgoolError, match=r"evil\.pth"):
        load_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "evil").exists()


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
