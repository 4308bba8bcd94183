from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from sgool import weights
from sgool.errors import SgoolError
from sgool.weights import Weight, default_models_dir, ensure, load_state_dict, safe_name

CUT = 300_000  # bytes after which a broken transfer ends: more than one read block


def checkpoint(seed: int = 0, shape: tuple[int, ...] = (400, 500)) -> bytes:
    buffer = io.BytesIO()
    generator = torch.Generator().manual_seed(seed)
    torch.save({"a.weight": torch.randn(shape, generator=generator), "b.bias": torch.zeros(3)}, buffer)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `body` at every path; the attributes say how it misbehaves, `requests` holds what it was asked."""

    body = checkpoint()
    ranges = True
    knows_if_range = True
    etag = '"one"'
    breaks = 0  # how many of the next answers end after CUT bytes
    page: bytes | None = None  # served instead of the body until the address has a confirm=yes
    page_type = "text/html; charset=utf-8"
    status: int | None = None

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/download?id=x"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked, if_range = self.headers.get("Range"), self.headers.get("If-Range")
        server.requests.append((self.path, asked, if_range))
        if server.status is not None:
            self.send_error(server.status)
            return
        if server.page is not None and "confirm=yes" not in self.path:
            self.send_response(200)
            self.send_header("Content-Type", server.page_type)
            self.end_headers()
            self.wfile.write(server.page)
            return
        start = 0
        if server.ranges and asked and (if_range in (None, server.etag) or not server.knows_if_range):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start >= len(server.body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        else:
            self.send_response(200)
        rest = server.body[start:]
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(rest)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            rest = rest[:CUT]
        self.wfile.write(rest)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(weights.WEIGHTS, "tiny", Weight("Tiny.pth", server.url, 2, "a.weight", (400, 500)))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(folder: Path) -> Path:
    return ensure("tiny", folder, progress=False)


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked, _ in server.requests]


def test_whole_download_is_recorded_and_not_repeated(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    path = fetch(folder)
    assert path == folder / "Tiny.pth" and path.read_bytes() == server.body
    record = (folder / "Tiny.pth.sha256").read_text()
    assert record == f"{hashlib.sha256(server.body).hexdigest()}  Tiny.pth\n"
    assert not list(folder.glob("*.part*"))
    assert fetch(folder) == path
    assert len(server.requests) == 1
    state = load_state_dict(path)
    assert {key: tuple(value.shape) for key, value in state.items()} == {"a.weight": (400, 500), "b.bias": (3,)}


def test_progress_goes_to_stderr_only_when_wanted(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    ensure("tiny", tmp_path / "shown")
    out, err = capfd.readouterr()
    assert out == "" and "Tiny.pth" in err


def test_broken_transfer_is_resumed_at_once(server: Server, tmp_path: Path) -> None:
    server.breaks = 1
    assert fetch(tmp_path).read_bytes() == server.body
    assert server.requests[1][1:] == (f"bytes={CUT}-", '"one"')


def test_transfer_that_keeps_breaking_is_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.body = checkpoint(shape=(400, 2000))
    weights.WEIGHTS["tiny"] = Weight("Tiny.pth", server.url, 2, "a.weight", (400, 2000))
    server.breaks = 3
    with pytest.raises(SgoolError, match=r"Cannot download Tiny\.pth.*what has arrived\s+is kept"):
        fetch(tmp_path)
    assert not (tmp_path / "Tiny.pth").exists()
    assert (tmp_path / "Tiny.pth.part").read_bytes() == server.body[: 3 * CUT]
    assert fetch(tmp_path).read_bytes() == server.body
    assert ranges(server) == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-", f"bytes={3 * CUT}-"]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, 1
    assert fetch(tmp_path).read_bytes() == server.body
    assert ranges(server) == [None, f"bytes={CUT}-"]


@pytest.mark.parametrize(
    ("etags", "columns", "knows_if_range"),
    [
        (('"one"', '"two"'), 2000, True),
        (('"one"', '"two"'), 2000, False),
        (("", ""), 2100, True),  # no version at all: the size tells
    ],
)
def test_file_that_changed_on_the_server_is_not_spliced(
    server: Server, tmp_path: Path, etags: tuple[str, str], columns: int, knows_if_range: bool
) -> None:
    weights.WEIGHTS["tiny"] = Weight("Tiny.pth", server.url, 2, "a.weight", (400, columns))
    server.knows_if_range, server.breaks = knows_if_range, 3
    server.body, server.etag = checkpoint(seed=0, shape=(400, 2000)), etags[0]
    with pytest.raises(SgoolError):
        fetch(tmp_path)
    server.body, server.etag = checkpoint(seed=1, shape=(400, columns)), etags[1]
    assert fetch(tmp_path).read_bytes() == server.body


def test_part_of_unknown_origin_is_not_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Tiny.pth.part").write_bytes(b"x" * 1000)
    assert fetch(tmp_path).read_bytes() == server.body
    assert ranges(server) == [None]


def test_part_that_is_too_long_starts_again(server: Server, tmp_path: Path) -> None:
    server.breaks = 3
    server.body = checkpoint(shape=(400, 2000))
    with pytest.raises(SgoolError):
        fetch(tmp_path)
    with open(tmp_path / "Tiny.pth.part", "ab") as part:
        part.write(bytes(len(server.body)))
    weights.WEIGHTS["tiny"] = Weight("Tiny.pth", server.url, 2, "a.weight", (400, 2000))
    assert fetch(tmp_path).read_bytes() == server.body


@pytest.mark.parametrize("page_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_page_instead_of_the_file_is_refused(server: Server, tmp_path: Path, page_type: str) -> None:
    server.page, server.page_type = b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>", page_type
    with pytest.raises(SgoolError, match=r"web page instead of Tiny\.pth") as caught:
        fetch(tmp_path)
    assert server.url in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not list(tmp_path.glob("Tiny.pth*[!k]"))  # nothing but the lock


def test_page_while_resuming_keeps_what_has_arrived(server: Server, tmp_path: Path) -> None:
    server.breaks = 3
    server.body = checkpoint(shape=(400, 2000))
    with pytest.raises(SgoolError):
        fetch(tmp_path)
    server.page = b"<html>Quota exceeded</html>"
    with pytest.raises(SgoolError, match="web page"):
        fetch(tmp_path)
    assert (tmp_path / "Tiny.pth.part").stat().st_size == 3 * CUT


PAGE = """<html><head><title>Virus scan warning</title></head><body><p>can't scan this file for viruses</p>
<form action="/search"><input name="q" value="no"></form>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="x&amp;y"><input type="hidden" name="confirm" value="yes"></form></body></html>"""


def test_confirm_page_is_answered(server: Server, tmp_path: Path) -> None:
    server.page = PAGE.format(action="/uc").encode()
    server.breaks = 1
    assert fetch(tmp_path).read_bytes() == server.body
    paths = [path for path, _, _ in server.requests]
    assert paths == ["/download?id=x", "/uc?id=x%26y&confirm=yes", "/uc?id=x%26y&confirm=yes"]


def test_confirm_page_cannot_lead_to_a_local_file(server: Server, tmp_path: Path) -> None:
    local = tmp_path / "local.pth"
    local.write_bytes(server.body)
    server.page = PAGE.format(action=local.as_uri()).encode()
    with pytest.raises(SgoolError, match="web page"):
        fetch(tmp_path / "models")


def test_no_network_names_address_and_folder(server: Server, tmp_path: Path) -> None:
    server.server_close()  # nobody listens at this port any more
    with pytest.raises(SgoolError, match="connect to the network") as caught:
        fetch(tmp_path)
    message = str(caught.value)
    assert server.url in message and str(tmp_path) in message and "Tiny.pth" in message and "\n" not in message
    assert not (tmp_path / "Tiny.pth").exists()


def test_refusal_of_the_server_is_told(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(SgoolError, match=r"refused Tiny\.pth \(404"):
        fetch(tmp_path)
    assert len(server.requests) == 1


def test_changed_file_is_refused(server: Server, tmp_path: Path) -> None:
    path = fetch(tmp_path)
    path.write_bytes(checkpoint(seed=1))
    with pytest.raises(SgoolError, match="has changed since it was first used"):
        fetch(tmp_path)
    (tmp_path / "Tiny.pth.sha256").unlink()  # as the message says
    assert fetch(tmp_path) == path


def test_file_put_there_by_hand_is_taken(server: Server, tmp_path: Path) -> None:
    body = checkpoint(seed=5)
    (tmp_path / "Tiny.pth").write_bytes(body)
    fetch(tmp_path)
    assert server.requests == []
    assert (tmp_path / "Tiny.pth.sha256").read_text().split()[0] == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("body", [checkpoint()[:-20_000], checkpoint(shape=(4, 4)), b"", b"PK rubbish"])
def test_unusable_file_put_there_by_hand_is_refused(server: Server, tmp_path: Path, body: bytes) -> None:
    (tmp_path / "Tiny.pth").write_bytes(body)
    with pytest.raises(SgoolError, match=r"Tiny\.pth"):
        fetch(tmp_path)
    assert not (tmp_path / "Tiny.pth.sha256").exists()


@pytest.mark.parametrize("body", [checkpoint()[:-20_000], checkpoint(shape=(4, 4))])
def test_unusable_download_never_gets_the_name(server: Server, tmp_path: Path, body: bytes) -> None:
    good, server.body = server.body, body
    with pytest.raises(SgoolError, match="did not give a usable"):
        fetch(tmp_path)
    assert not (tmp_path / "Tiny.pth").exists()
    server.body = good
    assert fetch(tmp_path).read_bytes() == good


def test_concurrent_calls_download_once(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(tmp_path).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [server.body] * 4
    assert ranges(server) == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]


def test_folder_that_cannot_be_made_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SgoolError, match="Cannot write"):
        fetch(tmp_path / "file" / "models")


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


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(SgoolError, match="transalnet-res"):
        ensure("transalnet-vit")


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SGOOL_MODELS", str(tmp_path))
    assert default_models_dir() == tmp_path
    monkeypatch.setenv("SGOOL_MODELS", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert default_models_dir() == tmp_path / ".cache" / "sgool"
