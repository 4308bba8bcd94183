"""A small server: hands out the page, and keeps the answers.

It knows the page's files by name, so a path reaches nothing else. An answer is checked whole before it is kept, and
nothing of a request comes back in a reply.
"""

from __future__ import annotations

import re
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sgool.errors import SgoolError
from sgool.lab.study import ANSWERS, FOLDER, PAGE
from sgool.lab.study.answers import LONGEST, Answers, Wrong, read_answer
from sgool.lab.study.page import INDEX, PICTURES
from sgool.lab.study.pairs import Study, read_study

TARGET = "/answers"
"""Where answers go."""

WAIT = 10.0
"""Seconds that a silent visitor may take."""

AT_ONCE = 64
"""Connections. Others wait."""

READ = 2**16
"""Bytes that are read of what is sent, because a reply does not arrive where more is left unread."""

RATE, BURST = 10.0, 200
"""Answers a second from one address, and how many it may save up. Many people may share an address."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Limit:
    """So many a second from each address. Addresses are in memory only, and only as long as they are needed."""

    def __init__(self, rate: float = RATE, burst: int = BURST, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._full: dict[str, float] = {}  # when an address may send a whole burst again
        self._lock = threading.Lock()

    def allows(self, address: str) -> bool:
        """Whether one more may come; if so, it is counted."""
        now = self.clock()
        with self._lock:
            if len(self._full) > 1000:
                self._full = {each: when for each, when in self._full.items() if when > now}
            full = max(now, self._full.get(address, now)) + 1 / self.rate
            if full - now > self.burst / self.rate + 1e-9:
                return False
            self._full[address] = full
            return True


class Server(ThreadingHTTPServer):
    """Serves the study of an evaluation's folder; port 0: any that is free. Raises SgoolError where that cannot be."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, evaluation: Path, host: str, port: int) -> None:
        self.study: Study = read_study(evaluation)
        self.pairs = {pair.id for pair in self.study.pairs}
        self.answers = Answers(evaluation / FOLDER / ANSWERS)
        page = evaluation / FOLDER / PAGE
        self.files = {"/": (page / INDEX, "text/html; charset=utf-8")}
        for name in {name for pair in self.study.pairs for name in pair.pictures}:
            self.files[f"/{PICTURES}/{name}"] = (page / PICTURES / name, "image/png")
        self.limit, self.host = Limit(), host
        self._free = threading.BoundedSemaphore(AT_ONCE)
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise SgoolError(f"The study cannot be served on {host}, port {port}: {why}.") from error

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.server_port}/"

    def server_bind(self) -> None:
        """Without asking the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(timeout=WAIT):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a visitor who went away there is nothing to tell."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "sgool", ""
    timeout = WAIT

    def do_GET(self) -> None:
        found = self.server.files.get(urlsplit(self.path).path)
        try:
            content = found[0].read_bytes() if found else None
        except OSError:
            content = None
        if found is None or content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._reply(HTTPStatus.OK, content, found[1])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        told = self.headers.get("Content-Length", "")
        length = int(told) if re.fullmatch(r"[0-9]{1,12}", told) else None
        content = self.rfile.read(min(length or 0, READ))
        if self.path != TARGET:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif self.headers.get_content_type() != "application/json":  # which another site's page cannot send
            self.send_error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        elif length is None:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
        elif length > LONGEST:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif not self.server.limit.allows(self.client_address[0]):
            self.send_error(HTTPStatus.TOO_MANY_REQUESTS)
        else:
            self._take(content)

    def _take(self, content: bytes) -> None:
        try:
            self.server.answers.keep(read_answer(content, self.server.pairs))
        except Wrong as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except SgoolError as error:
            print(f"sgool: {error}", file=sys.stderr)
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "The answer could not be kept.")
        else:
            self._reply(HTTPStatus.NO_CONTENT)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A plain text, in which nothing of the request is."""
        status = HTTPStatus(code)
        if status == HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        own = message if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE) else None
        self.close_connection = True
        self._reply(status, f"{own or status.phrase}\n".encode(), "text/plain; charset=utf-8")

    def _reply(self, status: HTTPStatus, content: bytes = b"", kind: str = "") -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if kind:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD, POST")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is kept of who asks for what."""
