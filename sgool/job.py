"""What the command line does around a run: load, show progress, write the pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sgool import report, tiny
from sgool.backends.diffusers import load_backend
from sgool.errors import SgoolError
from sgool.generate import SEEDS, check, generate, load_guides
from sgool.optimize import Result, Snapshot
from sgool.settings import settings
from sgool.weights import default_models_dir

METHODS: dict[str, dict[str, Any]] = {
    "sgool": {},
    "doodl": {"sampler": "edict", "strength": 1.0, "steps": 50, "iterations": 50, "guidance_scale": 7.5},
    "none": {"sampler": "ddim", "strength": 1.0, "iterations": 0},
}
"""What a method sets where the user says nothing else; DOODL's are the published ones."""


@dataclass(frozen=True)
class Job:
    """One call of `generate`. values: only the parameters that the user gave."""

    prompt: str
    out: Path
    negative_prompt: str = ""
    seed: int = 0
    model: str = "tiny"
    init_image: Path | None = None
    device: str | None = None
    dtype: str | None = None
    models_dir: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def run(job: Job) -> tuple[dict[str, Any], Result]:
    """Do the job and write its pictures into its folder: (what result.json holds, the result).

    Raises SgoolError for bad input, before anything slow where that can be known.
    """
    if not 0 <= job.seed < SEEDS:
        raise SgoolError(f"The seed must lie between 0 and {SEEDS - 1}, not {job.seed}.")
    values = job_settings(job)
    check(job.prompt, job.negative_prompt, values, job.init_image is not None)
    _check_folder(job.out)
    image = None if job.init_image is None else read_image(job.init_image)
    device, dtype = machine(job.device, job.dtype)
    print("Loading the models ...", file=sys.stderr)
    if job.model == "tiny":
        torch.set_num_threads(1)  # its layers are so small that a second thread only waits for the first
    backend = load_backend(job.model, device=device, dtype=dtype, memory=values["memory"])
    guides = load_guides(values, (job.models_dir or default_models_dir()).expanduser(), device)
    if image is not None:
        image = fit(image, backend.size).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    iterations = 0 if values["method"] == "none" else values["iterations"]
    with tqdm(total=iterations + 1, desc="SGOOL", unit="image", file=sys.stderr) as bar:
        told = _Teller(bar)
        result = generate(
            backend,
            guides,
            job.prompt,
            values,
            negative_prompt=job.negative_prompt,
            seed=job.seed,
            init_latent=None if image is None else backend.encode(image),
            on_image=told.image,
            on_step=told.step,
        )
    return write(job, values, result, device), result


def job_settings(job: Job) -> dict[str, Any]:
    """All parameters of a job: the user's, over the method's, over the model's, over the general defaults."""
    given = settings(job.values)  # checked first, so that the message is about what the user wrote
    own = tiny.DEFAULTS if job.model == "tiny" else {}
    start = {"start": "image"} if job.init_image else {}
    return settings({**own, **METHODS[given["method"]], **start, **job.values})


def machine(device: str | None, dtype: str | None, *, meta: bool = False) -> tuple[torch.device, torch.dtype]:
    """The device and the UNet's dtype: by default CUDA in float16 where there is one, else the CPU in float32.

    meta: whether torch's device without data will do. Raises SgoolError for a device that cannot be used.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, dtype=torch.float64, device=place)
    except Exception as error:  # every kind of device has its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SgoolError(f"The device {device!r} cannot be used here: {reason}") from error
    if place.type == "meta" and not meta:
        raise SgoolError("The device 'meta' holds no data; it only counts, in bench --size.")
    return place, getattr(torch, dtype or ("float16" if place.type == "cuda" else "float32"))


def write(job: Job, values: Mapping[str, Any], result: Result, device: torch.device) -> dict[str, Any]:
    """Write before, after, saliency, loss, comparison and result.json; returns the last."""
    first, best = result.first, result.best
    before, after = report.to_uint8(first.image), report.to_uint8(best.image)
    assert first.saliency is not None
    looked = report.overlay(before, first.saliency, first.regions)
    pictures = {
        "before": before,
        "after": after,
        "saliency": looked,
        "comparison": report.comparison(before, looked, after, first.score, best.score, job.prompt),
    }
    if result.losses:
        pictures["loss"] = report.loss_curve(result.losses, result.scores, result.best_update)
    figures = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
        "model": job.model,
        **values,
        "sampler": result.sampler,
        "iterations_done": result.iterations,
        "best_iteration": result.best_update,
        "score_before": first.score,
        "score_after": best.score,
        "scores": result.scores,
        "losses": result.losses,
        "regions": [vars(region) for region in best.regions],
        "unet_evals": result.unet_evals,
        "seconds": round(result.seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        "ended": result.ended,
    }
    for name, picture in pictures.items():
        report.save_png(job.out / f"{name}.png", picture)
    try:
        if "loss" not in pictures:
            (job.out / "loss.png").unlink(missing_ok=True)  # of an earlier run
        (job.out / "result.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    except OSError as error:
        raise SgoolError(f"{job.out / 'result.json'} could not be written: {error.strerror or error}.") from error
    return figures


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: the allocator's on CUDA, else the whole process's (0 where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def read_image(path: Path) -> Tensor:
    """An image file as float32 [1, 3, H, W], RGB in [0, 1]; what is transparent is white, as on a page.

    Raises SgoolError when it cannot be read.
    """
    import cv2
    import numpy as np

    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        whole = None if image is None else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise SgoolError(f"The initial image {path} cannot be read: {error}") from error
    if image is None:
        raise SgoolError(f"The initial image {path} is not a picture that can be read.")
    colours = image.astype(np.float32) / 255
    if whole is not None and whole.ndim == 3 and whole.shape[2] == 4:
        whole = whole.astype(np.float32) / {"uint8": 255, "uint16": 65535}.get(whole.dtype.name, 1)
        colours = 1 - whole[..., 3:] * (1 - whole[..., :3])
    rgb = np.ascontiguousarray(colours[..., ::-1])
    return torch.from_numpy(rgb).permute(2, 0, 1)[None]


def fit(image: Tensor, size: tuple[int, int], multiple: int = 64) -> Tensor:
    """Scale the image [1, 3, H, W] so that its shorter side is the model's, and crop both to multiples of 64 pixels."""
    height, width = image.shape[-2:]
    scale = min(size) / min(height, width)
    sides = [max(multiple, round(side * scale)) for side in (height, width)]
    scaled = torch.nn.functional.interpolate(image, sides, mode="bicubic", antialias=True).clamp(0, 1)
    kept = [side // multiple * multiple for side in sides]
    top, left = ((side - keep) // 2 for side, keep in zip(sides, kept, strict=True))
    return scaled[..., top : top + kept[0], left : left + kept[1]]


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".sgool-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SgoolError(f"The output folder {folder} cannot be written to: {error.strerror or error}") from error


class _Teller:
    """Shows on the progress bar how far the sampler is, and the scores of the first and the best image."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar
        self.scores = ""

    def step(self, done: int, total: int) -> None:
        self.bar.set_postfix_str(f"{self.scores}step {done}/{total}")

    def image(self, result: Result, newest: Snapshot) -> None:
        self.scores = f"score {result.first.score:.3f} -> {result.best.score:.3f}, "
        self.bar.update()
