"""Several runs in lockstep: what they ask of the network at the same time is evaluated as one batch.

Each run is a function that knows nothing of the others. It has a thread of its own, but only one thread works at a
time: a run goes on until it asks for a noise prediction, then comes the next one. When all of them wait, the requests
of one kind and timestep are answered together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Semaphore, Thread

import torch
from torch import Tensor

from sgool.errors import out_of_memory
from sgool.groups import in_groups
from sgool.result import Stop
from sgool.samplers import Network

Join = Callable[[Sequence[int]], "Network | None"]
"""The network that predicts for some runs at once, by their numbers. Its batch holds what the first of them asks about,
then what the next one does. None where their networks cannot be joined."""

Answer = Sequence[Tensor]


@dataclass(frozen=True)
class _Request:
    """kind: the method of `Network`. tensors: what it is asked about besides the timestep t, each [B, 4, h, w]."""

    kind: str
    t: float
    tensors: tuple[Tensor, ...]

    @property
    def key(self) -> object:
        return self.kind, self.t, self.tensors[0].shape


class Member:
    """One run of several. `asking` makes its network wait for those of the others."""

    def __init__(self, number: int, back: Semaphore) -> None:
        self.number = number
        self.alive = True
        self.stopped = False
        self.error: BaseException | None = None
        self.request = _Request("", 0.0, ())
        self.answer: Answer | BaseException | None = None
        self.network: Network | None = None
        self._go, self._back = Semaphore(0), back
        self._working = False

    def asking(self, network: Network) -> Network:
        """The run's own network, to be asked together with those of the others."""
        self.network = network
        return _Asking(network, self._ask)

    def begin(self, run: Callable[[Member], object]) -> None:
        """The run waits for its first turn."""
        Thread(target=self._work, args=(run,), daemon=True).start()

    def go_on(self) -> None:
        """The run's turn, which lasts until it asks for something or ends."""
        if not self._working:
            self._working = True
            self._go.release()
        self._back.acquire()

    def _work(self, run: Callable[[Member], object]) -> None:
        self._go.acquire()
        try:
            run(self)
        except BaseException as error:
            self.error = error
        self.alive = self._working = False
        self._back.release()

    def _ask(self, kind: str, t: float, *tensors: Tensor) -> Answer:
        self.request, self.answer = _Request(kind, t, tensors), None
        self._working = False
        self._back.release()
        self._go.acquire()
        answer: Answer | BaseException | None = Stop() if self.stopped else self.answer
        assert answer is not None
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Asking(Network):
    """A network that is evaluated together with others. Their number changes, and with it the rounding."""

    repeats = False

    def __init__(self, own: Network, ask: Callable[..., Answer]) -> None:
        super().__init__(own.branches, own.alphas_cumprod, own.prediction, own.dtype, own.autocast)
        self._ask = ask

    def __call__(self, x: Tensor, t: float) -> Tensor:
        (eps,) = self._ask("__call__", t, x)
        self.evals_forward += self.cost * len(x)
        return eps

    def vjp(self, x: Tensor, t: float, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        eps, pulled = self._ask("vjp", t, x, cotangent)
        self.evals_backward += self.cost * len(x)
        return eps, pulled

    def prompt_vjp(self, x: Tensor, t: float, cotangent: Tensor) -> Tensor:
        (pulled,) = self._ask("prompt_vjp", t, x, cotangent)
        self.evals_backward += self.prompt_cost * len(x)
        return pulled


def in_lockstep(
    runs: Sequence[Callable[[Member], object]], join: Join, most: int | None = None
) -> list[BaseException | None]:
    """Runs them all together, and returns what each of them raised. most: the largest batch of latents, if it is of
    more than one run.

    A batch that does not fit into memory is halved, and so are all later ones. One that fails otherwise, as by a NaN,
    is asked for one by one, because no run must spoil the others. An exception from outside (Ctrl-C) ends the runs with
    `Stop` and is raised then.
    """
    back = Semaphore(0)
    members = [Member(number, back) for number in range(len(runs))]
    answers = _Answers(join, most or len(members))
    for member, run in zip(members, runs, strict=True):
        member.begin(run)
    outside: BaseException | None = None
    while working := [member for member in members if member.alive]:
        try:
            for member in working:
                member.go_on()
            answers.give([member for member in working if member.alive])
        except BaseException as error:
            if outside is not None:
                raise
            outside = error
            for member in members:
                member.stopped = True
    if outside is not None:
        raise outside
    return [member.error for member in members]


class _Answers:
    """Answers requests together. most: for so many latents at a time."""

    def __init__(self, join: Join, most: int) -> None:
        self._join = join
        self._most = most
        self._joined: dict[tuple[int, ...], Network | None] = {}

    def give(self, members: Sequence[Member]) -> None:
        """An answer, or an error, for each of these runs."""
        while left := [member for member in members if member.answer is None]:
            alike = [member for member in left if member.request.key == left[0].request.key]
            if self._network(alike) is None:
                alike = alike[:1]
            try:
                most = max(1, self._most // len(alike[0].request.tensors[0]))
                found = in_groups(partial(self._evaluated, alike), len(alike), most)
                for member, answer in zip(alike, found, strict=True):
                    member.answer = answer
            except Exception as error:  # of the one whose turn it was
                next(member for member in alike if member.answer is None).answer = error

    def _evaluated(self, alike: Sequence[Member], places: Sequence[int]) -> list[Answer]:
        asked = [alike[place] for place in places]
        network, request = self._network(asked), asked[0].request
        assert network is not None
        tensors = [torch.cat(each) for each in zip(*(member.request.tensors for member in asked), strict=True)]
        try:
            result = getattr(network, request.kind)(tensors[0], request.t, *tensors[1:])
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                self._most = max(1, len(tensors[0]) // 2)
            raise
        parts = result if isinstance(result, tuple) else (result,)
        return list(zip(*(part.chunk(len(asked)) for part in parts), strict=True))

    def _network(self, members: Sequence[Member]) -> Network | None:
        if len(members) == 1:
            return members[0].network
        numbers = tuple(member.number for member in members)
        if numbers not in self._joined:
            self._joined[numbers] = self._join(numbers)
        return self._joined[numbers]
