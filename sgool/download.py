"""One resumable download over HTTP, with the standard library only."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from sgool.errors import SgoolError

_ATTEMPTS = 3
_TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 18
_BROKEN_OFF = (ConnectionError, TimeoutError, HTTPException, ssl.SSLError)


class _ServedPage(Exception):
    """A web page came where a file was expected."""

    def __init__(self, page: bytes, url: str) -> None:
        self.page, self.url = page.decode("utf-8", "replace"), url


def download(url: str, part: Path, target: Path, progress: bool = True) -> None:
    """Download `url` into `part`, going on from what an earlier, broken transfer left there.

    `target` (the final path) only appears in messages. What the server said of the file's size and version is kept in
    `<part>.json`, so that a file that changed on the server is started again instead of spliced. Google Drive's page
    asking to confirm a large file is answered once. Returns when the file is whole; raises SgoolError, and keeps
    `part`, if it cannot be had; OSError if it cannot be written.
    """
    by_hand = f"download {url} by hand and put it into {target.parent} as {target.name}"
    source, confirmed, failures = url, False, 0
    while True:
        try:
            if _transfer(source, part, progress, target.name):
                _notes_file(part).unlink(missing_ok=True)
                return
            problem: object = "the connection closed early"
        except _ServedPage as answer:
            form = None if confirmed else _confirm_url(answer.page, answer.url)
            if form is None:
                raise SgoolError(
                    f"{urlsplit(url).hostname} sent a web page instead of {target.name} (it does so when its download "
                    f"quota is used up); try again later, or {by_hand}."
                ) from None
            source, confirmed = form, True
            continue
        except HTTPError as error:
            raise SgoolError(
                f"{urlsplit(url).hostname} refused {target.name} ({error.code} {error.reason}); try again later, "
                f"or {by_hand}."
            ) from error
        except URLError as error:
            problem, failures = error.reason, _ATTEMPTS  # not even a connection: trying at once again is no use
        except _BROKEN_OFF as error:
            problem = error
        failures += 1
        if failures >= _ATTEMPTS:
            raise SgoolError(
                f"Cannot download {target.name} ({problem}): connect to the network and try again (what has arrived "
                f"is kept), or {by_hand}."
            )


def _transfer(url: str, part: Path, progress: bool, label: str) -> bool:
    """One request; True if `part` is whole after it."""
    notes = _read_notes(part)
    offset = part.stat().st_size if notes and part.is_file() else 0
    if offset and offset == notes.get("size"):
        return True  # only the step after the download was missed
    headers = {"User-Agent": "sgool", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if notes.get("version"):
            headers["If-Range"] = notes["version"]
    with _open(Request(url, headers=headers), part) as response:
        if response is None:
            return False  # the server no longer has this range: `part` is gone, start again
        first = response.read(_BLOCK)
        if response.headers.get_content_type() == "text/html" or (
            response.status == 200 and first.lstrip()[:1] == b"<"
        ):
            raise _ServedPage(first, response.url)
        size = _total_size(response)
        fresh = {"version": _version(response.headers), "size": size}
        if response.status == 206 and (_range_start(response) != offset or fresh != notes):
            part.unlink(missing_ok=True)  # another file than the one begun
            return False
        if response.status != 206:
            offset = 0
            _notes_file(part).write_text(json.dumps(fresh), encoding="utf-8")
        bar = tqdm(total=size, initial=offset, unit="B", unit_scale=True, desc=label, disable=not progress)
        arrived = _write(response, first, part, offset, bar)
    return size is None or arrived == size


def _write(response: HTTPResponse, block: bytes, part: Path, offset: int, bar: tqdm) -> int:
    """Append the body to the first `offset` bytes of `part`; return the size reached."""
    with bar, open(part, "ab" if offset else "wb") as file:
        while block:
            file.write(block)
            bar.update(len(block))
            block = response.read(_BLOCK)
        return file.tell()


@contextmanager
def _open(request: Request, part: Path) -> Iterator[HTTPResponse | None]:
    try:
        response = urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)
        yield None
        return
    with response:
        yield response


def _notes_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path) -> dict:
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


def _total_size(response: HTTPResponse) -> int | None:
    if response.status == 206:
        match = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    length = response.headers.get("Content-Length")
    return int(length) if length else None


def _range_start(response: HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


class _ConfirmForm(HTMLParser):
    """Finds Google Drive's `download-form` and its hidden fields."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "form" and values.get("id") == "download-form":
            self.action = values.get("action")
        elif tag == "input" and self.action is not None and "name" in values:
            self.fields[values["name"]] = values.get("value", "")


def _confirm_url(page: str, url: str) -> str | None:
    """The address the page's form leads to, or None if it is no such page."""
    form = _ConfirmForm()
    form.feed(page)
    if not form.action:
        return None
    target = urljoin(url, form.action)
    # A page may not send us to a local file or from https down to http.
    return f"{target}?{urlencode(form.fields)}" if urlsplit(target).scheme == urlsplit(url).scheme else None
