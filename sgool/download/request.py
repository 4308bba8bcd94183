"""One HTTP request for the rest of a file, in a thread of its own."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, build_opener
from urllib.request import Request as HttpRequest

CONNECT = 5
"""Seconds for a connection to come about."""

SILENCE = 30
"""Seconds without a byte after which a connection counts as broken."""

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Received:
    """What the server said of a file that has arrived: its SHA-256 ("" if nothing), and whether how long it is."""

    sha256: str
    sized: bool


class ServedPage(Exception):
    """A web page came where a file was expected."""

    def __init__(self, page: bytes, url: str) -> None:
        self.page, self.url = page.decode("utf-8", "replace"), url


class BrokenOff(Exception):
    """The connection failed while it stood. reason: the system's own error."""

    def __init__(self, reason: object) -> None:
        super().__init__(reason)
        self.reason = reason


class Request:
    """Whoever waits for it can tell the time meanwhile, and stop it.

    host: who is asked, after redirects another. reached, connected: whether the host has answered, and whether the
    connection stands. done, total: bytes of the file. heard: when something came last, by `time.monotonic`. Once it has
    `finished`: error, or whether the file is whole.
    """

    def __init__(self, url: str, part: Path) -> None:
        self.url, self.part = url, part
        self.host = url.partition("//")[2].partition("/")[0]
        self.reached = self.connected = self.whole = False
        self.notes = _read_notes(part)
        self.done: int = part.stat().st_size if self.notes and part.is_file() else 0
        size = self.notes.get("size")
        self.total = size if isinstance(size, int) else None
        self.heard = monotonic()
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self._published = ""
        self._socket: socket.socket | None = None
        self._stopped = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="sgool download", daemon=True).start()

    def stop(self) -> None:
        """Break it off. When this returns, it writes no more."""
        self._stopped = True
        if self._socket is not None:  # else it sees in time that it is stopped
            with suppress(OSError, ValueError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self.finished.wait(SILENCE)

    def give_up(self, reason: str) -> bool:
        """Stop one that has not even reached its host."""
        self.stop()
        self.error = URLError(reason)
        return True

    def received(self) -> Received:
        """What the server said of the file, which is whole, so the notes are not needed any more."""
        _notes_file(self.part).unlink(missing_ok=True)
        return Received(self.notes.get("sha256", ""), bool(self.notes.get("sized")))

    def _run(self) -> None:
        try:
            self.whole = self._transfer()
        except BaseException as error:
            if not self._stopped:
                self.error = error
        finally:
            self.finished.set()

    def _transfer(self) -> bool:
        """True if the file is whole after it."""
        if self.done and self.done == self.total:
            return True  # only the step after the download was missed
        headers = {"User-Agent": "sgool", "Accept-Encoding": "identity"}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self.notes.get("version"):
                headers["If-Range"] = self.notes["version"]
        with self._open(HttpRequest(self.url, headers=headers)) as response:
            if response is None:
                return False  # the server no longer has this range: start again
            first = self._read(response)
            if response.headers.get_content_type() == "text/html" or (
                response.status == 200 and first.lstrip()[:1] == b"<"
            ):
                raise ServedPage(first, response.url)
            fresh = self._fresh_notes(response)
            if response.status == 206 and (_range_start(response) != self.done or fresh != self.notes):
                self._start_over()  # another file than the one begun
                return False
            if response.status != 206:
                self._start_over()
                self.notes = fresh
                _notes_file(self.part).write_text(json.dumps(fresh), encoding="utf-8")
            self.total = fresh["size"]
            self._write(response, first)
        return self.total is None or self.done == self.total

    def _fresh_notes(self, response: HTTPResponse) -> dict[str, Any]:
        size = _total_size(response)
        return {
            "version": _version(response.headers),
            "size": size,
            "sized": size is not None or bool(response.chunked),
            "sha256": _sha256(response.headers) or self._published,
        }

    def _read(self, response: HTTPResponse) -> bytes:
        try:
            block = response.read1(_BLOCK)
        except (OSError, HTTPException) as error:
            raise BrokenOff(error) from error
        self.heard = monotonic()
        return block

    def _write(self, response: HTTPResponse, block: bytes) -> None:
        """Append the body to what is there."""
        with open(self.part, "ab") as file:
            while block and not self._stopped:
                file.write(block)
                self.done += len(block)
                # Not one read more than there is: a server may keep the connection open.
                block = b"" if self.done == self.total else self._read(response)

    def _start_over(self) -> None:
        self.part.unlink(missing_ok=True)
        self.done, self.total = 0, None

    @contextmanager
    def _open(self, request: HttpRequest) -> Iterator[HTTPResponse | None]:
        opener = build_opener(self._watched(HTTPHandler), self._watched(HTTPSHandler), self._redirects())
        try:
            response = opener.open(request, timeout=CONNECT)
        except HTTPError as error:
            error.close()
            if error.code != 416 or not self.done:
                raise
            self._start_over()
            yield None
            return
        except URLError:
            raise
        except (OSError, HTTPException) as error:
            if isinstance(error, InvalidURL):
                raise ValueError(str(error)) from error
            raise BrokenOff(error) from error
        with response:
            yield response

    def _watched(self, handler: Any) -> Any:
        """urllib's handler, its connections watched."""
        watch = self._watch

        class Watched(handler):
            def do_open(self, kind: Any, request: HttpRequest, **arguments: Any) -> Any:
                return super().do_open(lambda host, **more: watch(kind(host, **more)), request, **arguments)

        return Watched()

    def _watch(self, connection: Any) -> HTTPConnection:
        """A connection that says when it stands, and can then be broken off."""
        connect = connection.connect
        self.reached = self.connected = False
        self.host = connection.host

        def watched() -> None:
            connect()
            self._hold(connection.sock)
            connection.sock.settimeout(SILENCE)
            self.connected, self.heard = True, monotonic()

        connection.connect = watched
        connection._create_connection = self._dial
        return connection

    def _dial(self, address: tuple[str, int], *timeout_and_source: Any) -> socket.socket:
        dialed = dial(*address)
        self._hold(dialed)
        self.reached, self.heard = True, monotonic()
        return dialed

    def _hold(self, connected: socket.socket) -> None:
        self._socket = connected
        if self._stopped:
            raise OSError("stopped")

    def _redirects(self) -> HTTPRedirectHandler:
        """Keeps the sum that Hugging Face publishes with the redirect to the file itself."""
        request = self

        class Redirects(HTTPRedirectHandler):
            def redirect_request(
                self, req: HttpRequest, fp: Any, code: int, msg: str, headers: Any, newurl: str
            ) -> HttpRequest | None:
                request._published = _sha256(headers) or request._published
                return super().redirect_request(req, fp, code, msg, headers, newurl)

        return Redirects()


def dial(host: str, port: int) -> socket.socket:
    """Like `socket.create_connection`, but all addresses together have the time for one.

    Each has half of what is left, and each family's first comes before the others: where IPv6 leads nowhere, IPv4 is
    still tried. Looking the name up can take longer. Raises OSError.
    """
    ranks: Counter[int] = Counter()
    ranked = []
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        ranked.append((ranks[family], (family, kind, protocol), place))
        ranks[family] += 1
    ranked.sort(key=lambda each: each[0])
    end = monotonic() + CONNECT
    problem = OSError("it has no address")
    for number, (_, sort, place) in enumerate(ranked, 1):
        left = end - monotonic()
        if left <= 0:
            break
        dialed = socket.socket(*sort)
        try:
            dialed.settimeout(left if number == len(ranked) else left / 2)
            dialed.connect(place)
        except OSError as error:
            dialed.close()
            problem = error
            continue
        dialed.settimeout(CONNECT)
        return dialed
    raise problem


def _notes_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path) -> dict[str, Any]:
    """What is known of a begun file; {} (so: start again) if nothing is."""
    try:
        notes = json.loads(_notes_file(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _version(headers: Message) -> str | None:
    etag = headers.get("ETag", "")
    # A weak ETag promises equal meaning, not equal bytes, and may not be used for ranges (RFC 9110, 13.1.5).
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _sha256(headers: Message) -> str:
    """The sum that Hugging Face publishes of a large file; "" where there is none."""
    match = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag", ""))
    return match[1] if match else ""


def _total_size(response: HTTPResponse) -> int | None:
    """None where the server does not say, or says nonsense."""
    if response.status == 206:
        match = re.search(r"/(\d{1,18})$", response.headers.get("Content-Range", ""))
    else:
        match = re.fullmatch(r"\s*(\d{1,18})\s*", response.headers.get("Content-Length", ""))
    return int(match[1]) if match else None


def _range_start(response: HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None
