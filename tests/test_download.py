"""Downloads from a local server: resumed, refused, confirmed, and what is said where they fail."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from file_server import CUT, Server, checkpoint, fetch, ranges, weight

from sgool.download import ATTEMPTS, BUSY, DownloadError, Transfer, download
from sgool.errors import SgoolError
from sgool.result import Stop
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


def test_broken_transfer_is_resumed(server: Server, tmp_path: Path) -> None:
    server.breaks = 1
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert server.requests[1][1:] == (f"bytes={CUT}-", '"one"')


def test_transfer_that_keeps_breaking_is_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.body = checkpoint(shape=(400, 2000))
    server.breaks = ATTEMPTS
    with pytest.raises(SgoolError, match=r"Cannot download Tiny\.pth.*what has arrived\s+is kept"):
        fetch(server, tmp_path, 2000)
    assert not (tmp_path / "Tiny.pth").exists()
    assert (tmp_path / "Tiny.pth.part").read_bytes() == server.body[: ATTEMPTS * CUT]
    assert fetch(server, tmp_path, 2000).read_bytes() == server.body
    assert ranges(server) == [None, *(f"bytes={n * CUT}-" for n in range(1, ATTEMPTS + 1))]


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
    server.knows_if_range, server.breaks = knows_if_range, ATTEMPTS
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
    server.breaks = ATTEMPTS
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
    server.breaks = ATTEMPTS
    server.body = checkpoint(shape=(400, 2000))
    with pytest.raises(SgoolError):
        fetch(server, tmp_path)
    server.page = b"<html>Quota exceeded</html>"
    with pytest.raises(SgoolError, match="web page"):
        fetch(server, tmp_path)
    assert (tmp_path / "Tiny.pth.part").stat().st_size == ATTEMPTS * CUT


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


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_refusal_of_the_server_is_told(server: Server, tmp_path: Path, status: int) -> None:
    server.answers = [(status, "")]
    with pytest.raises(DownloadError, match=rf"refused Tiny\.pth \({status}") as caught:
        fetch(server, tmp_path)
    assert len(server.requests) == 1 and not server.slept
    assert caught.value.status == status and not caught.value.unreachable


class Told:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.transfers: list[Transfer] = []

    def __call__(self, transfer: Transfer) -> None:
        self.transfers.append(transfer)

    @property
    def troubles(self) -> list[str]:
        return [each.trouble for each in self.transfers if each.trouble]


@pytest.mark.parametrize("status", BUSY)
def test_busy_server_is_asked_again_with_growing_pauses(server: Server, tmp_path: Path, status: int) -> None:
    server.answers = [(status, "")] * (ATTEMPTS - 1)
    told = Told()
    assert ensure(weight(server), tmp_path, told).read_bytes() == server.body
    assert len(server.requests) == ATTEMPTS
    pauses = [trouble for trouble in told.troubles if f"the server answers {status}" in trouble]
    assert [trouble.rpartition(" in ")[2] for trouble in pauses] == [
        f"{left} s" for pause in (1, 2, 4, 8) for left in range(pause, 0, -1)
    ]
    assert server.slept == [1] * 15


def test_busy_server_is_not_asked_for_ever(server: Server, tmp_path: Path) -> None:
    server.answers = [(503, "")] * 99
    with pytest.raises(DownloadError, match=r"503 Service Unavailable.*try again later") as caught:
        fetch(server, tmp_path)
    assert len(server.requests) == ATTEMPTS and not caught.value.unreachable


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 1, 1),
        ("600", 60, 60),
        ("soon", 1, 1),
        ("-5", 1, 1),
        (20, 15, 20),
        (-20, 1, 1),
        (9999, 60, 60),
    ],
)
def test_server_says_how_long_to_wait(server: Server, tmp_path: Path, asked: str | int, least: int, most: int) -> None:
    """A number of seconds, or a date."""
    if isinstance(asked, int):
        asked = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=asked), usegmt=True)
    server.answers = [(429, asked)]
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert least <= sum(server.slept) <= most


def test_attempts_are_counted_anew_where_much_has_arrived(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgool.download._PROGRESS", CUT)
    server.body, server.breaks = checkpoint(shape=(400, 2000)), 2 * ATTEMPTS
    assert fetch(server, tmp_path, 2000).read_bytes() == server.body
    server.ranges = False  # from the start again every time, and never further
    server.breaks = 2 * ATTEMPTS
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "other", 2000)
    assert server.breaks == ATTEMPTS


def test_length_that_is_no_number(server: Server, tmp_path: Path) -> None:
    server.length = "abc"
    assert fetch(server, tmp_path).read_bytes() == server.body
    server.length = "9" * 5000  # more digits than Python turns into a number
    assert fetch(server, tmp_path / "other").read_bytes() == server.body


def test_connection_that_stays_open_after_the_file(server: Server, tmp_path: Path) -> None:
    server.body = checkpoint(shape=(4, 4))
    server.hold.clear()
    begun = time.monotonic()
    download(server.url, tmp_path / "part", tmp_path / "x", Told())
    assert (tmp_path / "part").read_bytes() == server.body
    assert time.monotonic() - begun < 10


def test_stalled_transfer_says_so_while_it_waits(server: Server, tmp_path: Path) -> None:
    server.hold.clear()
    told, seconds = Told(), []

    def report(transfer: Transfer) -> None:
        told(transfer)
        if transfer.trouble.startswith("stalled") and transfer.trouble not in seconds:
            seconds.append(transfer.trouble)
        if len(seconds) == 2:
            server.hold.set()

    assert ensure(weight(server), tmp_path, report).read_bytes() == server.body
    silent = [each for each in told.transfers if each.trouble.startswith("stalled")]
    first, second = (int(trouble.split()[2]) for trouble in seconds)
    assert 2 <= first < second < 10  # a busy machine tells them late
    assert silent[0].done == CUT and silent[0].total == len(server.body)
    assert str(silent[0]) == f"Tiny.pth: 0 of 1 MB, stalled for {first} s"
    assert told.transfers[-1].done == len(server.body) and not told.transfers[-1].trouble


def test_silent_transfer_counts_as_broken(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgool.download.request.SILENCE", 0.5)
    server.hold.clear()
    begun = time.monotonic()
    told = Told()

    def report(transfer: Transfer) -> None:
        told(transfer)
        if "trying again" in transfer.waiting:
            server.hold.set()

    assert ensure(weight(server), tmp_path, report).read_bytes() == server.body
    assert ranges(server) == [None, f"bytes={CUT}-"] and "nothing came" in " ".join(told.troubles)
    assert time.monotonic() - begun < 15


def downloading() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "sgool download"]


@pytest.mark.parametrize("stop", [Stop, KeyboardInterrupt])
def test_stop_keeps_what_has_arrived(server: Server, tmp_path: Path, stop: type[BaseException]) -> None:
    server.hold.clear()

    def report(transfer: Transfer) -> None:
        if transfer.done == CUT:
            raise stop

    begun = time.monotonic()
    with pytest.raises(stop):
        ensure(weight(server), tmp_path, report)
    assert time.monotonic() - begun < 10 and not downloading()
    assert (tmp_path / "Tiny.pth.part").read_bytes() == server.body[:CUT]
    server.hold.set()
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert ranges(server) == [None, f"bytes={CUT}-"]


def test_stop_during_a_pause(server: Server, tmp_path: Path) -> None:
    server.answers = [(503, "30")]

    def report(transfer: Transfer) -> None:
        if "503" in transfer.waiting:
            raise Stop

    with pytest.raises(Stop):
        ensure(weight(server), tmp_path, report)
    assert not server.slept


def test_report_is_told_before_anything_is_asked(server: Server, tmp_path: Path) -> None:
    def report(transfer: Transfer) -> None:
        assert (transfer.file, transfer.done, transfer.total) == ("Tiny.pth", 0, None)
        raise Stop

    with pytest.raises(Stop):
        ensure(weight(server), tmp_path, report)
    assert server.requests == []


def test_transfer_in_words() -> None:
    half = Transfer("a.pth", 145_000_000, 290_000_000, speed=1_450_000)
    assert str(half) == "a.pth: 145 of 290 MB, 100 s left"
    assert str(Transfer("a.pth", 145_000_000, speed=1e6)) == "a.pth: 145 MB"
    assert str(Transfer("a.pth", waiting="connecting to b")) == "a.pth: 0 MB, connecting to b"


def test_name_that_is_looked_up_for_ever(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    for name in ("sgool.download.CONNECT", "sgool.download.request.CONNECT"):
        monkeypatch.setattr(name, 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hang.wait(30) and [])
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 cannot be reached: no answer") as caught:
        fetch(server, tmp_path)
    assert time.monotonic() - begun < 15 and caught.value.unreachable
    hang.set()
    for thread in downloading():
        thread.join(10)
    assert server.requests == [] and not (tmp_path / "Tiny.pth.part").exists()


def test_host_without_an_address_is_told_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=r"nowhere\.invalid cannot be reached") as caught:
        download("https://nowhere.invalid/x", tmp_path / "part", tmp_path / "x", Told())
    assert caught.value.unreachable and time.monotonic() - begun < 10


@pytest.mark.parametrize("url", ["download/x", "foo://host/x", "http://[::1", "http://host:port/x", "http://a b/"])
def test_what_is_no_web_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError):
        download(url, tmp_path / "part", tmp_path / "x", Told())


def test_next_address_is_tried(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()
    places = [closed, closed, ("127.0.0.1", server.server_port)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert fetch(server, tmp_path).read_bytes() == server.body


def test_network_that_goes_away_in_between_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.breaks = 1
    look_up, calls = socket.getaddrinfo, []

    def second_fails(*args: object, **more: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise socket.gaierror("Temporary failure in name resolution")
        return look_up(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", second_fails)
    told = Told()
    assert ensure(weight(server), tmp_path, told).read_bytes() == server.body
    assert any("cannot be reached: Temporary failure" in trouble for trouble in told.troubles)
    server.breaks = 1
    calls.clear()
    monkeypatch.setattr("sgool.download.ATTEMPTS", 2)
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        fetch(server, tmp_path / "again")
    assert caught.value.unreachable


def test_server_that_speaks_no_tls(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        download(server.url.replace("http:", "https:"), tmp_path / "part", tmp_path / "x", Told())
    assert caught.value.unreachable
