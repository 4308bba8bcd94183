"""Downloads from a local server: resumed, refused, confirmed, and what is said where they fail."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from file_server import CUT, Server, checkpoint, fetch, ranges, weight

from sgool.errors import SgoolError
from sgool.weights import ensure, load_state_dict


def test_whole_download_is_recorded_and_not_repeated(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    path = fetch(server, folder)
    assert path == folder / "Tiny.pth" and path.read_bytes() == server.body
    record = (folder / "Tiny.pth.sha256").read_text()
    assert record == f"{hashlib.sha256(server.body).hexdigest()}  Tiny.pth\n"
    assert not list(folder.glob("*.part*"))
    assert fetch(server, folder) == path
    assert len(server.requests) == 1
    state = load_state_dict(path)
    assert {key: tuple(value.shape) for key, value in state.items()} == {"a.weight": (400, 500), "b.bias": (3,)}


def test_progress_goes_to_stderr_only_when_wanted(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(server, tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    ensure(weight(server), tmp_path / "shown")
    out, err = capfd.readouterr()
    assert out == "" and "Tiny.pth" in err


def test_broken_transfer_is_resumed_at_once(server: Server, tmp_path: Path) -> None:
    server.breaks = 1
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert server.requests[1][1:] == (f"bytes={CUT}-", '"one"')


def test_transfer_that_keeps_breaking_is_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.body = checkpoint(shape=(400, 2000))
    server.breaks = 3
    with pytest.raises(SgoolError, match=r"Cannot download Tiny\.pth.*what has arrived\s+is kept"):
        fetch(server, tmp_path, 2000)
    assert not (tmp_path / "Tiny.pth").exists()
    assert (tmp_path / "Tiny.pth.part").read_bytes() == server.body[: 3 * CUT]
    assert fetch(server, tmp_path, 2000).read_bytes() == server.body
    assert ranges(server) == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-", f"bytes={3 * CUT}-"]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, 1
    assert fetch(server, tmp_path).read_bytes() == server.body
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
    server.knows_if_range, server.breaks = knows_if_range, 3
    server.body, server.etag = checkpoint(seed=0, shape=(400, 2000)), etags[0]
    with pytest.raises(SgoolError):
        fetch(server, tmp_path, columns)
    server.body, server.etag = checkpoint(seed=1, shape=(400, columns)), etags[1]
    assert fetch(server, tmp_path, columns).read_bytes() == server.body


def test_part_of_unknown_origin_is_not_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Tiny.pth.part").write_bytes(b"x" * 1000)
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert ranges(server) == [None]


def test_part_that_is_too_long_starts_again(server: Server, tmp_path: Path) -> None:
    server.breaks = 3
    server.body = checkpoint(shape=(400, 2000))
    with pytest.raises(SgoolError):
        fetch(server, tmp_path)
    with open(tmp_path / "Tiny.pth.part", "ab") as part:
        part.write(bytes(len(server.body)))
    assert fetch(server, tmp_path, 2000).read_bytes() == server.body


@pytest.mark.parametrize("page_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_page_instead_of_the_file_is_refused(server: Server, tmp_path: Path, page_type: str) -> None:
    server.page, server.page_type = b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>", page_type
    with pytest.raises(SgoolError, match=r"web page instead of Tiny\.pth") as caught:
        fetch(server, tmp_path)
    assert server.url in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not list(tmp_path.glob("Tiny.pth*[!k]"))  # nothing but the lock


def test_page_while_resuming_keeps_what_has_arrived(server: Server, tmp_path: Path) -> None:
    server.breaks = 3
    server.body = checkpoint(shape=(400, 2000))
    with pytest.raises(SgoolError):
        fetch(server, tmp_path)
    server.page = b"<html>Quota exceeded</html>"
    with pytest.raises(SgoolError, match="web page"):
        fetch(server, tmp_path)
    assert (tmp_path / "Tiny.pth.part").stat().st_size == 3 * CUT


PAGE = """<html><head><title>Virus scan warning</title></head><body><p>can't scan this file for viruses</p>
<form action="/search"><input name="q" value="no"></form>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="x&amp;y"><input type="hidden" name="confirm" value="yes"></form></body></html>"""


def test_confirm_page_is_answered(server: Server, tmp_path: Path) -> None:
    server.page = PAGE.format(action="/uc").encode()
    server.breaks = 1
    assert fetch(server, tmp_path).read_bytes() == server.body
    paths = [path for path, _, _ in server.requests]
    assert paths == ["/download?id=x", "/uc?id=x%26y&confirm=yes", "/uc?id=x%26y&confirm=yes"]


def test_confirm_page_cannot_lead_to_a_local_file(server: Server, tmp_path: Path) -> None:
    local = tmp_path / "local.pth"
    local.write_bytes(server.body)
    server.page = PAGE.format(action=local.as_uri()).encode()
    with pytest.raises(SgoolError, match="web page"):
        fetch(server, tmp_path / "models")


def test_no_network_names_address_and_folder(server: Server, tmp_path: Path) -> None:
    server.server_close()  # nobody listens at this port any more
    with pytest.raises(SgoolError, match="connect to the network") as caught:
        fetch(server, tmp_path)
    message = str(caught.value)
    assert server.url in message and str(tmp_path) in message and "Tiny.pth" in message and "\n" not in message
    assert not (tmp_path / "Tiny.pth").exists()


def test_refusal_of_the_server_is_told(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(SgoolError, match=r"refused Tiny\.pth \(404"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1
