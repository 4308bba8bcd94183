"""A local HTTP server that hands out a small model file, and misbehaves as told."""

from __future__ import annotations

import io
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from sgool.weights import Weight, ensure

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


def weight(server: Server, columns: int = 500) -> Weight:
    """The server's file, as what it is taken to be."""
    return Weight("Tiny.pth", server.url, 2, "a.weight", (400, columns))


def fetch(server: Server, folder: Path, columns: int = 500) -> Path:
    return ensure(weight(server, columns), folder, progress=False)


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked, _ in server.requests]
