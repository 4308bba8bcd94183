"""Workers on Ray: one on each GPU of a cluster, or on each core where there is no GPU.

A worker has one task at a time and gets the next when that is done, so none waits for another. Results come to this
process, which alone writes. A worker that is lost, or its whole node, is replaced, and its task is given out again.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sgool
from sgool.errors import SgoolError, brief
from sgool.lab.evaluate.work import DEATH, Setup, Worker
from sgool.result import Stop
from sgool.signals import Guard

TRIES = 3
"""How often a task, or the start of a worker, may take its worker with it."""

TICK = 0.5
"""Seconds between two looks at the signals."""


def check_address(address: str) -> None:
    """Raises SgoolError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host:  # "", or auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise SgoolError(f"The Ray cluster {address} cannot be reached: {brief(error)}.") from error


class Cluster:
    """See `sgool.lab.evaluate.run.Pool`. address: "" for a cluster of its own. workers: see `Where`.

    Raises SgoolError where Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, setup: Setup, address: str, workers: int | None, guard: Guard) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which would be sent over the network
        try:
            import ray
        except ImportError as error:
            raise SgoolError('--ray needs Ray: python -m pip install -e ".[ray]"') from error
        check_address(address)
        self.ray: Any = ray
        self.guard = guard
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            # The nodes of a cluster get this very code.
            code = {"runtime_env": {"py_modules": [str(Path(sgool.__file__).parent)]}} if address else {}
            ray.init(
                address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
                **code,
            )
        except Exception as error:  # Ray raises that, too
            which = address or "of this machine"
            raise SgoolError(f"The Ray cluster {which} cannot be used: {brief(error)}") from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray has set its own
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0)) if setup.device != "cpu" else 0
        count = workers or gpus or int(found.get("CPU", 1))
        self.kind = ray.remote(num_gpus=1 if gpus else 0, num_cpus=1, max_restarts=0, max_task_retries=0)(Worker)
        self.setup = setup
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.failed_starts = 0
        print(f"Starting {count} workers on Ray ...", file=sys.stderr)
        for _ in range(count):
            self._start()

    def ask(self, name: str, tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See `Pool`. A task that has taken `TRIES` workers with it has failed."""
        waiting, lost = deque(range(len(tasks))), Counter[int]()
        busy: dict[Any, tuple[Any, int]] = {}
        while waiting or busy:
            while self.idle and waiting:
                actor, number = self.idle.pop(), waiting.popleft()
                busy[getattr(actor, name).remote(*tasks[number])] = actor, number
            done, _ = self.ray.wait([*busy, *self.starting], timeout=TICK)
            if self.guard.number:
                raise Stop
            for reference in done:
                if reference in self.starting:
                    self._started(reference)
                    continue
                actor, number = busy.pop(reference)
                try:
                    result = self._result(reference)
                except self.ray.exceptions.RayError as error:
                    self._start()
                    lost[number] += 1
                    if lost[number] < TRIES:
                        waiting.appendleft(number)
                        continue
                    if name != "make":
                        raise SgoolError(f"{TRIES} workers were lost: {brief(error)}") from error
                    result = b"", {"failure": DEATH, "error": brief(error)}
                else:
                    self.idle.append(actor)
                yield number, result

    def close(self) -> None:
        self.ray.shutdown()

    def _start(self) -> None:
        actor = self.kind.remote(self.setup)
        self.starting[actor.ready.remote()] = actor

    def _started(self, reference: Any) -> None:
        """A worker is there, or could not be started."""
        actor = self.starting.pop(reference)
        try:
            self._result(reference)
            self.idle.append(actor)
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= TRIES:
                raise SgoolError(f"No worker can be started on Ray: {brief(error)}") from error
            self._start()

    def _result(self, reference: Any) -> Any:
        """What a task has come to. An error of its own is raised as in this process, a lost worker as a RayError."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from error
