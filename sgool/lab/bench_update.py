"""The cost of one update at the published model sizes, for each memory setting, compared with DOODL's published code.

A CPU or GPU gives seconds and peak memory. On the device "meta", tensors have shapes but no data. This device gives
the memory and arithmetic of any size on any machine, as on a GPU with fused attention but without the workspaces of its
libraries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from sgool.checkpointing import MEMORY
from sgool.generate import Critics
from sgool.guidance.clip import Clip
from sgool.guidance.loss import SaliencyLoss, Whole
from sgool.lab.bench import table
from sgool.lab.bench_doodl import Doodl, check_folder
from sgool.lab.counting import Flops, shapes_only
from sgool.lab.peak_memory import PeakMemory
from sgool.lab.random_backend import SIZES, RandomBackend, Size, initializing, random_clip
from sgool.optimize import Plan, Problem, Regions, optimize
from sgool.region import Region
from sgool.result import Progress, Result, Snapshot, Stop
from sgool.saliency import LoadedDetector, load_detector
from sgool.saliency.transalnet import Predictor, TranSalNet
from sgool.samplers import Trajectory, get_sampler, make_schedule
from sgool.settings import Settings
from sgool.update import Prior, SgoolUpdate, Update

PROMPT = "a lighthouse above a stormy sea"
SCALE = 7.5

Work = Callable[[int, Callable[[], None]], None]
"""work(n, mark) does n updates and calls mark before the first and after each."""


def bench_update(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    doodl: Path | None = None,
    steps: int | None = None,
    repeats: int = 3,
) -> dict[str, Any]:
    """The figures as plain JSON values; see ``render_tables``.

    name: a key of `SIZES`. doodl: the folder of a checkout of github.com/salesforce/DOODL, or None. steps: sampling
    steps, by default those of the size. repeats: updates timed; the detector runs in every third.

    Each row of `updates` is one update: `seconds`, `teraflop` (matrix products and convolutions, forward and backward),
    `weights_mb` (all loaded networks, no text encoders) and `peak_memory_mb` (beyond the weights). `ratios` are our
    cost divided by DOODL's, as published and with frozen weights. Raises SgoolError if the folder does not hold DOODL's
    code.
    """
    size = SIZES[name]
    steps = size.steps if steps is None else steps
    if doodl is not None:
        check_folder(doodl)
    rows: list[dict[str, Any]] = []
    critics = random_critics(size, device)
    for memory in MEMORY:
        backend = RandomBackend(size, device, dtype, memory)
        loaded = [backend.unet, backend.vae, *(critic.model.visual for critic in clips(critics))]
        network = getattr(critics.detector, "saliency_map", None)
        if isinstance(network, nn.Module):
            loaded.append(network)
        row = {"method": "sgool", "memory": memory, "weights_mb": _megabytes(loaded)}
        rows.append(row | measure(our_work(backend, critics, steps), device, True, repeats))
        if doodl is not None and memory == "fast":
            peer = Doodl(doodl, backend, clips(critics)[0], PROMPT, steps, SCALE)
            for label, trainable in (("doodl", True), ("doodl, frozen", False)):
                row = {"method": label, "memory": "", "weights_mb": _megabytes(loaded[:3])}
                with peer.weights(trainable):
                    rows.append(row | measure(peer.work, device, False, repeats))
        del backend
    side = 8 * size.latent
    figures: dict[str, Any] = {
        "size": name,
        "picture": [side, side],
        "steps": steps,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "updates": rows,
    }
    peers = [row for row in rows if row["method"] != "sgool"]
    figures["ratios"] = [_ratio(row, peer) for row in rows if row["method"] == "sgool" for peer in peers]
    return figures


def random_critics(size: Size, device: torch.device) -> Critics:
    """The CLIPs and the detector of the size, with random weights, in float32 as in a run."""
    clip, selector = (random_clip(config, device) for config in (size.guide, size.selector))
    if not size.transalnet:
        return Critics(clip, selector, load_detector("spectral", device=device))
    with initializing(device, torch.float32):
        network = TranSalNet("res").eval().requires_grad_(False)
    return Critics(clip, selector, LoadedDetector(Predictor(network), device))


def clips(critics: Critics) -> tuple[Clip, Clip]:
    """Guide and selector of `random_critics`."""
    assert isinstance(critics.guide, Clip) and isinstance(critics.selector, Clip)
    return critics.guide, critics.selector


def our_work(backend: RandomBackend, critics: Critics, steps: int) -> Work:
    """Updates by `optimize` with the default settings and as many regions as the settings allow."""
    defaults = Settings()
    side = backend.size[0] // 2
    regions = [Region(0, i * side // 4, side, side, 1 / (i + 1)) for i in range(defaults.max_regions)]
    schedule = make_schedule(backend.alphas_cumprod, steps)
    loss = SaliencyLoss(critics.guide, PROMPT, whole=Whole(defaults.cutouts), saliency_weight=defaults.saliency_weight)

    def work(updates: int, mark: Callable[[], None]) -> None:
        network = backend.network(PROMPT, "", SCALE)
        trajectory = Trajectory(get_sampler("bdia"), schedule, network)
        update: Update = SgoolUpdate(Prior.gaussian(), learning_rate=defaults.learning_rate)
        if backend.device.type == "meta":
            update = _Still()  # the prior's code branches on values, and its cost is negligible
        optimize(
            Problem(
                backend,
                trajectory,
                loss,
                Regions(critics.detector.of(""), lambda saliency: regions, defaults.refresh),
                critics.selector,
            ),
            lambda numbers: (trajectory, trajectory.initial(backend.noise(0))),
            Plan(updates + 1, update),  # the last image of a run gets no gradient, so stop before it
            _Marks(updates, mark),
        )

    return work


class _Marks(Progress):
    """Marks every image, and stops the run after the given number of updates."""

    def __init__(self, updates: int, mark: Callable[[], None]) -> None:
        self.updates = updates
        self.mark = mark

    def image(self, result: Result, newest: Snapshot) -> None:
        self.mark()
        if newest.iteration == self.updates:
            raise Stop


class _Still:
    def step(self, state: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        return list(state)


def measure(work: Work, device: torch.device, truth: bool, repeats: int) -> dict[str, Any]:
    """Seconds per update (mean of `repeats`; on the CPU, processor time), and arithmetic and peak memory of one update.

    truth: the result of every comparison on the device "meta".
    """
    marks: list[float] = []
    seconds = None
    with shapes_only(truth) if device.type == "meta" else nullcontext():
        if device.type != "meta":
            warm = 1 if device.type == "cuda" else 0  # the first update loads the GPU's kernels
            work(repeats + warm, lambda: marks.append(_clock(device)))
            seconds = mean(after - before for before, after in pairwise(marks[warm:]))
            marks.clear()
        with PeakMemory(device) as memory, Flops() as flops:
            work(1, lambda: marks.append(flops.total))
    return {
        "seconds": seconds,
        "teraflop": (marks[1] - marks[0]) / 1e12,
        "peak_memory_mb": memory.bytes / 2**20,
    }


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()  # the time of other processes does not count


def _megabytes(modules: Sequence[nn.Module]) -> float:
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20


def _ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    row = {"memory": ours["memory"], "against": theirs["method"]}
    keys = ("seconds", "teraflop", "peak_memory_mb")
    return row | {key: ours[key] / theirs[key] if theirs[key] else None for key in keys}


def render_tables(figures: Mapping[str, Any]) -> str:
    """The figures as markdown tables."""
    side = figures["picture"][0]
    head = (
        f"One update of {figures['size']} at {side}x{side}, {figures['steps']} steps, {figures['dtype']} on "
        f"{figures['device']}, with random weights."
    )
    lines = [head, "", *table(figures["updates"])]
    if figures["ratios"]:
        lines += ["", "Our cost divided by that of DOODL's published code:", "", *table(figures["ratios"])]
    return "\n".join(lines)
