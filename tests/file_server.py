"""A local HTTP server that hands out a small model file, and misbehaves as told."""

from __future__ import annotations

import io
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from sgool.download import Transfer
from sgool.weights import Weight, ensure

CUT = 300_000  # bytes after which a broken transfer ends: more than one read block


def checkpoint(seed: int = 0, shape: tuple[int, ...] = (400, 500)) -> bytes:
    buffer = io.BytesIO()
    generator = torch.Generator().manual_seed(seed)
    torch.save({"a.weight": torch.randn(shape, generator=generator), "b.bias": torch.zeros(3)}, buffer)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `body` at every path; the attributes say how it misbehaves, `requests` holds what it was asked."""

    daemon_threads = True

    body = checkpoint()
    files: dict[str, bytes] | None = None  # what is served by the end of the path, and nothing else
    ranges = True
    knows_if_range = True
    etag = '"one"'
    linked_etag = ""  # sent with a redirect to the file, as Hugging Face does
    length: str | None = None  # sent as Content-Length instead of the true one; "" for none
    breaks = 0  # how many of the next answers end after CUT bytes
    page: bytes | None = None  # served instead of the body until the address has a confirm=yes
    page_type = "text/html; charset=utf-8"
    answers: list[tuple[int, str]]  # statuses of the next answers, each with a Retry-After

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.answers = []
        self.slept: list[float] = []  # the pauses of the download, in seconds
        self.hold = threading.Event()  # cleared, it makes an answer stall after CUT bytes
        self.hold.set()
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
        if server.answers:
            self.refuse(*server.answers.pop(0))
            return
        if server.linked_etag and not self.path.startswith("/cdn"):
            self.send_response(302)
            self.send_header("Location", f"/cdn{self.path}")
            self.send_header("X-Linked-ETag", server.linked_etag)
            self.end_headers()
            return
        if server.page is not None and "confirm=yes" not in self.path:
            self.send_response(200)
            self.send_header("Content-Type", server.page_type)
            self.end_headers()
            self.wfile.write(server.page)
            return
        body = server.body
        if server.files is not None:
            found = [name for name in server.files if self.path.endswith(name)]
            if not found:
                self.refuse(404)
                return
            body = server.files[found[0]]
        self.serve(body, asked if if_range in (None, server.etag) or not server.knows_if_range else None)

    def serve(self, body: bytes, asked: str | None) -> None:
        server, start = self.server, 0
        if server.ranges and asked:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start >= len(body):
                self.refuse(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        rest = body[start:]
        self.send_header("Content-Type", "application/octet-stream")
        length = str(len(rest)) if server.length is None else server.length
        if length:
            self.send_header("Content-Length", length)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            rest = rest[:CUT]
        self.wfile.write(rest[:CUT])
        server.hold.wait(30)
        self.wfile.write(rest[CUT:])

    def refuse(self, status: int, retry_after: str = "") -> None:
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def weight(server: Server, columns: int = 500) -> Weight:
    """The server's file, as what it is taken to be."""
    return Weight("Tiny.pth", server.url, 2, "a.weight", (400, columns))


def quiet(transfer: Transfer) -> None:
    """A report that tells nobody."""


def fetch(server: Server, folder: Path, columns: int = 500) -> Path:
    return ensure(weight(server, columns), folder, quiet)


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked, _ in server.requests]
