"""The peak memory of tensors during a piece of work. Unlike the resident set size or sampling, it is deterministic."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

SLACK = 0.005
"""Share of the peak that may be missed."""


class PeakMemory:
    """``with PeakMemory(device) as memory: ...``; `memory.bytes`: the peak above the memory allocated before.

    On CUDA this is the allocator's count. Elsewhere the storage of every tensor that an operation returns is tracked
    until it is freed, including tensors saved for a backward pass. Scratch space inside an operation is not counted.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._cuda = device if device.type == "cuda" else None
        self._mode = _Storages()
        self._before = 0

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        else:
            self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._cuda:
            self.bytes = torch.cuda.max_memory_allocated(self._cuda) - self._before
        else:
            self._mode.__exit__(*error)
            self.bytes = self._mode.peak


class _Storages(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view of an input or an in-place update takes no new memory.
        inputs = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in inputs and storage._cdata not in self.alive:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.total += storage.nbytes()
        # The total still includes freed storages. Remove them only when the total exceeds the peak by more than the
        # slack; otherwise a growing graph would be searched after every operation.
        if self.total > (1 + SLACK) * self.peak:
            self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
            self.total = sum(size for _, size in self.alive.values())
            self.peak = max(self.peak, self.total)
        return result


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]
