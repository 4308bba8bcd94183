"""Trains any of the networks in slices, each going on from the last.

On a GPU forward and backward pass are captured once as a CUDA graph, in bfloat16: with networks this small, launching
their kernels one by one takes longer than running them. What a step learns from depends only on the seed and the step's
number, so a slice that goes on gives on a CPU bit for bit what one long slice would have given.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sgool.errors import SgoolError

WARMUP, SAY, SAVE = 100, 10.0, 120.0
"""Steps in which the rate rises, and seconds between two lines of the curve and two checkpoints."""


class Kind:
    """What one sort of network learns."""

    rate: float = 1e-3
    batch: int = 64
    decay: float = 0.999
    """Of the moving average of the weights, which is what counts in the end."""
    networks: Any  # nn.ModuleDict, but its modules are called without a cast
    average: Any

    def inputs(self, step: int) -> dict[str, Tensor]:
        """What a step learns from, always in the same shapes. May draw from torch's global random numbers."""
        raise NotImplementedError

    def loss(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is minimized ("loss") and what else the curve shows. Neither draws nor reads from the device."""
        raise NotImplementedError


@dataclass(frozen=True)
class Slice:
    """How long to train, by the first of both that is reached; the rate of a last slice falls to nothing."""

    minutes: float = math.inf
    steps: float = math.inf
    last: bool = False


class Trainer:
    """folder: holds ``state.pt`` (all), ``average.safetensors`` (float16, what others load) and ``curve.jsonl``.

    Goes on from the state; without one from the average, where the optimizer begins anew.
    """

    def __init__(self, kind: Kind, folder: Path, device: torch.device | str = "cpu", seed: int = 0) -> None:
        self.kind, self.folder, self.device, self.seed = kind, folder, torch.device(device), seed
        kind.networks.to(self.device).train()
        kind.average = copy.deepcopy(kind.networks).requires_grad_(False).eval()
        self.trained = [each for each in kind.networks.parameters() if each.requires_grad]
        cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.trained, kind.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda)
        self.step, self.begun, self.seconds = 0, 0, 0.0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.plain = not cuda
        self._load()

    def run(self, length: Slice) -> None:
        """Train for a slice, save now and then and at the end, and print the curve."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = said = saved = time.monotonic()
        first, before, sums, count = self.step, self.seconds, dict[str, Tensor](), 0
        while True:
            now = time.monotonic()
            done = max((now - begun) / 60 / length.minutes, (self.step - first) / length.steps)
            self.seconds = before + now - begun
            due = now - saved > SAVE
            if count and (now - said > SAY or due or done >= 1):
                self._say(sums, count)  # raises before weights that are no numbers could be saved
                said, count = now, 0
            if done >= 1:
                break
            if due:
                self.save()
                saved = now
            rate = min(1.0, (self.step - self.begun + 1) / WARMUP) * (max(0.01, 1 - done) if length.last else 1.0)
            losses = self.once(self.kind.rate * rate)
            sums = {name: sums[name] + loss if count else loss.clone() for name, loss in losses.items()}
            count += 1
        self.save()

    def once(self, rate: float) -> dict[str, Tensor]:
        """One step of the optimizer."""
        torch.manual_seed((self.seed << 32) + self.step)
        inputs = self.kind.inputs(self.step)
        losses = self._backward(inputs) if self.plain else self._replay(inputs)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            decay = min(self.kind.decay, self.step / (self.step + 10))
            torch._foreach_lerp_(_floats(self.kind.average), _floats(self.kind.networks), 1 - decay)
        return losses

    def _backward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        half = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            losses = self.kind.loss(inputs)
        losses["loss"].backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _replay(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.graph is None:
            self._capture(inputs)
            if self.plain:
                return self._backward(inputs)
        assert self.graph
        for name, value in inputs.items():
            self.static[name].copy_(value)
        self.graph.replay()
        return self.outputs

    def _capture(self, inputs: dict[str, Tensor]) -> None:
        """As torch's notes on CUDA graphs have it: a few rounds on another stream, then the capture."""
        self.static = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._backward(self.static)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.outputs = self._backward(self.static)
            self.graph = graph
        except RuntimeError as error:
            print(f"No CUDA graph, so steps are slower: {error}", flush=True)
            self.plain = True

    def _say(self, sums: dict[str, Tensor], count: int) -> None:
        means = {name: total.item() / count for name, total in sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise SgoolError(f"The loss is no number before step {self.step}; {self.folder} keeps what was saved.")
        row = {"step": self.step, **{name: float(f"{mean:.5g}") for name, mean in means.items()}}
        line = json.dumps(row | {"seconds": round(self.seconds, 1)})
        print(line, flush=True)
        with open(self.folder / "curve.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self) -> None:
        """Write the checkpoint; what was there before stays whole until this one is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {"step": self.step, "begun": self.begun, "seconds": self.seconds}
        weights = {"networks": self.kind.networks.state_dict(), "average": self.kind.average.state_dict()}
        new = self.folder / "state.pt.new"
        torch.save(told | weights | {"optimizer": self.optimizer.state_dict()}, new)
        os.replace(new, self.folder / "state.pt")
        new = self.folder / "average.safetensors.new"
        average = {name: _half(value).contiguous() for name, value in weights["average"].items()}
        save_file(average, new, {name: str(value) for name, value in told.items()})
        os.replace(new, self.folder / "average.safetensors")

    def _load(self) -> None:
        state, average = self.folder / "state.pt", self.folder / "average.safetensors"
        if state.is_file():
            stored: dict[str, Any] = torch.load(state, map_location=self.device, weights_only=True)
            self.kind.networks.load_state_dict(stored["networks"])
            self.kind.average.load_state_dict(stored["average"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.step, self.begun, self.seconds = stored["step"], stored["begun"], stored["seconds"]
        elif average.is_file():
            load_average(self.kind.networks, self.folder)
            load_average(self.kind.average, self.folder)
            with safe_open(average, "pt") as file:
                told = file.metadata()
            self.step = self.begun = int(told["step"])
            self.seconds = float(told["seconds"])


def load_average(networks: nn.Module, folder: Path) -> None:
    """Load what a trainer saved as ``average.safetensors``. Raises SgoolError where there is none."""
    path = folder / "average.safetensors"
    if not path.is_file():
        raise SgoolError(f"Train {folder.name} first: there is no {path}.")
    networks.load_state_dict(load_file(path))


def _floats(networks: nn.Module) -> list[Tensor]:
    """The weights, and the running statistics of batch normalization."""
    return [value for value in networks.state_dict().values() if value.is_floating_point()]


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value
