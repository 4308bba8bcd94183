"""One resumable download over HTTP, with the standard library only."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import IncompleteRead
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tqdm import tqdm

from sgool.download.drive import confirm_url
from sgool.download.request import CONNECT, SILENCE, BrokenOff, Received, Request, ServedPage, dial
from sgool.errors import SgoolError, brief

BUSY = (408, 429, 500, 502, 503, 504)
"""What a server answers that may well have the file in a moment."""

ATTEMPTS = 5
LONGEST_PAUSE = 60  # seconds; a server may ask for more
_PROGRESS = 1 << 23  # so many new bytes, and the attempts are counted anew
_TICK = 0.5
_STALLED = 2  # seconds without a byte
_WINDOW = 10  # seconds that the speed is measured over


@dataclass(frozen=True)
class Transfer:
    """How far a download is.

    file: its name, "" before the first. done, total: bytes; total is None where the server does not say. silence:
    seconds since anything came. speed: bytes a second of late. waiting: what it waits for instead of bytes, "" for
    nothing.
    """

    file: str
    done: int = 0
    total: int | None = None
    silence: float = 0.0
    speed: float = 0.0
    waiting: str = ""

    @property
    def seconds_left(self) -> float | None:
        """At this speed; None where that cannot be said."""
        return (self.total - self.done) / self.speed if self.total is not None and self.speed > 0 else None

    @property
    def trouble(self) -> str:
        """Why no bytes come; "" where they do."""
        return self.waiting or (f"stalled for {self.silence:.0f} s" if self.silence >= _STALLED else "")

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total / 1e6:.0f}"
        left = "" if self.seconds_left is None else f"{math.ceil(self.seconds_left)} s left"
        parts = [f"{self.done / 1e6:.0f}{of} MB", self.trouble or left]
        return f"{self.file}: {', '.join(part for part in parts if part)}" if self.file else self.trouble


Report = Callable[[Transfer], None]
"""Told at least once a second how far a download is. What it raises ends the download; what has arrived is kept."""


class DownloadError(SgoolError):
    """A file that cannot be had. reason: why, in a few words.

    unreachable: whether there was not even a connection, so the host's other files need not be tried. status: what the
    server answered, 0 where it did not.
    """

    def __init__(self, message: str, reason: str, *, unreachable: bool = False, status: int = 0) -> None:
        super().__init__(message)
        self.reason, self.unreachable, self.status = reason, unreachable, status


def download(url: str, part: Path, target: Path, report: Report) -> Received:
    """Download `url` into `part`, going on from what an earlier, broken transfer left there.

    `target` (the final path) only appears in messages. What the server said of the file's size and version is kept in
    `<part>.json`: a file that changed on the server is started again instead of spliced. Google Drive's page asking to
    confirm a large file is answered once. A busy server and a broken transfer are tried again, with growing pauses.
    Returns when the file is whole; raises DownloadError, and keeps `part`, if it cannot be had; OSError if it cannot
    be written.
    """
    return _Download(url, part, target, report).run()


def unreachable(urls: Iterable[str], report: Report | None = None) -> dict[str, str]:
    """Why hosts of these addresses cannot be reached, by host: found within seconds, for all of them at once.

    {} behind a proxy, which answers for all. Where nothing is found to be wrong, a download may still fail.
    """
    hosts = {}
    for url in urls:
        with contextlib.suppress(ValueError):  # the download will say what is wrong with the address
            place = urlsplit(url)
            if place.hostname and (place.scheme not in getproxies() or proxy_bypass(place.hostname)):
                hosts[place.hostname] = place.port or {"http": 80}.get(place.scheme, 443)
    reasons = dict.fromkeys(hosts, "no answer")

    def ask(host: str, port: int) -> None:
        try:
            dial(host, port).close()
            del reasons[host]
        except (OSError, ValueError) as error:  # a name can be none at all
            reasons[host] = brief(error)

    threads = [threading.Thread(target=ask, args=each, name="sgool dial", daemon=True) for each in hosts.items()]
    for thread in threads:
        thread.start()
    end = monotonic() + CONNECT + 1
    while any(thread.is_alive() for thread in threads) and monotonic() < end:
        if report is not None:
            report(Transfer("", waiting=f"connecting to {', '.join(hosts)}"))
        for thread in threads:
            thread.join(_TICK / len(threads))
    return {host: f"{host} cannot be reached: {reason}" for host, reason in dict(reasons).items()}


def pause(seconds: float, report: Report, transfer: Transfer) -> None:
    """Wait, and say every second for how long still. transfer: how far it is, and what is done after the pause."""
    for left in range(math.ceil(seconds), 0, -1):
        report(replace(transfer, waiting=f"{transfer.waiting} in {left} s"))
        sleep(1)


class _Download:
    def __init__(self, url: str, part: Path, target: Path, report: Report) -> None:
        self.url, self.part, self.target, self.report = url, part, target, report
        self.source = url
        self.confirmed = self.connected = False
        self.failures = 0
        self.total: int | None = None
        self.furthest = self._arrived()

    def run(self) -> Received:
        while True:
            request = Request(self.source, self.part)
            self._follow(request)
            self.total = request.total
            if request.error is None and request.whole:
                return request.received()
            if isinstance(request.error, ServedPage):
                self._confirm(request.error)
            else:
                self._try_again(*self._judge(request), unreachable=not request.connected)

    def _follow(self, request: Request) -> None:
        """Report until the request has ended."""
        begun = monotonic()
        samples = deque([(begun, request.done)])
        self._tell(request, begun, samples[0])
        request.start()
        try:
            ended = False
            while not ended:
                ended = request.finished.wait(_TICK)
                now = monotonic()
                if not ended and not request.reached and now - begun > CONNECT + 1:
                    ended = request.give_up("no answer")  # looking up the name can take longer than any timeout
                samples.append((now, request.done))
                while now - samples[0][0] > _WINDOW:
                    samples.popleft()
                self._tell(request, now, samples[0])
        except BaseException:
            request.stop()
            raise

    def _tell(self, request: Request, now: float, sample: tuple[float, int]) -> None:
        elapsed, arrived = now - sample[0], request.done - sample[1]
        self.report(
            Transfer(
                self.target.name,
                request.done,
                request.total,
                silence=max(0.0, now - request.heard),
                speed=max(0.0, arrived / elapsed) if elapsed else 0.0,
                waiting="" if request.connected else f"connecting to {request.host}",
            )
        )

    def _judge(self, request: Request) -> tuple[str, float]:
        """Why the request came to nothing, and the seconds the server asks to wait. Raises where trying is no use."""
        error, before = request.error, self.connected
        self.connected = before or request.connected
        if error is None:
            return "the connection closed early", 0
        if isinstance(error, HTTPError):
            if error.code not in BUSY:
                raise self._refused(error)
            return f"the server answers {error.code} {error.reason}", _retry_after(error.headers)
        if isinstance(error, (BrokenOff, URLError)):
            reason = brief(error.reason)
            if isinstance(error, URLError) and not request.connected:
                reason = f"{request.host} cannot be reached: {reason}"
                if not before:
                    raise self._failed(reason, unreachable=True)
            elif isinstance(error.reason, TimeoutError):
                reason = f"nothing came for {SILENCE} s"
            elif isinstance(error.reason, IncompleteRead):
                reason = "the connection closed early"
            return reason, 0
        if isinstance(error, ValueError):  # no web address at all
            raise self._failed(brief(error), unreachable=True) from error
        raise error  # the disk's, for one

    def _try_again(self, reason: str, asked: float, *, unreachable: bool) -> None:
        """Wait, or raise where it has failed often enough."""
        if self._arrived() >= self.furthest + _PROGRESS:
            self.failures = 0
        self.furthest = max(self.furthest, self._arrived())
        self.failures += 1
        if self.failures >= ATTEMPTS:
            raise self._failed(reason, unreachable=unreachable)
        seconds = min(max(2 ** (self.failures - 1), asked), LONGEST_PAUSE)
        so_far = Transfer(self.target.name, self._arrived(), self.total, waiting=f"{reason}; trying again")
        pause(seconds, self.report, so_far)

    def _confirm(self, answer: ServedPage) -> None:
        """Follow the one form that leads to the file."""
        form = None if self.confirmed else confirm_url(answer.page, answer.url)
        if form is None:
            host = urlsplit(self.url).hostname
            raise DownloadError(
                f"{host} sent a web page instead of {self.target.name} (it does so when its download quota is used "
                f"up); try again later, or {self._by_hand()}.",
                f"{host} sent a web page instead",
            )
        self.source, self.confirmed = form, True

    def _refused(self, error: HTTPError) -> DownloadError:
        host = urlsplit(self.url).hostname
        answer = f"{error.code} {error.reason}"
        return DownloadError(
            f"{host} refused {self.target.name} ({answer}); try again later, or {self._by_hand()}.",
            f"{host} answers {answer}",
            status=error.code,
        )

    def _failed(self, reason: str, *, unreachable: bool) -> DownloadError:
        advice = "connect to the network and try again" if unreachable else "try again later"
        return DownloadError(
            f"Cannot download {self.target.name} ({reason}): {advice} (what has arrived is kept), or "
            f"{self._by_hand()}.",
            reason,
            unreachable=unreachable,
        )

    def _by_hand(self) -> str:
        return f"download {self.url} by hand and put it into {self.target.parent} as {self.target.name}"

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0


def _retry_after(headers: Message) -> float:
    """The seconds that the server asks to wait, which may be given as a date; 0 where it asks for none."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return int(asked)
    try:
        when = parsedate_to_datetime(asked)
    except (TypeError, ValueError):
        return 0
    return max(0.0, (when.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds())


class Bar:
    """A report: one bar on stderr, which also says why it stands still."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, transfer: Transfer) -> None:
        if self.bar is None:
            self.bar = tqdm(initial=transfer.done, unit="B", unit_scale=True)
        self.bar.set_description(transfer.file, refresh=False)
        self.bar.total, self.bar.n = transfer.total, transfer.done
        self.bar.set_postfix_str(transfer.trouble)
